#include "tokenizer/jinja/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/strings.h"
#include "tokenizer/unicode.h"

namespace lserve::jinja {

void Str::Mark(size_t begin, size_t end) {
  if (begin >= end) return;
  if (!user.empty() && user.back().end >= begin) {
    user.back().end = std::max(user.back().end, end);
  } else {
    user.push_back({begin, end});
  }
}

void Str::MarkAll() {
  user.clear();
  Mark(0, text.size());
}

void Str::Append(const Str& other) {
  const size_t base = text.size();
  text.append(other.text);
  for (const ByteRange& range : other.user) Mark(base + range.begin, base + range.end);
}

Str Str::Sub(size_t begin, size_t end) const {
  Str out;
  out.text = text.substr(begin, end - begin);
  auto range = std::upper_bound(user.begin(), user.end(), begin,
                                [](size_t at, const ByteRange& r) { return at < r.end; });
  for (; range != user.end() && range->begin < end; ++range) {
    out.Mark(std::max(range->begin, begin) - begin, std::min(range->end, end) - begin);
  }
  return out;
}

Value MakeString(Str s) {
  return {std::make_shared<const Str>(std::move(s))};
}
Value MakePlain(std::string text) {
  return MakeString(Str{std::move(text), {}});
}
Value MakeList(List list) {
  int depth = 0;
  for (const Value& item : list) depth = std::max(depth, item.depth);
  return {std::make_shared<const List>(std::move(list)), depth + 1};
}
Value MakeDict(Dict dict) {
  int depth = 0;
  for (const auto& [key, item] : dict) depth = std::max(depth, item.depth);
  return {std::make_shared<const Dict>(std::move(dict)), depth + 1};
}

Value FromJson(const Json& json, bool user) {
  const auto string = [user](const std::string& text) {
    Str s{text, {}};
    if (user) s.MarkAll();
    return s;
  };
  if (json.is_null()) return {None{}};
  if (json.is_bool()) return {json.as_bool()};
  if (json.is_int()) return {json.as_int()};
  if (json.is_number()) return {json.as_double()};
  if (json.is_string()) return MakeString(string(json.as_string()));
  if (json.is_array()) {
    List list;
    list.reserve(json.as_array().size());
    for (const Json& item : json.as_array()) list.push_back(FromJson(item, user));
    return MakeList(std::move(list));
  }
  Dict dict;
  dict.reserve(json.as_object().size());
  for (const auto& [key, item] : json.as_object()) {
    dict.emplace_back(string(key), FromJson(item, user));
  }
  return MakeDict(std::move(dict));
}

const char* TypeName(const Value& value) {
  constexpr const char* kNames[] = {"undefined",   "none",      "a bool", "an integer",
                                    "a float",     "a string",  "a list", "a mapping",
                                    "a namespace", "a function"};
  return kNames[value.data.index()];
}

bool IsTrue(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_number()) return value.number() != 0.0;
  if (value.is_string()) return !value.str().text.empty();
  if (value.is_list()) return !value.list().empty();
  if (value.is_dict()) return !value.dict().empty();
  return true;
}

// Python's repr(float): the shortest digits that read back equal, an exponent from 1e16 up and
// below 1e-4.
std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  const double size = std::fabs(value);
  const bool exponent = size != 0.0 && (size >= 1e16 || size < 1e-4);
  char digits[400];
  const auto end =
      std::to_chars(digits, digits + sizeof(digits), value,
                    exponent ? std::chars_format::scientific : std::chars_format::fixed);
  std::string text(digits, end.ptr);
  if (!exponent && text.find('.') == std::string::npos) text += ".0";
  return text;
}

