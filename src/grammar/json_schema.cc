#include "grammar/json_schema.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <utility>

#include "base/strings.h"
#include "grammar/pattern.h"

namespace lserve {
namespace {

// Restrict nothing.
constexpr std::string_view kAnnotations[] = {
    "title",     "description", "default", "examples", "deprecated", "readOnly",
    "writeOnly", "$comment",    "$schema", "$id",      "$defs",      "definitions"};
constexpr std::string_view kKeywords[] = {"type",
                                          "properties",
                                          "required",
                                          "additionalProperties",
                                          "items",
                                          "minItems",
                                          "maxItems",
                                          "minLength",
                                          "maxLength",
                                          "pattern",
                                          "format",
                                          "minimum",
                                          "maximum",
                                          "exclusiveMinimum",
                                          "exclusiveMaximum",
                                          "enum",
                                          "const",
                                          "anyOf",
                                          "oneOf",
                                          "allOf",
                                          "$ref"};
constexpr std::string_view kTypes[] = {"object",  "array",   "string", "number",
                                       "integer", "boolean", "null"};

template <size_t N>
bool Contains(const std::string_view (&list)[N], std::string_view name) {
  return std::find(std::begin(list), std::end(list), name) != std::end(list);
}

// A foreign name for a message: one line of ASCII, cut.
std::string Quoted(std::string_view text) {
  constexpr size_t kMost = 60;
  const bool cut = text.size() > kMost;
  return WriteJson(Json(std::string(text.substr(0, cut ? kMost : text.size()))),
                   {.ascii_only = true}) +
         (cut ? "..." : "");
}

bool HasType(const Json& value, std::string_view type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_bool();
  if (type == "null") return value.is_null();
  if (type == "number") return value.is_number();
  return value.is_int() ||
         (value.is_number() && value.as_double() == std::floor(value.as_double()));
}

// A path for a message. Its names come from the schema: they may not break a line of a log.
std::string Place(std::string_view path) {
  std::string shown;
  for (const char c : path) {
    const unsigned char byte = static_cast<unsigned char>(c);
    shown += byte >= 0x20 && byte < 0x7f ? c : '?';
  }
  return shown;
}

std::string Step(const std::string& path, std::string_view name) {
  return StrCat(path, ".",
                name.size() > 40 ? StrCat(name.substr(0, 40), "...") : std::string(name));
}

}  // namespace

SchemaCompiler::SchemaCompiler(const Json& root,
                               std::string where,
                               GrammarBuilder* builder,
                               JsonRules* rules,
                               const SchemaLimits& limits)
    : root_(root), where_(std::move(where)), builder_(*builder), rules_(*rules), limits_(limits) {}

Status SchemaCompiler::Wrong(const std::string& path,
                             std::string_view what,
                             std::string_view expected) const {
  return Status(Code::kInvalidArgument, StrCat(Place(path), " ", what, ", expected ", expected));
}

Result<Grammar::RuleId> SchemaCompiler::Compile() {
  const RuleId root = RuleFor(root_, where_);
  while (!open_.empty() && !builder_.full()) {
    const Task task = std::move(open_.front());
    open_.pop_front();
    LS_TRY(Add(task));
  }
  return root;
}

// Schemas wait in a list instead of being read at once: references may form long chains.
Grammar::RuleId SchemaCompiler::RuleFor(const Json& schema, const std::string& path) {
  const auto known = known_.find(&schema);
  if (known != known_.end()) return known->second;
  const RuleId rule = builder_.NewRule();
  known_.emplace(&schema, rule);
  open_.push_back({&schema, path, builder_.start(rule), builder_.end(rule)});
  return rule;
}

Status SchemaCompiler::CheckKeywords(const Task& task) const {
  for (const auto& [name, value] : task.schema->as_object()) {
    if (Contains(kAnnotations, name) || Contains(kKeywords, name)) continue;
    // Says nothing, for names are strings; zod writes it.
    if (name == "propertyNames" && value == Json(Json::Object{{"type", Json("string")}})) continue;
    std::string known;
    for (const std::string_view keyword : kKeywords)
      known += StrCat(known.empty() ? "" : ", ", keyword);
    return Status(Code::kUnsupported, StrCat(Place(task.path), " has the keyword ", Quoted(name),
                                             ", which is not supported, expected one of ", known));
  }
  return Status();
}

Status SchemaCompiler::CheckAlone(const Task& task,
                                  std::string_view keyword,
                                  std::string_view also) const {
  for (const auto& [name, value] : task.schema->as_object()) {
    if (name == keyword || name == also || Contains(kAnnotations, name)) continue;
    return Wrong(task.path, StrCat("has ", name, " beside ", keyword),
                 "it alone; put the rest into its alternatives");
  }
  return Status();
}

Result<std::vector<std::string>> SchemaCompiler::Types(const Task& task) const {
  const Json& schema = *task.schema;
  std::vector<std::string> types;
  if (const Json* type = schema.Find("type")) {
    const Json::Array one = {*type};
    const Json::Array& list = type->is_array() ? type->as_array() : one;
    for (const Json& name : list) {
      if (!name.is_string() || !Contains(kTypes, name.as_string())) {
        return Wrong(Step(task.path, "type"),
                     StrCat("is ", name.is_string() ? Quoted(name.as_string()) : name.TypeName()),
                     "object, array, string, number, integer, boolean or null");
      }
      types.push_back(name.as_string());
    }
    if (types.empty()) return Wrong(Step(task.path, "type"), "is empty", "at least one type");
    return types;
  }
  // Without a type, the keywords say which values the author had in mind; the others would satisfy
  // the schema as well, but nobody asks for them.
  const auto has = [&](std::initializer_list<const char*> names) {
    return std::any_of(names.begin(), names.end(),
                       [&](const char* name) { return schema.Find(name) != nullptr; });
  };
  if (has({"properties", "required", "additionalProperties"})) types.emplace_back("object");
  if (has({"items", "minItems", "maxItems"})) types.emplace_back("array");
  if (has({"minLength", "maxLength", "pattern", "format"})) types.emplace_back("string");
  if (has({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}))
    types.emplace_back("number");
  return types;
}

Status SchemaCompiler::Add(const Task& task) {
  if (++num_nodes_ > limits_.max_nodes) {
    return Wrong(where_, StrCat("has more than ", limits_.max_nodes, " schemas in it"), "fewer");
  }
  const Json& schema = *task.schema;
  if (schema.is_bool()) {
    if (schema.as_bool()) builder_.AddCall(task.from, rules_.Value(), task.to);
    return Status();  // false: nothing satisfies it
  }
  if (!schema.is_object())
    return Wrong(task.path, StrCat("is ", schema.TypeName()), "a schema: an object, true or false");
  LS_TRY(CheckKeywords(task));
  if (const Json* reference = schema.Find("$ref")) return AddReference(task, *reference);
  if (const Json* value = schema.Find("const")) {
    LS_TRY(CheckAlone(task, "const", "type"));
    return AddConstants(task, {*value});
  }
  if (const Json* values = schema.Find("enum")) {
    LS_TRY(CheckAlone(task, "enum", "type"));
    if (!values->is_array() || values->as_array().empty())
      return Wrong(Step(task.path, "enum"),
                   StrCat("is ", values->is_array() ? "empty" : values->TypeName()),
                   "a list of values");
    return AddConstants(task, values->as_array());
  }
  for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
    if (schema.Find(keyword) != nullptr) return AddAlternatives(task, keyword);
  }
  const std::vector<std::string> types = LS_TRY(Types(task));
  if (types.empty()) builder_.AddCall(task.from, rules_.Value(), task.to);
  for (const std::string& type : types) {
    // A whole number is a number already.
    if (type == "integer" && std::find(types.begin(), types.end(), "number") != types.end())
      continue;
    LS_TRY(AddType(task, type));
  }
  return Status();
}

