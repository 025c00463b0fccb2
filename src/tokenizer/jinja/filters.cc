// Filters: what may follow `|`.
#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>

#include "base/strings.h"
#include "tokenizer/jinja/runtime.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/unicode.h"

namespace lserve::jinja {
namespace {

// The value at a path such as "function.name" or "0.role" inside `value`.
Result<Value> AtPath(Runtime& runtime, const Value& value, const Value& path) {
  if (!path.is_string()) return runtime.Item(value, path);
  LS_TRY(runtime.Work(path.str().text.size()));
  Value current = value;
  std::string_view rest = path.str().text;
  while (true) {
    const size_t dot = rest.find('.');
    const std::string part(rest.substr(0, dot));
    int64_t index = 0;
    const auto end = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index = end.ec == std::errc() && end.ptr == part.data() + part.size();
    current = LS_TRY(runtime.Item(current, is_index ? MakeInt(index) : MakePlain(part)));
    if (dot == std::string_view::npos) return current;
    rest.remove_prefix(dot + 1);
  }
}

Arguments Rest(const Arguments& arguments, size_t skip) {
  Arguments rest = arguments;
  const size_t count = std::min(skip, rest.positional.size());
  rest.positional.erase(rest.positional.begin(),
                        rest.positional.begin() + static_cast<ptrdiff_t>(count));
  return rest;
}

Result<Value> Length(Runtime& runtime, const Value& input) {
  if (input.is_undefined()) return MakeInt(0);
  if (input.is_string()) {
    LS_TRY(runtime.Scan(input.str().text.size()));
    return MakeInt(static_cast<int64_t>(CountCodePoints(input.str().text)));
  }
  if (input.is_list()) return MakeInt(static_cast<int64_t>(input.list().size()));
  if (input.is_dict()) return MakeInt(static_cast<int64_t>(input.dict().size()));
  return runtime.Error(StrCat("length of ", TypeName(input)), "a string, a list or a mapping");
}

Result<Value> ToJson(Runtime& runtime, const Value& input, const Arguments& arguments) {
  // Jinja's own order puts indent first; transformers has ensure_ascii before it.
  int64_t indent = -1;
  bool sort_keys = false;
  if (arguments.positional.size() > 1) {
    return runtime.Error(
        StrCat("tojson with ", arguments.positional.size(), " positional arguments"),
        "indent= and sort_keys=");
  }
  if (!arguments.positional.empty() && IsTrue(arguments.positional[0])) {
    return runtime.Error("tojson with ensure_ascii is not implemented", "ensure_ascii=false");
  }
  for (const auto& [name, value] : arguments.keywords) {
    if (name == "indent") {
      if (!value.is_none()) indent = LS_TRY(runtime.Integer(value, "indent"));
    } else if (name == "sort_keys") {
      sort_keys = IsTrue(value);
    } else if (name != "ensure_ascii" || IsTrue(value)) {
      return runtime.Error(StrCat("tojson with ", name, " is not implemented"),
                           "indent=, sort_keys= or ensure_ascii=false");
    }
  }
  if (indent > 64) {
    return runtime.Error(StrCat("tojson with an indent of ", indent), "at most 64");
  }
  Str out;
  if (!ToJsonText(input, static_cast<int>(indent), sort_keys, runtime.limits().max_output_bytes,
                  out)) {
    return runtime.Error(StrCat("tojson of ", TypeName(input), " or something in it"),
                         "strings, numbers, lists and mappings, which have a JSON form");
  }
  return runtime.NewString(std::move(out));
}

Result<Value> Join(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const Value* between = arguments.Find(0, "d");
  const Value* path = arguments.Find(1, "attribute");
  const Str separator = between == nullptr ? Str{} : LS_TRY(runtime.Text(*between));
  Str out;
  bool first = true;
  for (const Value& item : LS_TRY(runtime.Items(input))) {
    if (!first) out.Append(separator);
    first = false;
    const Value value = path == nullptr ? item : LS_TRY(AtPath(runtime, item, *path));
    out.Append(LS_TRY(runtime.Text(value)));
    if (out.text.size() > runtime.limits().max_output_bytes) break;
  }
  return runtime.NewString(std::move(out));
}

Result<Value> Indent(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const Value* width = arguments.Find(0, "width");
  const Value* first = arguments.Find(1, "first");
  const Value* blank = arguments.Find(2, "blank");
  Str indentation{"    ", {}};
  if (width != nullptr && width->is_string()) {
    indentation = width->str();
  } else if (width != nullptr) {
    const int64_t count = LS_TRY(runtime.Integer(*width, "width"));
    if (count > 1000) return runtime.Error(StrCat("indent by ", count), "at most 1000");
    indentation.text.assign(static_cast<size_t>(std::max<int64_t>(0, count)), ' ');
  }
  Str text = LS_TRY(runtime.Text(input));
  text.text.push_back('\n');
  const std::vector<Str> lines = SplitLines(text);
  LS_TRY(runtime.Step(lines.size()));
  LS_TRY(runtime.Charge(text.text.size() + lines.size() * (indentation.text.size() + 1)));
  Str out;
  if (first != nullptr && IsTrue(*first)) out.Append(indentation);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.Append("\n");
    const bool indent_line = !lines[i].text.empty() || (blank != nullptr && IsTrue(*blank));
    if (i > 0 && indent_line) out.Append(indentation);
    out.Append(lines[i]);
  }
  return runtime.NewString(std::move(out));
}

// select, reject, selectattr and rejectattr.
Result<Value> Select(Runtime& runtime,
                     const Value& input,
                     const Arguments& arguments,
                     bool by_attribute,
                     bool keep) {
  const size_t first = by_attribute ? 1 : 0;
  if (arguments.positional.size() < first) {
    return runtime.Error("selectattr or rejectattr without a name", "the name of an attribute");
  }
  const Value* test = arguments.positional.size() > first ? &arguments.positional[first] : nullptr;
  if (test != nullptr && !test->is_string()) {
    return runtime.Error(StrCat("select by ", TypeName(*test)), "the name of a test");
  }
  const Arguments rest = Rest(arguments, first + 1);
  List list;
  for (const Value& item : LS_TRY(runtime.Items(input))) {
    const Value value =
        by_attribute ? LS_TRY(AtPath(runtime, item, arguments.positional[0])) : item;
    std::string_view name = test == nullptr ? std::string_view() : test->str().text;
    if (name == "==") name = "eq";
    if (name == "!=") name = "ne";
    const bool passes =
        test == nullptr ? IsTrue(value) : LS_TRY(ApplyTest(runtime, name, value, rest));
    if (passes == keep) list.push_back(item);
  }
  return runtime.NewList(std::move(list));
}

Result<Value> Map(Runtime& runtime, const Value& input, const Arguments& arguments) {
  List list;
  const Value* path = arguments.Find(~size_t{0}, "attribute");
  const Value* otherwise = arguments.Find(~size_t{0}, "default");
  if (path == nullptr && (arguments.positional.empty() || !arguments.positional[0].is_string())) {
    return runtime.Error("map without a filter or attribute",
                         "the name of a filter, or attribute=");
  }
  const Arguments rest = Rest(arguments, 1);
  for (const Value& item : LS_TRY(runtime.Items(input))) {
    if (path == nullptr) {
      list.push_back(LS_TRY(ApplyFilter(runtime, arguments.positional[0].str().text, item, rest)));
      continue;
    }
    Value value = LS_TRY(AtPath(runtime, item, *path));
    list.push_back(value.is_undefined() && otherwise != nullptr ? *otherwise : value);
  }
  return runtime.NewList(std::move(list));
}

Result<Value> Ends(Runtime& runtime, const Value& input, bool first) {
  const List items = LS_TRY(runtime.Items(input));
  if (items.empty()) return Value{Undefined{first ? "first of nothing" : "last of nothing"}};
  return first ? items.front() : items.back();
}

Result<Value> DictItems(Runtime& runtime, const Value& input) {
  if (input.is_undefined()) return MakeList({});
  if (!input.is_dict()) {
    return runtime.Error(StrCat("items of ", TypeName(input)), "a mapping");
  }
  return CallMethod(runtime, input, "items", {});
}

// A key to sort by: without case for strings, as Jinja does unless told otherwise.
Result<Value> SortKey(Runtime& runtime, const Value& item, const Value* path, bool exact) {
  Value key = path == nullptr ? item : LS_TRY(AtPath(runtime, item, *path));
  if (exact || !key.is_string()) return key;
  return runtime.NewString(LS_TRY(ChangeCase(runtime, key.str(), Case::kLower)));
}

// A merge sort compares each key once on each of log2(n) levels, or a few more times.
Status PayForSorting(Runtime& runtime, const List& keys) {
  size_t bytes = 0;
  for (const Value& key : keys) {
    if (key.is_string()) bytes += key.str().text.size();
  }
  const size_t levels = std::bit_width(keys.size());
  LS_TRY(runtime.Step(keys.size() * levels / 8));
  return runtime.Work(bytes * levels);
}

// REQUIRES: Runtime::Order(a, b) is no error.
bool IsLess(const Value& a, const Value& b) {
  if (a.is_string()) return a.str().text < b.str().text;
  if (a.is_integral() && b.is_integral()) return a.integral() < b.integral();
  return a.number() < b.number();
}

Result<Value> Sort(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const Value* reverse = arguments.Find(0, "reverse");
  const Value* exact = arguments.Find(1, "case_sensitive");
  const Value* path = arguments.Find(2, "attribute");
  const List items = LS_TRY(runtime.Items(input));
  List keys;
  for (const Value& item : items) {
    keys.push_back(LS_TRY(SortKey(runtime, item, path, exact != nullptr && IsTrue(*exact))));
    // Once all neighbours can be ordered, all pairs can: the sort below does not fail.
    if (keys.size() > 1) LS_TRY(runtime.Order(keys[keys.size() - 2], keys.back()));
  }
  LS_TRY(PayForSorting(runtime, keys));
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  const bool down = reverse != nullptr && IsTrue(*reverse);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return down ? IsLess(keys[b], keys[a]) : IsLess(keys[a], keys[b]);
  });
  List list;
  for (const size_t i : order) list.push_back(items[i]);
  return runtime.NewList(std::move(list));
}

