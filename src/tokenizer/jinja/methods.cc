// Methods of strings and mappings.
#include <algorithm>

#include "base/strings.h"
#include "tokenizer/jinja/runtime.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/unicode.h"

namespace lserve::jinja {
namespace {

constexpr std::string_view kStringMethods[] = {
    "strip",        "lstrip",       "rstrip",  "split",   "rsplit",  "splitlines",
    "startswith",   "endswith",     "replace", "upper",   "lower",   "title",
    "capitalize",   "find",         "rfind",   "count",   "join",    "index",
    "removeprefix", "removesuffix", "isdigit", "isspace", "isalpha", "isalnum"};
constexpr std::string_view kDictMethods[] = {"items", "keys", "values", "get"};

template <size_t n>
bool Has(const std::string_view (&names)[n], std::string_view name) {
  return std::find(names, names + n, name) != names + n;
}

// A string argument, or nullptr if it is missing or none.
Result<const Str*> Text(Runtime& runtime,
                        const Arguments& arguments,
                        size_t index,
                        std::string_view name,
                        bool required) {
  const Value* value = arguments.Find(index, name);
  if (value != nullptr && value->is_string()) return &value->str();
  if (!required && (value == nullptr || value->is_none())) return static_cast<const Str*>(nullptr);
  return runtime.Error(
      StrCat("argument '", name, "' is ", value == nullptr ? "missing" : TypeName(*value)),
      "a string");
}

Result<int64_t> Count(Runtime& runtime,
                      const Arguments& arguments,
                      size_t index,
                      const char* name) {
  const Value* value = arguments.Find(index, name);
  return value == nullptr ? Result<int64_t>(-1) : runtime.Integer(*value, name);
}

Result<Value> ListOf(Runtime& runtime, std::vector<Str> parts) {
  // Each is an allocation or two.
  LS_TRY(runtime.Step(4 * parts.size()));
  List list;
  for (Str& part : parts) list.push_back(LS_TRY(runtime.NewString(std::move(part))));
  return runtime.NewList(std::move(list));
}

// split() without a separator: runs of white space separate, none at the ends.
Result<std::vector<Str>> SplitSpaces(Runtime& runtime, const Str& s, int64_t max_splits) {
  std::vector<Str> parts;
  size_t at = 0;
  const auto skip = [&](bool spaces) {
    while (at < s.text.size()) {
      const CodePoint c = DecodeAt(s.text, at);
      if (IsPythonSpace(c.value) != spaces) break;
      at += c.bytes;
    }
  };
  while (true) {
    skip(true);
    if (at == s.text.size()) return parts;
    const size_t begin = at;
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) >= max_splits) {
      const Str rest = s.Sub(begin, s.text.size());
      parts.push_back(LS_TRY(Strip(runtime, rest, nullptr, Side::kRight)));
      return parts;
    }
    skip(false);
    parts.push_back(s.Sub(begin, at));
  }
}

std::vector<Str> SplitAt(const Str& s, const std::string& separator, int64_t max_splits) {
  std::vector<Str> parts;
  size_t done = 0;
  for (size_t at; max_splits != 0 && (at = FindText(s.text, separator, done)) != std::string::npos;
       --max_splits) {
    parts.push_back(s.Sub(done, at));
    done = at + separator.size();
  }
  parts.push_back(s.Sub(done, s.text.size()));
  return parts;
}

std::vector<Str> SplitAtFromRight(const Str& s, const std::string& separator, int64_t max_splits) {
  const std::string text_back(s.text.rbegin(), s.text.rend());
  const std::string separator_back(separator.rbegin(), separator.rend());
  const size_t size = s.text.size();
  std::vector<Str> parts;
  size_t end = size;
  for (size_t at; max_splits != 0 &&
                  (at = FindText(text_back, separator_back, size - end)) != std::string::npos;
       --max_splits) {
    parts.push_back(s.Sub(size - at, end));
    end = size - at - separator.size();
  }
  parts.push_back(s.Sub(0, end));
  std::reverse(parts.begin(), parts.end());
  return parts;
}