Status SchemaCompiler::AddType(const Task& task, const std::string& type) {
  if (type == "object") return AddObject(task);
  if (type == "array") return AddArray(task);
  if (type == "string") return AddString(task);
  if (type == "number" || type == "integer") return AddNumber(task, type == "integer");
  if (type == "boolean") {
    rules_.AddBool(task.from, task.to);
  } else {
    rules_.AddNull(task.from, task.to);
  }
  return Status();
}

Status SchemaCompiler::AddReference(const Task& task, const Json& reference) {
  LS_TRY(CheckAlone(task, "$ref"));
  const std::string path = Step(task.path, "$ref");
  if (!reference.is_string() || !reference.as_string().starts_with("#")) {
    return Wrong(
        path,
        StrCat("is ", reference.is_string() ? Quoted(reference.as_string()) : reference.TypeName()),
        "\"#\" or a place in this schema as \"#/$defs/name\"");
  }
  const std::string& text = reference.as_string();
  const Json* target = &root_;
  for (size_t at = 1; at < text.size() && target != nullptr;) {
    const size_t end = std::min(text.find('/', at + 1), text.size());
    std::string name;
    for (size_t i = at + 1; i < end; ++i) {
      const bool escaped =
          text[i] == '~' && i + 1 < end && (text[i + 1] == '0' || text[i + 1] == '1');
      name += escaped ? (text[++i] == '0' ? '~' : '/') : text[i];
    }
    if (target->is_array()) {
      const bool is_index =
          !name.empty() && name.size() < 6 &&
          std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
      const size_t index = is_index ? static_cast<size_t>(std::stoul(name)) : SIZE_MAX;
      target = index < target->as_array().size() ? &target->as_array()[index] : nullptr;
    } else {
      target = text[at] == '/' ? target->Find(name) : nullptr;
    }
    at = end;
  }
  if (target == nullptr)
    return Wrong(path, StrCat("is ", Quoted(text), ", which is not there"),
                 "a place in this schema");
  builder_.AddCall(task.from, RuleFor(*target, StrCat(where_, text.substr(1, 100))), task.to);
  return Status();
}

