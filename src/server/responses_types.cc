#include "server/responses_types.h"

#include <string>
#include <utility>

#include "base/strings.h"
#include "server/body_fields.h"
#include "server/shared_fields.h"
#include "server/tool_fields.h"

namespace lserve {
namespace {

constexpr std::pair<const char*, const char*> kUnsupported[] = {
    {"previous_response_id", "nothing is stored here; send the whole conversation as input"},
    {"conversation", "nothing is stored here; send the whole conversation as input"},
    {"background", "nothing is stored here; stream the answer"},
    {"store", "nothing is stored here; set it to false or leave it out"},
    {"prompt", "there are no stored prompts; send the text as input"},
    {"max_tool_calls", "it belongs to tools that the server runs itself"},
    {"top_logprobs", "use /v1/chat/completions"},
};

std::string StringOf(const Json& object, std::string_view name) {
  const Json* value = object.Find(name);
  return value != nullptr && value->is_string() ? value->as_string() : "";
}

Json Message(std::string role, std::string content) {
  return Json(Json::Object{{"role", Json(std::move(role))}, {"content", Json(std::move(content))}});
}

bool ReadCall(const Json& item, Json::Array* out, std::string* why) {
  const std::string name = StringOf(item, "name");
  if (!IsToolName(name)) {
    *why = "it has no name of a function, expected one";
    return false;
  }
  const std::string text = StringOf(item, "arguments");
  // A model may have written what is no JSON: then the template gets the text.
  Result<Json> arguments = ParseJson(text.empty() ? "{}" : text);
  Json call(Json::Object{
      {"id", Json(StringOf(item, "call_id"))},
      {"type", Json("function")},
      {"function", Json(Json::Object{{"name", Json(name)},
                                     {"arguments", arguments.ok() ? std::move(arguments).value()
                                                                  : Json(text)}})}});
  // Calls in a row are of one message.
  const Json* calls = out->empty() ? nullptr : out->back().Find("tool_calls");
  if (calls == nullptr && (out->empty() || StringOf(out->back(), "role") != "assistant"))
    out->push_back(Message("assistant", ""));
  Json::Object& message = out->back().mutable_object();
  if (calls == nullptr) message.emplace_back("tool_calls", Json(Json::Array{}));
  message.back().second.mutable_array().push_back(std::move(call));
  return true;
}

bool ReadItem(const Json& item, Json::Array* out, std::string* why) {
  const std::string type = item.Find("type") == nullptr ? "message" : StringOf(item, "type");
  if (type == "function_call") return ReadCall(item, out, why);
  if (type == "reasoning") return true;  // no part of the conversation
  const bool is_result = type == "function_call_output";
  if (!is_result && type != "message") {
    *why = StrCat("its type is ", ShownValue(Json(type)),
                  ", expected message, function_call, function_call_output or reasoning");
    return false;
  }
  std::string role = is_result ? "tool" : StringOf(item, "role");
  if (role == "developer") role = "system";
  if (!is_result && role != "user" && role != "assistant" && role != "system") {
    *why = StrCat("its role is ", ShownValue(Json(role)),
                  ", expected user, assistant, system or developer");
    return false;
  }
  std::optional<std::string> text = ContentText(item.Find(is_result ? "output" : "content"), why);
  if (!text) return false;
  Json message = Message(role, *std::move(text));
  if (is_result)
    message.mutable_object().emplace_back("tool_call_id", Json(StringOf(item, "call_id")));
  out->push_back(std::move(message));
  return true;
}

void ReadInput(BodyFields& fields, ChatBody* out) {
  Json::Array messages;
  const std::string instructions = fields.String("instructions").value_or("");
  if (!instructions.empty()) messages.push_back(Message("system", instructions));
  const Json* input = fields.Find("input");
  if (input != nullptr && input->is_string()) {
    messages.push_back(Message("user", input->as_string()));
  } else if (input == nullptr || !input->is_array() || input->as_array().empty() ||
             input->as_array().size() > kMaxMessages) {
    return fields.Fail("input",
                       StrCat("input is ", input == nullptr ? "missing" : ShownValue(*input),
                              ", expected a string or a list of 1 to ", kMaxMessages, " items"));
  } else {
    for (size_t i = 0; i < input->as_array().size(); ++i) {
      std::string why;
      if (!ReadItem(input->as_array()[i], &messages, &why))
        return fields.Fail(StrCat("input[", i, "]"), StrCat("input[", i, "]: ", why));
    }
  }
  if (messages.empty()) return fields.Fail("input", "input holds no message, expected one");
  out->messages = Json(std::move(messages));
}

void ReadTools(BodyFields& fields, ToolOptions* out) {
  out->parallel = fields.Bool("parallel_tool_calls").value_or(true);
  const Json* tools = fields.Find("tools");
  if (tools != nullptr && !tools->is_array()) return fields.Wrong("tools", *tools, "a list");
  for (size_t i = 0; tools != nullptr && i < tools->as_array().size() && fields.ok(); ++i) {
    const Json& tool = tools->as_array()[i];
    const std::string where = StrCat("tools[", i, "].");
    BodyFields inner(tool, where);
    const std::string type = inner.String("type").value_or("");
    if (inner.ok() && type != "function") {
      inner.Fail("type", StrCat(where, "type is ", ShownValue(Json(type)),
                                ", expected function; this server runs no tools of its own"));
    }
    const std::string name = inner.String("name").value_or("");
    const std::string description = inner.String("description").value_or("");
    if (inner.error()) return fields.Fail(*inner.error());
    AddTool(fields, {name, description, tool.Find("parameters"), where, "parameters"}, out);
  }
  const Json* choice = fields.Find("tool_choice");
  if (choice == nullptr || *choice == Json("auto")) return;
  const bool is_named = choice->is_object() && StringOf(*choice, "type") == "function";
  if (*choice == Json("none")) {
    out->choice = ToolOptions::Choice::kNone;
    return;
  }
  if (*choice != Json("required") && !is_named) {
    return fields.Wrong("tool_choice", *choice,
                        "\"none\", \"auto\", \"required\" or {\"type\":\"function\",\"name\":...}");
  }
  out->choice = ToolOptions::Choice::kRequired;
  if (is_named) out->only = StringOf(*choice, "name");
  CheckToolChoice(fields, *out);
}

void ReadFormat(BodyFields& fields, OutputFormat* out) {
  const Json* text = fields.Find("text");
  const Json* format = text == nullptr ? nullptr : text->Find("format");
  if (format == nullptr || format->is_null()) return;
  const std::string type = StringOf(*format, "type");
  if (type == "json_object") {
    out->kind = OutputFormat::Kind::kJsonObject;
  } else if (type == "json_schema" && format->Find("schema") != nullptr) {
    *out = {.kind = OutputFormat::Kind::kJsonSchema,
            .schema = *format->Find("schema"),
            .where = "text.format.schema"};
  } else if (type != "text") {
    fields.Fail("text.format",
                StrCat("text.format is of type ", ShownValue(Json(type)),
                       ", expected text, json_object, or json_schema with a schema"));
  }
}

}  // namespace

std::optional<ApiError> ParseResponsesBody(const Json& json, ChatBody* out) {
  BodyFields fields(json);
  GenerationParams& params = out->params;
  params.model = fields.String("model").value_or("");
  ReadInput(fields, out);
  params.max_tokens = fields.Int("max_output_tokens", 1, INT32_MAX);
  params.stream = fields.Bool("stream").value_or(false);
  ReadSampling(fields, &params);
  ReadSparse(fields, &params);
  ReadServing(fields, &params);
  ReadTools(fields, &out->tools);
  ReadFormat(fields, &params.format);
  RefuseOtherInputs(fields);
  for (const auto& [name, instead] : kUnsupported) {
    const Json* value = fields.Find(name);
    if (value != nullptr && !AsksForNothing(*value)) fields.Fail(NotImplemented(name, instead));
  }
  const Json* truncation = fields.Find("truncation");
  if (truncation != nullptr && *truncation != Json("disabled"))
    fields.Fail(NotImplemented("truncation", "only \"disabled\"; shorten the input"));
  return fields.error();
}

}  // namespace lserve