Result<Value> Unique(Runtime& runtime, const Value& input) {
  List list;
  List keys;  // of `list`
  for (const Value& item : LS_TRY(runtime.Items(input))) {
    Value key = LS_TRY(SortKey(runtime, item, nullptr, false));
    bool known = false;
    for (size_t i = 0; i < keys.size() && !known; ++i) {
      known = LS_TRY(runtime.Equal(keys[i], key));
    }
    if (known) continue;
    list.push_back(item);
    keys.push_back(std::move(key));
  }
  return runtime.NewList(std::move(list));
}

Result<Value> Reverse(Runtime& runtime, const Value& input) {
  List items = LS_TRY(runtime.Items(input));
  std::reverse(items.begin(), items.end());
  if (!input.is_string()) return runtime.NewList(std::move(items));
  Str text;
  for (const Value& item : items) text.Append(item.str());
  return runtime.NewString(std::move(text));
}

Result<Value> ToInt(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const Value* otherwise = arguments.Find(0, "default");
  const Value fallback = otherwise == nullptr ? MakeInt(0) : *otherwise;
  if (input.is_integral()) return MakeInt(input.integral());
  double number = 0;
  if (input.is_float()) {
    number = input.number();
  } else if (input.is_string()) {
    const Str text = LS_TRY(Strip(runtime, input.str(), nullptr, Side::kBoth));
    const char* begin = text.text.data() + (text.text.starts_with('+') ? 1 : 0);
    const char* end = text.text.data() + text.text.size();
    int64_t integer = 0;
    const auto read = std::from_chars(begin, end, integer);
    if (read.ec == std::errc() && read.ptr == end) return MakeInt(integer);
    const auto read_float = std::from_chars(begin, end, number);
    if (read_float.ec != std::errc() || read_float.ptr != end) return fallback;
  } else {
    return fallback;
  }
  if (!(std::fabs(number) < 9e18)) return fallback;
  return MakeInt(static_cast<int64_t>(number));
}

