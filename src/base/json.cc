#include "base/json.h"

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/strings.h"

namespace lserve {

const Json* Json::Find(std::string_view key) const {
  if (!is_object()) return nullptr;
  for (const Member& member : as_object()) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

const char* Json::TypeName() const {
  switch (value_.index()) {
    case 0:
      return "null";
    case 1:
      return "a bool";
    case 2:
      return "an integer";
    case 3:
      return "a number";
    case 4:
      return "a string";
    case 5:
      return "an array";
    default:
      return "an object";
  }
}

namespace {

namespace bj = boost::json;

// Receives Boost.JSON's events and builds a Json. Open arrays and objects wait on `stack_`.
class TreeBuilder {
 public:
  static constexpr std::size_t max_object_size = std::size_t(-1);  // NOLINT: names that Boost wants
  static constexpr std::size_t max_array_size = std::size_t(-1);   // NOLINT
  static constexpr std::size_t max_key_size = std::size_t(-1);     // NOLINT
  static constexpr std::size_t max_string_size = std::size_t(-1);  // NOLINT

  using Error = boost::system::error_code;

  bool on_document_begin(Error&) { return true; }
  bool on_document_end(Error&) { return true; }
  bool on_object_begin(Error&) {
    stack_.push_back({Json(Json::Object{}), std::move(key_)});
    key_.clear();
    return true;
  }
  bool on_object_end(std::size_t, Error& error) {
    if (!MembersUnique(stack_.back().value.as_object())) {
      // Foreign text in a message: escaped, so that it stays one line, and cut.
      const std::string name = WriteJson(Json(repeated_), {.ascii_only = true}).substr(0, 80);
      return Fail(error, StrCat("member ", name, " appears twice"));
    }
    return Close();
  }
  bool on_array_begin(Error&) {
    stack_.push_back({Json(Json::Array{}), std::move(key_)});
    key_.clear();
    return true;
  }
  bool on_array_end(std::size_t, Error&) { return Close(); }
  bool on_key_part(bj::string_view s, std::size_t, Error&) {
    key_.append(s.data(), s.size());
    return true;
  }
  bool on_key(bj::string_view s, std::size_t, Error&) {
    key_.append(s.data(), s.size());
    return true;
  }
  bool on_string_part(bj::string_view s, std::size_t, Error&) {
    text_.append(s.data(), s.size());
    return true;
  }
  bool on_string(bj::string_view s, std::size_t, Error&) {
    text_.append(s.data(), s.size());
    const bool added = Add(Json(std::move(text_)));
    text_.clear();
    return added;
  }
  bool on_number_part(bj::string_view, Error&) { return true; }
  bool on_int64(int64_t i, bj::string_view, Error&) { return Add(Json(i)); }
  bool on_uint64(uint64_t u, bj::string_view, Error& error) {
    return Fail(error, StrCat("integer ", u, " is beyond 64 bits with sign"));
  }
  bool on_double(double d, bj::string_view, Error&) { return Add(Json(d)); }
  bool on_bool(bool b, Error&) { return Add(Json(b)); }
  bool on_null(Error&) { return Add(Json()); }
  bool on_comment_part(bj::string_view, Error&) { return true; }
  bool on_comment(bj::string_view, Error&) { return true; }

  Json TakeRoot() { return std::move(*root_); }
  const std::string& failure() const { return failure_; }

 private:
  struct Open {
    Json value;
    std::string key;  // under which it goes into its parent, if that is an object
  };

  bool Add(Json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
    } else if (stack_.back().value.is_array()) {
      stack_.back().value.mutable_array().push_back(std::move(value));
    } else {
      stack_.back().value.mutable_object().emplace_back(std::move(key_), std::move(value));
      key_.clear();
    }
    return true;
  }

  bool Close() {
    Open done = std::move(stack_.back());
    stack_.pop_back();
    key_ = std::move(done.key);
    return Add(std::move(done.value));
  }

  bool MembersUnique(const Json::Object& members) {
    std::vector<std::string_view> names;
    names.reserve(members.size());
    for (const Json::Member& member : members) names.push_back(member.first);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice == names.end()) return true;
    repeated_ = *twice;
    return false;
  }

  bool Fail(Error& error, std::string why) {
    failure_ = std::move(why);
    error = bj::make_error_code(bj::error::syntax);
    return false;
  }

  std::vector<Open> stack_;
  std::string key_;
  std::string text_;
  std::string failure_;
  std::string repeated_;
  std::optional<Json> root_;
};

void WriteString(std::string_view s, bool ascii_only, std::string& out);
void Write(const Json& value, const JsonStyle& style, int level, std::string& out);

void NewLine(const JsonStyle& style, int level, std::string& out) {
  if (style.indent == 0) return;
  out.push_back('\n');
  out.append(static_cast<size_t>(style.indent) * static_cast<size_t>(level), ' ');
}

void WriteDouble(double d, std::string& out) {
  if (!std::isfinite(d)) {
    out += "null";
    return;
  }
  char digits[64];
  const std::to_chars_result end = std::to_chars(digits, digits + sizeof(digits), d);
  const std::string_view written(digits, static_cast<size_t>(end.ptr - digits));
  out += written;
  // "1" would read back as an integer.
  if (written.find_first_of(".e") == std::string_view::npos) out += ".0";
}

void AppendUnicodeEscape(uint32_t unit, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  out += "\\u";
  for (int shift = 12; shift >= 0; shift -= 4) out.push_back(kHex[(unit >> shift) & 0xfu]);
}

void WriteString(std::string_view s, bool ascii_only, std::string& out) {
  out.push_back('"');
  for (size_t i = 0; i < s.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(s[i]);
    switch (c) {
      case '"':
        out += "\\\"";
        continue;
      case '\\':
        out += "\\\\";
        continue;
      case '\n':
        out += "\\n";
        continue;
      case '\r':
        out += "\\r";
        continue;
      case '\t':
        out += "\\t";
        continue;
      case '\b':
        out += "\\b";
        continue;
      case '\f':
        out += "\\f";
        continue;
      default:
        break;
    }
    if (c < 0x20 || (c == 0x7f && ascii_only)) {
      AppendUnicodeEscape(c, out);
    } else if (c < 0x80 || !ascii_only) {
      out.push_back(static_cast<char>(c));
    } else {
      const size_t extra = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
      uint32_t point = c & (0x3fu >> extra);
      size_t followers = 0;
      while (followers < extra && i + followers + 1 < s.size() &&
             (static_cast<unsigned char>(s[i + followers + 1]) & 0xc0u) == 0x80) {
        ++followers;
        point = (point << 6) | (static_cast<unsigned char>(s[i + followers]) & 0x3fu);
      }
      i += followers;
      // Text that is no UTF-8 is shown, not stored: error messages quote foreign bytes.
      if (c < 0xc2 || followers < extra) point = 0xfffd;
      if (point >= 0x10000) {
        AppendUnicodeEscape(0xd800u + ((point - 0x10000u) >> 10), out);
        AppendUnicodeEscape(0xdc00u + ((point - 0x10000u) & 0x3ffu), out);
      } else {
        AppendUnicodeEscape(point, out);
      }
    }
  }
  out.push_back('"');
}

// Writes the elements of an array or object between brackets; `one(i)` writes element i.
template <class F>
void WriteList(char open,
               char close,
               size_t size,
               const JsonStyle& style,
               int level,
               std::string& out,
               F&& one) {
  out.push_back(open);
  for (size_t i = 0; i < size; ++i) {
    if (i > 0) out += style.indent == 0 && style.space_after ? ", " : ",";
    NewLine(style, level + 1, out);
    one(i);
  }
  if (size > 0) NewLine(style, level, out);
  out.push_back(close);
}

void Write(const Json& value, const JsonStyle& style, int level, std::string& out) {
  if (value.is_null()) {
    out += "null";
  } else if (value.is_bool()) {
    out += value.as_bool() ? "true" : "false";
  } else if (value.is_int()) {
    out += StrCat(value.as_int());
  } else if (value.is_number()) {
    WriteDouble(value.as_double(), out);
  } else if (value.is_string()) {
    WriteString(value.as_string(), style.ascii_only, out);
  } else if (value.is_array()) {
    const Json::Array& items = value.as_array();
    WriteList('[', ']', items.size(), style, level, out,
              [&](size_t i) { Write(items[i], style, level + 1, out); });
  } else {
    const Json::Object& members = value.as_object();
    WriteList('{', '}', members.size(), style, level, out, [&](size_t i) {
      WriteString(members[i].first, style.ascii_only, out);
      out += style.indent > 0 || style.space_after ? ": " : ":";
      Write(members[i].second, style, level + 1, out);
    });
  }
}

}  // namespace

Result<Json> ParseJson(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return Status(Code::kInvalidArgument,
                  StrCat("JSON text has ", text.size(), " bytes, at most ", limits.max_bytes));
  }
  bj::parse_options options;
  options.max_depth = limits.max_depth;
  bj::basic_parser<TreeBuilder> parser(options);
  boost::system::error_code error;
  const size_t read = parser.write_some(false, text.data(), text.size(), error);
  if (!error && read < text.size() &&
      text.substr(read).find_first_not_of(" \t\r\n") != std::string_view::npos) {
    return Status(Code::kInvalidArgument,
                  StrCat("JSON has text after its end, at byte ", read, "; expected one value"));
  }
  if (error) {
    const std::string why =
        parser.handler().failure().empty() ? error.message() : parser.handler().failure();
    return Status(Code::kInvalidArgument, StrCat("JSON is broken at byte ", read, ": ", why));
  }
  return parser.handler().TakeRoot();
}

std::string WriteJson(const Json& value, const JsonStyle& style) {
  std::string out;
  Write(value, style, 0, out);
  return out;
}

}  // namespace lserve
