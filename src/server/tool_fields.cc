#include "server/tool_fields.h"

#include <algorithm>

#include "base/strings.h"

namespace lserve {

void AddTool(BodyFields& fields, const GivenTool& given, ToolOptions* out) {
  const std::string name_field = given.where + "name";
  if (out->tools.size() >= kMaxTools) {
    return fields.Fail("tools",
                       StrCat("tools has more than ", kMaxTools, " tools, expected fewer"));
  }
  if (!IsToolName(given.name)) {
    return fields.Fail(name_field,
                       StrCat(name_field, " is ", ShownValue(Json(given.name)), ", expected 1 to ",
                              kMaxToolNameBytes, " letters, digits, _, - or ."));
  }
  const bool is_known = std::any_of(out->tools.begin(), out->tools.end(),
                                    [&](const Tool& tool) { return tool.name == given.name; });
  if (is_known) {
    return fields.Fail(name_field, StrCat(name_field, " is ", ShownValue(Json(given.name)),
                                          " as that of a tool before it, expected another"));
  }
  const std::string where = given.where + given.schema_field;
  const bool has_schema = given.parameters != nullptr && !given.parameters->is_null();
  // As OpenAI: no schema, no arguments.
  Json schema = has_schema ? *given.parameters
                           : Json(Json::Object{{"type", Json("object")},
                                               {"properties", Json(Json::Object{})},
                                               {"additionalProperties", Json(false)}});
  if (!schema.is_object()) {
    return fields.Fail(where, StrCat(where, " is ", schema.TypeName(), ", expected a JSON Schema"));
  }
  // {} as well: arguments are members.
  if (schema.Find("type") == nullptr && schema.Find("$ref") == nullptr &&
      schema.Find("anyOf") == nullptr && schema.Find("oneOf") == nullptr &&
      schema.Find("allOf") == nullptr) {
    schema.mutable_object().insert(schema.mutable_object().begin(), {"type", Json("object")});
  }
  out->tools.push_back({given.name, given.description, std::move(schema), where});
}

void CheckToolChoice(BodyFields& fields, const ToolOptions& options) {
  if (options.choice != ToolOptions::Choice::kRequired) return;
  if (options.tools.empty()) {
    return fields.Fail("tool_choice", "tool_choice demands a call, expected tools beside it");
  }
  const bool is_there = std::any_of(options.tools.begin(), options.tools.end(),
                                    [&](const Tool& tool) { return tool.name == options.only; });
  if (options.only.empty() || is_there) return;
  fields.Fail("tool_choice", StrCat("tool_choice names ", ShownValue(Json(options.only)),
                                    ", expected the name of one of the tools"));
}

}  // namespace lserve