Result<Value> ToFloat(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const Value* otherwise = arguments.Find(0, "default");
  const Value fallback = otherwise == nullptr ? Value{0.0} : *otherwise;
  if (input.is_number()) return Value{input.number()};
  if (!input.is_string()) return fallback;
  const Str text = LS_TRY(Strip(runtime, input.str(), nullptr, Side::kBoth));
  double number = 0;
  const char* end = text.text.data() + text.text.size();
  const auto read = std::from_chars(text.text.data(), end, number);
  return read.ec == std::errc() && read.ptr == end ? Value{number} : fallback;
}

Result<Value> Round(Runtime& runtime, const Value& input, const Arguments& arguments) {
  if (!input.is_number() || !arguments.keywords.empty() || arguments.positional.size() > 1) {
    return runtime.Error(
        StrCat("round of ", TypeName(input), " with ",
               arguments.positional.size() + arguments.keywords.size(), " arguments"),
        "a number and at most the number of digits");
  }
  const Value* digits = arguments.Find(0, "precision");
  const int64_t precision = digits == nullptr ? 0 : LS_TRY(runtime.Integer(*digits, "precision"));
  if (precision < 0 || precision > 15) {
    return runtime.Error(StrCat("round to ", precision, " digits"), "0 to 15");
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  return Value{std::nearbyint(input.number() * scale) / scale};
}

Result<Value> Extreme(Runtime& runtime, const Value& input, bool largest) {
  const List items = LS_TRY(runtime.Items(input));
  if (items.empty()) return Value{Undefined{"min or max of nothing"}};
  const Value* best = &items[0];
  for (const Value& item : items) {
    const int order = LS_TRY(runtime.Order(item, *best));
    if (largest ? order > 0 : order < 0) best = &item;
  }
  return *best;
}

Result<Value> Sum(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const Value* path = arguments.Find(0, "attribute");
  double total = 0;
  int64_t integer_total = 0;
  bool all_integers = true;
  for (const Value& item : LS_TRY(runtime.Items(input))) {
    const Value value = path == nullptr ? item : LS_TRY(AtPath(runtime, item, *path));
    if (!value.is_number()) return runtime.Error(StrCat("sum of ", TypeName(value)), "numbers");
    total += value.number();
    all_integers = all_integers && value.is_integral() &&
                   !__builtin_add_overflow(integer_total, value.integral(), &integer_total);
  }
  return all_integers ? MakeInt(integer_total) : Value{total};
}

Result<Value> Escape(Runtime& runtime, const Value& input) {
  Str text = LS_TRY(runtime.Text(input));
  const std::pair<const char*, const char*> kEscapes[] = {
      {"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"'", "&#39;"}, {"\"", "&#34;"}};
  for (const auto& [from, to] : kEscapes) {
    text = LS_TRY(ReplaceText(runtime, text, Str{from, {}}, Str{to, {}}, -1));
  }
  return runtime.NewString(std::move(text));
}

Result<Value> TextFilter(Runtime& runtime,
                         std::string_view name,
                         const Value& input,
                         const Arguments& arguments) {
  Str text = LS_TRY(runtime.Text(input));
  if (name == "upper") return runtime.NewString(LS_TRY(ChangeCase(runtime, text, Case::kUpper)));
  if (name == "lower") return runtime.NewString(LS_TRY(ChangeCase(runtime, text, Case::kLower)));
  if (name == "title")
    return runtime.NewString(LS_TRY(ChangeCase(runtime, text, Case::kTitleWords)));
  if (name == "capitalize")
    return runtime.NewString(LS_TRY(ChangeCase(runtime, text, Case::kCapitalize)));
  if (name == "string" || name == "safe") return MakeString(std::move(text));
  if (name == "trim") {
    const Value* characters = arguments.Find(0, "chars");
    if (characters != nullptr && !characters->is_string() && !characters->is_none()) {
      return runtime.Error(StrCat("trim by ", TypeName(*characters)), "a string");
    }
    const bool given = characters != nullptr && characters->is_string();
    return runtime.NewString(
        LS_TRY(Strip(runtime, text, given ? &characters->str() : nullptr, Side::kBoth)));
  }
  const Value* from = arguments.Find(0, "old");
  const Value* to = arguments.Find(1, "new");
  const Value* count = arguments.Find(2, "count");
  if (from == nullptr || to == nullptr) {
    return runtime.Error(StrCat("replace with ", arguments.positional.size(), " arguments"),
                         "two texts");
  }
  const bool limited = count != nullptr && !count->is_none();
  const int64_t limit = limited ? LS_TRY(runtime.Integer(*count, "count")) : -1;
  const Str from_text = LS_TRY(runtime.Text(*from));
  const Str to_text = LS_TRY(runtime.Text(*to));
  return runtime.NewString(LS_TRY(ReplaceText(runtime, text, from_text, to_text, limit)));
}

constexpr std::string_view kTextFilters[] = {"upper", "lower",  "title", "capitalize",
                                             "trim",  "string", "safe",  "replace"};

}  // namespace

Result<Value> ApplyFilter(Runtime& runtime,
                          std::string_view name,
                          const Value& input,
                          const Arguments& arguments) {
  for (const std::string_view known : kTextFilters) {
    if (name == known) return TextFilter(runtime, name, input, arguments);
  }
  if (name == "tojson") return ToJson(runtime, input, arguments);
  if (name == "length" || name == "count") return Length(runtime, input);
  if (name == "join") return Join(runtime, input, arguments);
  if (name == "indent") return Indent(runtime, input, arguments);
  if (name == "default" || name == "d") {
    const Value* otherwise = arguments.Find(0, "default_value");
    const Value* boolean = arguments.Find(1, "boolean");
    const bool use =
        input.is_undefined() || (boolean != nullptr && IsTrue(*boolean) && !IsTrue(input));
    if (!use) return input;
    return otherwise == nullptr ? MakePlain("") : *otherwise;
  }
  if (name == "first" || name == "last") return Ends(runtime, input, name == "first");
  if (name == "list") return runtime.NewList(LS_TRY(runtime.Items(input)));
  if (name == "map") return Map(runtime, input, arguments);
  if (name == "select") return Select(runtime, input, arguments, false, true);
  if (name == "reject") return Select(runtime, input, arguments, false, false);
  if (name == "selectattr") return Select(runtime, input, arguments, true, true);
  if (name == "rejectattr") return Select(runtime, input, arguments, true, false);
  if (name == "items") return DictItems(runtime, input);
  if (name == "dictsort" && arguments.positional.empty() && arguments.keywords.empty()) {
    const Value items = LS_TRY(DictItems(runtime, input));
    Arguments by_key;
    by_key.keywords.emplace_back("attribute", MakeInt(0));
    return Sort(runtime, items, by_key);
  }
  if (name == "sort") return Sort(runtime, input, arguments);
  if (name == "unique" && arguments.positional.empty()) return Unique(runtime, input);
  if (name == "reverse") return Reverse(runtime, input);
  if (name == "int") return ToInt(runtime, input, arguments);
  if (name == "float") return ToFloat(runtime, input, arguments);
  if (name == "abs" && input.is_float()) return Value{std::fabs(input.number())};
  if (name == "abs" && input.is_integral() && input.integral() != INT64_MIN) {
    return MakeInt(std::abs(input.integral()));
  }
  if (name == "round") return Round(runtime, input, arguments);
  if (name == "min" || name == "max") return Extreme(runtime, input, name == "max");
  if (name == "sum") return Sum(runtime, input, arguments);
  if (name == "escape" || name == "e") return Escape(runtime, input);
  return runtime.Error(StrCat("filter '", Shown(name), "' with ",
                              arguments.positional.size() + arguments.keywords.size(),
                              " arguments is not implemented for ", TypeName(input)),
                       "a filter of Jinja2 that this engine knows",
                       "write the template without it");
}

}  // namespace lserve::jinja