Status SchemaCompiler::AddConstants(const Task& task, const Json::Array& values) {
  const std::vector<std::string> types = LS_TRY(Types(task));
  bool any = false;
  for (const Json& value : values) {
    const bool fits =
        types.empty() || std::any_of(types.begin(), types.end(),
                                     [&](const auto& type) { return HasType(value, type); });
    if (!fits) continue;
    any = true;
    builder_.AddLiteral(task.from, WriteJson(value), task.to);
  }
  return any ? Status() : Wrong(task.path, "lists no value of its own type", "at least one");
}

// The branches of oneOf, of which one alone may fit: they must differ in type, or be objects that
// demand different constants of one member. Anything else would need a search for overlaps.
Status SchemaCompiler::CheckExclusive(const Task& task, const Json::Array& branches) const {
  const auto resolve = [&](const Json* schema) {
    for (int hops = 0; hops < 16; ++hops) {
      const Json* reference = schema->Find("$ref");
      if (reference == nullptr || !reference->is_string()) break;
      const std::string& text = reference->as_string();
      const size_t slash = text.rfind('/');
      const Json* defs =
          root_.Find("$defs") != nullptr ? root_.Find("$defs") : root_.Find("definitions");
      const Json* found = defs == nullptr || slash == std::string::npos
                              ? nullptr
                              : defs->Find(text.substr(slash + 1));
      if (found == nullptr) break;
      schema = found;
    }
    return schema;
  };
  const auto constants = [](const Json& schema, std::string_view name) {
    Json::Array values;
    const Json* properties = schema.Find("properties");
    const Json* member = properties == nullptr ? nullptr : properties->Find(name);
    if (member == nullptr) return values;
    if (const Json* one = member->Find("const")) values.push_back(*one);
    if (const Json* list = member->Find("enum"); list != nullptr && list->is_array())
      values = list->as_array();
    return values;
  };
  const auto is_required = [](const Json& schema, const Json& name) {
    const Json* list = schema.Find("required");
    return list != nullptr && list->is_array() &&
           std::find(list->as_array().begin(), list->as_array().end(), name) !=
               list->as_array().end();
  };
  const auto types = [&](const Json& schema) {
    std::set<std::string> names;
    if (!schema.is_object()) return names;
    if (const Json* value = schema.Find("const")) {
      for (const std::string_view type : kTypes)
        if (HasType(*value, type)) names.emplace(type);
      return names;
    }
    const Json* type = schema.Find("type");
    if (type != nullptr && type->is_string()) names.insert(type->as_string());
    if (names.contains("integer") || names.contains("number")) names = {"integer", "number"};
    return names;
  };
  const auto differ = [&](const Json& a, const Json& b) {
    const std::set<std::string> x = types(a), y = types(b);
    const bool share =
        std::any_of(x.begin(), x.end(), [&](const auto& t) { return y.contains(t); });
    if (!x.empty() && !y.empty() && !share) return true;
    const Json *u = a.Find("const"), *v = b.Find("const");
    if (u != nullptr && v != nullptr) return *u != *v;
    const Json* required = a.Find("required");
    if (required == nullptr || !required->is_array()) return false;
    for (const Json& name : required->as_array()) {
      if (!name.is_string() || !is_required(b, name)) continue;
      const Json::Array p = constants(a, name.as_string()), q = constants(b, name.as_string());
      const bool overlap = std::any_of(p.begin(), p.end(), [&](const Json& value) {
        return std::find(q.begin(), q.end(), value) != q.end();
      });
      if (!p.empty() && !q.empty() && !overlap) return true;
    }
    return false;
  };
  for (size_t i = 0; i < branches.size(); ++i) {
    for (size_t k = i + 1; k < branches.size(); ++k) {
      if (differ(*resolve(&branches[i]), *resolve(&branches[k]))) continue;
      return Wrong(Step(task.path, "oneOf"),
                   StrCat("has branches ", i, " and ", k, " that may both fit"),
                   "different types, or a required member with different constants; anyOf asks for "
                   "less");
    }
  }
  return Status();
}