namespace {

// Python's repr() of a string: single quotes unless only those occur in it.
void AppendQuoted(const Str& s, Str& out) {
  const bool has_single = s.text.find('\'') != std::string::npos;
  const char quote = has_single && s.text.find('"') == std::string::npos ? '"' : '\'';
  const size_t begin = out.text.size();
  out.text.push_back(quote);
  constexpr char kHex[] = "0123456789abcdef";
  for (const char c : s.text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (c == quote || c == '\\') {
      out.text.append({'\\', c});
    } else if (c == '\n') {
      out.text += "\\n";
    } else if (c == '\r') {
      out.text += "\\r";
    } else if (c == '\t') {
      out.text += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      out.text.append({'\\', 'x', kHex[byte >> 4], kHex[byte & 15]});
    } else {
      out.text.push_back(c);
    }
  }
  out.text.push_back(quote);
  if (!s.user.empty()) out.Mark(begin, out.text.size());
}

void AppendText(const Value& value, bool quoted, size_t max_bytes, Str& out) {
  if (out.text.size() > max_bytes) return;
  if (value.is_undefined()) {
    if (quoted) out.Append("Undefined");
  } else if (value.is_none()) {
    out.Append("None");
  } else if (value.is_bool()) {
    out.Append(value.integral() != 0 ? "True" : "False");
  } else if (value.is_int()) {
    out.Append(StrCat(value.integral()));
  } else if (value.is_float()) {
    out.Append(FloatText(value.number()));
  } else if (value.is_string()) {
    if (quoted) {
      AppendQuoted(value.str(), out);
    } else {
      out.Append(value.str());
    }
  } else if (value.is_list()) {
    out.Append("[");
    for (size_t i = 0; i < value.list().size() && out.text.size() <= max_bytes; ++i) {
      if (i > 0) out.Append(", ");
      AppendText(value.list()[i], true, max_bytes, out);
    }
    out.Append("]");
  } else if (value.is_dict()) {
    out.Append("{");
    for (size_t i = 0; i < value.dict().size() && out.text.size() <= max_bytes; ++i) {
      if (i > 0) out.Append(", ");
      AppendQuoted(value.dict()[i].first, out);
      out.Append(": ");
      AppendText(value.dict()[i].second, true, max_bytes, out);
    }
    out.Append("}");
  } else {
    out.Append(value.is_namespace() ? "<Namespace>" : "<function>");
  }
}

class JsonWriter {
 public:
  JsonWriter(int indent, bool sort_keys, size_t max_bytes, Str& out)
      : indent_(indent), sort_keys_(sort_keys), max_bytes_(max_bytes), out_(out) {}

  bool Write(const Value& value, int level) {
    if (out_.text.size() > max_bytes_) return true;
    if (value.is_none()) {
      out_.Append("null");
    } else if (value.is_bool()) {
      out_.Append(value.integral() != 0 ? "true" : "false");
    } else if (value.is_int()) {
      out_.Append(StrCat(value.integral()));
    } else if (value.is_float()) {
      const double number = value.number();
      out_.Append(std::isnan(number)   ? "NaN"
                  : std::isinf(number) ? (number > 0 ? "Infinity" : "-Infinity")
                                       : FloatText(number));
    } else if (value.is_string()) {
      Quote(value.str());
    } else if (value.is_list()) {
      const List& list = value.list();
      return Between('[', ']', list.size(), level,
                     [&](size_t i) { return Write(list[i], level + 1); });
    } else if (value.is_dict()) {
      return WriteDict(value.dict(), level);
    } else {
      return false;
    }
    return true;
  }

  bool any_user() const { return any_user_; }

 private:
  bool WriteDict(const Dict& dict, int level) {
    std::vector<size_t> order(dict.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (sort_keys_) {
      std::sort(order.begin(), order.end(),
                [&](size_t a, size_t b) { return dict[a].first.text < dict[b].first.text; });
    }
    return Between('{', '}', dict.size(), level, [&](size_t i) {
      Quote(dict[order[i]].first);
      out_.Append(": ");
      return Write(dict[order[i]].second, level + 1);
    });
  }

  template <class F>
  bool Between(char open, char close, size_t size, int level, const F& one) {
    out_.text.push_back(open);
    // A value may be reached by many ways: what is too long is given up at once, on every level.
    for (size_t i = 0; i < size && out_.text.size() <= max_bytes_; ++i) {
      if (i > 0) out_.Append(indent_ < 0 ? ", " : ",");
      NewLine(level + 1);
      if (!one(i)) return false;
    }
    if (size > 0) NewLine(level);
    out_.text.push_back(close);
    return true;
  }

  void NewLine(int level) {
    if (indent_ < 0) return;
    out_.text.push_back('\n');
    out_.text.append(static_cast<size_t>(indent_) * static_cast<size_t>(level), ' ');
  }

  void Quote(const Str& s) {
    any_user_ = any_user_ || !s.user.empty();
    out_.Append(WriteJson(Json(s.text)));
  }

  int indent_;
  bool sort_keys_;
  size_t max_bytes_;
  Str& out_;
  bool any_user_ = false;
};

}  // namespace

Str ToText(const Value& value, size_t max_bytes) {
  Str out;
  AppendText(value, false, max_bytes, out);
  return out;
}

// Which bytes of the JSON text came from the user is not tracked: if any did, all count as such.
bool ToJsonText(const Value& value, int indent, bool sort_keys, size_t max_bytes, Str& out) {
  JsonWriter writer(indent, sort_keys, max_bytes, out);
  if (!writer.Write(value, 0)) return false;
  if (writer.any_user()) out.MarkAll();
  return true;
}

}  // namespace lserve::jinja