Result<Value> Split(Runtime& runtime, const Str& s, const Arguments& arguments, bool from_right) {
  const Str* separator = LS_TRY(Text(runtime, arguments, 0, "sep", false));
  const int64_t max_splits = LS_TRY(Count(runtime, arguments, 1, "maxsplit"));
  LS_TRY(runtime.Scan(s.text.size()));
  std::vector<Str> parts;
  if (separator == nullptr) {
    if (from_right && max_splits >= 0) {
      return runtime.Error("rsplit of white space with a limit is not implemented",
                           "a separator or no limit");
    }
    parts = LS_TRY(SplitSpaces(runtime, s, max_splits));
  } else if (separator->text.empty()) {
    return runtime.Error("split by an empty text", "a separator of one character or more");
  } else {
    LS_TRY(runtime.Scan(separator->text.size()));
    parts = from_right ? SplitAtFromRight(s, separator->text, max_splits)
                       : SplitAt(s, separator->text, max_splits);
  }
  return ListOf(runtime, std::move(parts));
}

// startswith and endswith take a string or a tuple of them.
Result<Value> HasEnd(Runtime& runtime, const Str& s, const Arguments& arguments, bool at_start) {
  const Value* wanted = arguments.Find(0, "prefix");
  if (wanted == nullptr || arguments.positional.size() != 1) {
    return runtime.Error(StrCat(at_start ? "startswith" : "endswith", " with ",
                                arguments.positional.size(), " arguments"),
                         "one string, or one list of strings");
  }
  const List single{*wanted};
  const List& options = wanted->is_list() ? wanted->list() : single;
  bool found = false;
  for (const Value& option : options) {
    if (!option.is_string()) {
      return runtime.Error(StrCat(at_start ? "startswith" : "endswith", " of ", TypeName(option)),
                           "a string");
    }
    LS_TRY(runtime.Step());
    LS_TRY(runtime.Work(std::min(s.text.size(), option.str().text.size())));
    found = found || (at_start ? s.text.starts_with(option.str().text)
                               : s.text.ends_with(option.str().text));
  }
  return MakeBool(found);
}

Result<Value> Find(Runtime& runtime,
                   const Str& s,
                   std::string_view name,
                   const Arguments& arguments) {
  const Str* wanted = LS_TRY(Text(runtime, arguments, 0, "sub", true));
  if (arguments.positional.size() > 1) {
    return runtime.Error(StrCat(name, " with bounds is not implemented"), "one string");
  }
  LS_TRY(runtime.Scan(s.text.size() + wanted->text.size()));
  if (name == "count") {
    if (wanted->text.empty()) {
      return MakeInt(static_cast<int64_t>(CountCodePoints(s.text)) + 1);
    }
    int64_t count = 0;
    for (size_t at = 0; (at = FindText(s.text, wanted->text, at)) != std::string::npos;
         at += wanted->text.size()) {
      ++count;
    }
    return MakeInt(count);
  }
  const size_t at =
      name == "rfind" ? FindLastText(s.text, wanted->text) : FindText(s.text, wanted->text);
  if (at == std::string::npos) {
    if (name == "index") {
      return runtime.Error(StrCat("index of '", Shown(wanted->text), "', which is not there"),
                           "a text that has it", "use find");
    }
    return MakeInt(-1);
  }
  return MakeInt(static_cast<int64_t>(CountCodePoints(std::string_view(s.text).substr(0, at))));
}

Result<Value> Join(Runtime& runtime, const Str& s, const Arguments& arguments) {
  if (arguments.positional.size() != 1) {
    return runtime.Error(StrCat("join with ", arguments.positional.size(), " arguments"),
                         "one list");
  }
  Str out;
  const List items = LS_TRY(runtime.Items(arguments.positional[0]));
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is_string()) {
      return runtime.Error(StrCat("join of ", TypeName(items[i])), "strings");
    }
    if (i > 0) out.Append(s);
    out.Append(items[i].str());
    if (out.text.size() > runtime.limits().max_output_bytes) break;
  }
  return runtime.NewString(std::move(out));
}

Result<Value> RemoveEnd(Runtime& runtime, const Str& s, const Arguments& arguments, bool at_start) {
  const Str* end = LS_TRY(Text(runtime, arguments, 0, "prefix", true));
  LS_TRY(runtime.Work(end->text.size()));
  const size_t size = s.text.size();
  const size_t cut = end->text.size();
  if (at_start && s.text.starts_with(end->text)) return runtime.NewString(s.Sub(cut, size));
  if (!at_start && s.text.ends_with(end->text)) return runtime.NewString(s.Sub(0, size - cut));
  return runtime.NewString(s);
}