Status SchemaCompiler::AddAlternatives(const Task& task, const std::string& keyword) {
  constexpr size_t kMostExclusive = 64;  // they are compared pair by pair
  LS_TRY(CheckAlone(task, keyword));
  const Json& branches = *task.schema->Find(keyword);
  const std::string path = Step(task.path, keyword);
  if (!branches.is_array() || branches.as_array().empty())
    return Wrong(path, StrCat("is ", branches.is_array() ? "empty" : branches.TypeName()),
                 "a list of schemas");
  const Json::Array& list = branches.as_array();
  if (keyword == "allOf" && list.size() > 1) {
    return Wrong(path, StrCat("has ", list.size(), " schemas"),
                 "one; merge them into one schema, several are not supported");
  }
  if (keyword == "oneOf") {
    if (list.size() > kMostExclusive)
      return Wrong(path, StrCat("has ", list.size(), " schemas"),
                   StrCat("at most ", kMostExclusive));
    LS_TRY(CheckExclusive(task, list));
  }
  // Read in place: JSON's own limit of depth bounds the recursion.
  for (size_t i = 0; i < list.size() && !builder_.full(); ++i)
    LS_TRY(Add({&list[i], StrCat(path, "[", i, "]"), task.from, task.to}));
  return Status();
}

Result<SchemaCompiler::Bounds> SchemaCompiler::ReadBounds(const Task& task,
                                                          const char* least,
                                                          const char* most) const {
  Bounds bounds;
  for (const auto& [name, out] : {std::pair{least, &bounds.least}, {most, &bounds.most}}) {
    const Json* value = task.schema->Find(name);
    if (value == nullptr) continue;
    if (!value->is_int() || value->as_int() < 0 || value->as_int() > limits_.max_length) {
      return Wrong(Step(task.path, name),
                   StrCat("is ", value->is_number() ? WriteJson(*value) : value->TypeName()),
                   StrCat("a whole number from 0 to ", limits_.max_length));
    }
    *out = value->as_int();
  }
  if (bounds.most >= 0 && bounds.most < bounds.least)
    return Wrong(Step(task.path, most), StrCat("is ", bounds.most),
                 StrCat("at least ", least, " (", bounds.least, ")"));
  return bounds;
}

Status SchemaCompiler::AddString(const Task& task) {
  const Json* pattern = task.schema->Find("pattern");
  const Json* format = task.schema->Find("format");
  const Bounds length = LS_TRY(ReadBounds(task, "minLength", "maxLength"));
  const bool has_length = length.least > 0 || length.most >= 0;
  if ((pattern != nullptr) + (format != nullptr) + has_length > 1) {
    return Wrong(task.path, "has more than one of pattern, format and a length",
                 "one of them; write the length into the pattern");
  }
  if (pattern == nullptr && format == nullptr && !has_length) {
    builder_.AddCall(task.from, rules_.String(), task.to);
    return Status();
  }
  StateId at = builder_.NewState();
  const StateId last = builder_.NewState();
  builder_.AddLiteral(task.from, "\"", at);
  builder_.AddLiteral(last, "\"", task.to);
  if (pattern != nullptr || format != nullptr) {
    const Json& given = pattern != nullptr ? *pattern : *format;
    const std::string path = Step(task.path, pattern != nullptr ? "pattern" : "format");
    if (!given.is_string()) return Wrong(path, StrCat("is ", given.TypeName()), "a string");
    std::string_view text = given.as_string();
    if (format != nullptr) text = PatternOfFormat(text);
    if (format != nullptr && text.empty())
      return Wrong(path, StrCat("is ", Quoted(given.as_string()), ", which is not supported"),
                   KnownFormats());
    const Status status = AddPattern(text, &builder_, &rules_, at, last);
    return status.ok() ? status : Status(status.code(), StrCat(Place(path), " ", status.message()));
  }
  const int64_t copies = std::max(length.least, length.most);
  for (int64_t i = 0; i < copies && !builder_.full(); ++i) {
    if (i >= length.least) builder_.AddSilent(at, last);
    const StateId next = builder_.NewState();
    builder_.AddCall(at, rules_.Character(), next);
    at = next;
  }
  builder_.AddSilent(at, last);
  if (length.most < 0) rules_.AddCharacter(at, at);
  return Status();
}

Status SchemaCompiler::AddNumber(const Task& task, bool whole) {
  // Whole bounds only: the digits of others would need a search of their own.
  constexpr double kLargest = 9.2e18;
  std::optional<int64_t> low, high;
  for (const char* name : {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}) {
    const Json* value = task.schema->Find(name);
    if (value == nullptr) continue;
    const std::string path = Step(task.path, name);
    const bool exclusive = name[0] == 'e';
    const bool is_low = std::string_view(name).ends_with("inimum");
    if (!value->is_number()) return Wrong(path, StrCat("is ", value->TypeName()), "a number");
    double bound = value->as_double();
    if (whole) {
      // The next whole number inside.
      if (is_low) {
        bound = exclusive ? std::floor(bound) + 1 : std::ceil(bound);
      } else {
        bound = exclusive ? std::ceil(bound) - 1 : std::floor(bound);
      }
    }
    const bool fits =
        std::abs(bound) < kLargest && bound == std::floor(bound) && (whole || !exclusive);
    if (!fits) {
      return Wrong(path, StrCat("is ", WriteJson(*value)),
                   whole ? "a number within 64 bits"
                         : "a whole number, and minimum or maximum, for a type other than integer");
    }
    // Beyond 2^53 a double would move it.
    int64_t exact = static_cast<int64_t>(bound);
    if (value->is_int() && !exclusive) exact = value->as_int();
    std::optional<int64_t>& kept = is_low ? low : high;
    kept = !kept ? exact : is_low ? std::max(*kept, exact) : std::min(*kept, exact);
  }
  if (!low && !high) {
    whole ? rules_.AddInteger(task.from, task.to) : rules_.AddNumber(task.from, task.to);
    return Status();
  }
  const int64_t free = JsonRules::kLargestInteger;
  const int64_t first = low ? *low : std::min(-free, *high);
  const int64_t last = high ? *high : std::max(free, *low);
  if (first > last)
    return Wrong(task.path, StrCat("has no number from ", first, " to ", last), "at least one");
  whole ? rules_.AddIntegers(task.from, first, last, task.to)
        : rules_.AddNumbers(task.from, first, last, task.to);
  return Status();
}

Status SchemaCompiler::AddArray(const Task& task) {
  const Bounds count = LS_TRY(ReadBounds(task, "minItems", "maxItems"));
  const Json* items = task.schema->Find("items");
  if (items == nullptr && count.least == 0 && count.most < 0) {
    builder_.AddCall(task.from, rules_.Array(), task.to);
    return Status();
  }
  const RuleId item = items == nullptr ? rules_.Value() : RuleFor(*items, Step(task.path, "items"));
  StateId next = builder_.NewState();
  const StateId first = builder_.NewState();
  builder_.AddLiteral(task.from, "[", first);
  if (count.least == 0) builder_.AddLiteral(first, "]", task.to);
  builder_.AddSilent(first, next);
  const int64_t copies = count.most >= 0 ? count.most : std::max<int64_t>(count.least, 1);
  for (int64_t i = 1; i <= copies && !builder_.full(); ++i) {
    const StateId after = builder_.NewState();
    builder_.AddCall(next, item, after);
    if (i >= count.least) builder_.AddLiteral(after, "]", task.to);
    const bool is_last = i == copies;
    if (is_last && count.most >= 0) break;
    // Without an upper bound the last copy repeats.
    const StateId again = is_last ? next : builder_.NewState();
    rules_.AddSeparator(after, ',', again);
    next = again;
  }
  return Status();
}