Result<Value> AllOf(Runtime& runtime, const Str& s, bool (*holds)(char32_t)) {
  LS_TRY(runtime.Scan(s.text.size()));
  for (size_t at = 0; at < s.text.size();) {
    const CodePoint c = DecodeAt(s.text, at);
    if (!holds(c.value)) return MakeBool(false);
    at += c.bytes;
  }
  return MakeBool(!s.text.empty());
}

Result<Value> CallStringMethod(Runtime& runtime,
                               const Str& s,
                               std::string_view name,
                               const Arguments& arguments) {
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const Str* characters = LS_TRY(Text(runtime, arguments, 0, "chars", false));
    const Side side = name == "strip" ? Side::kBoth : name == "lstrip" ? Side::kLeft : Side::kRight;
    return runtime.NewString(LS_TRY(Strip(runtime, s, characters, side)));
  }
  if (name == "split" || name == "rsplit") return Split(runtime, s, arguments, name == "rsplit");
  if (name == "splitlines") {
    LS_TRY(runtime.Scan(s.text.size()));
    return ListOf(runtime, SplitLines(s));
  }
  if (name == "startswith" || name == "endswith") {
    return HasEnd(runtime, s, arguments, name == "startswith");
  }
  if (name == "replace") {
    const Str* from = LS_TRY(Text(runtime, arguments, 0, "old", true));
    const Str* to = LS_TRY(Text(runtime, arguments, 1, "new", true));
    const int64_t count = LS_TRY(Count(runtime, arguments, 2, "count"));
    return runtime.NewString(LS_TRY(ReplaceText(runtime, s, *from, *to, count)));
  }
  if (name == "upper") return runtime.NewString(LS_TRY(ChangeCase(runtime, s, Case::kUpper)));
  if (name == "lower") return runtime.NewString(LS_TRY(ChangeCase(runtime, s, Case::kLower)));
  if (name == "title") return runtime.NewString(LS_TRY(ChangeCase(runtime, s, Case::kTitle)));
  if (name == "capitalize")
    return runtime.NewString(LS_TRY(ChangeCase(runtime, s, Case::kCapitalize)));
  if (name == "join") return Join(runtime, s, arguments);
  if (name == "removeprefix" || name == "removesuffix") {
    return RemoveEnd(runtime, s, arguments, name == "removeprefix");
  }
  if (name == "isdigit") return AllOf(runtime, s, IsNumber);
  if (name == "isspace") return AllOf(runtime, s, IsPythonSpace);
  if (name == "isalpha") return AllOf(runtime, s, IsLetter);
  if (name == "isalnum") {
    return AllOf(runtime, s, [](char32_t c) { return IsLetter(c) || IsNumber(c); });
  }
  return Find(runtime, s, name, arguments);
}

}  // namespace

bool IsMethod(const Value& self, std::string_view name) {
  if (self.is_string()) return Has(kStringMethods, name);
  return self.is_dict() && Has(kDictMethods, name);
}

Result<Value> CallMethod(Runtime& runtime,
                         const Value& self,
                         std::string_view name,
                         const Arguments& arguments) {
  if (self.is_string()) return CallStringMethod(runtime, self.str(), name, arguments);
  const Dict& dict = self.dict();
  if (name == "get") {
    const Value* key = arguments.Find(0, "key");
    const Value* otherwise = arguments.Find(1, "default");
    if (key == nullptr) return runtime.Error("get without a key", "one or two arguments");
    const Value* found =
        key->is_string() ? LS_TRY(runtime.FindMember(dict, key->str().text)) : nullptr;
    if (found != nullptr) return *found;
    return otherwise == nullptr ? Value{None{}} : *otherwise;
  }
  List list;
  for (const auto& [key, value] : dict) {
    if (name == "values") {
      list.push_back(value);
      continue;
    }
    Value text = LS_TRY(runtime.NewString(key));
    list.push_back(name == "keys" ? std::move(text)
                                  : LS_TRY(runtime.NewList({std::move(text), value})));
  }
  return runtime.NewList(std::move(list));
}

}  // namespace lserve::jinja