Status SchemaCompiler::AddObject(const Task& task) {
  const Json* properties = task.schema->Find("properties");
  const Json* required = task.schema->Find("required");
  const Json* others = task.schema->Find("additionalProperties");
  if (properties != nullptr && !properties->is_object())
    return Wrong(Step(task.path, "properties"), StrCat("is ", properties->TypeName()),
                 "an object of schemas");
  if (required != nullptr && !required->is_array())
    return Wrong(Step(task.path, "required"), StrCat("is ", required->TypeName()),
                 "a list of names");
  static const Json kAny(true);
  // Members that are named nowhere: any if "additionalProperties" says so, or if there are no
  // "properties" at all. Leaving them out satisfies the schema in every case.
  const bool are_named = properties != nullptr;
  const bool forbidden = others != nullptr && *others == Json(false);
  const Json* other = forbidden           ? nullptr
                      : others != nullptr ? others
                      : are_named         ? nullptr
                                          : &kAny;

  struct Member {
    std::string name;
    const Json* schema;
    std::string path;
    bool required;
  };
  std::vector<Member> members;
  std::set<std::string, std::less<>> demanded;
  if (required != nullptr) {
    for (const Json& name : required->as_array()) {
      if (!name.is_string())
        return Wrong(Step(task.path, "required"), StrCat("holds ", name.TypeName()), "names");
      demanded.insert(name.as_string());
    }
  }
  if (properties != nullptr) {
    for (const auto& [name, schema] : properties->as_object()) {
      members.push_back(
          {name, &schema, Step(Step(task.path, "properties"), name), demanded.erase(name) > 0});
    }
  }
  for (const std::string& name : demanded) {
    if (forbidden) {
      return Wrong(Step(task.path, "required"),
                   StrCat("demands ", Quoted(name), ", which is forbidden"),
                   "names of its properties");
    }
    members.push_back(
        {name, others != nullptr ? others : &kAny, Step(task.path, "additionalProperties"), true});
  }

  const StateId close = builder_.NewState();
  builder_.AddLiteral(close, "}", task.to);
  // Before member i, with nothing written so far and with something.
  StateId empty = builder_.NewState(), filled = builder_.NewState();
  builder_.AddLiteral(task.from, "{", empty);
  // From either of the two states to where a name may start.
  const auto open_member = [&](StateId without, StateId with) {
    const StateId name = builder_.NewState();
    builder_.AddSilent(without, name);
    rules_.AddSeparator(with, ',', name);
    return name;
  };
  std::vector<std::string> names;
  for (const Member& member : members) {
    if (builder_.full()) break;
    names.push_back(member.name);
    const StateId next_empty = builder_.NewState(), next_filled = builder_.NewState();
    const StateId name = open_member(empty, filled);
    const StateId colon = builder_.NewState(), value = builder_.NewState();
    builder_.AddLiteral(name, WriteJson(Json(member.name)), colon);
    rules_.AddSeparator(colon, ':', value);
    builder_.AddCall(value, RuleFor(*member.schema, member.path), next_filled);
    if (!member.required) {
      builder_.AddSilent(empty, next_empty);
      builder_.AddSilent(filled, next_filled);
    }
    empty = next_empty;
    filled = next_filled;
  }
  builder_.AddSilent(empty, close);
  builder_.AddSilent(filled, close);
  if (other == nullptr || builder_.full()) return Status();
  const StateId name = open_member(empty, filled);
  const StateId colon = builder_.NewState(), value = builder_.NewState();
  if (names.empty()) {
    builder_.AddCall(name, rules_.String(), colon);
  } else {
    rules_.AddOtherName(name, names, colon);
  }
  rules_.AddSeparator(colon, ':', value);
  builder_.AddCall(value, RuleFor(*other, Step(task.path, "additionalProperties")), filled);
  return Status();
}

}  // namespace lserve
