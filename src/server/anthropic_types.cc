#include "server/anthropic_types.h"

#include <string>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "server/body_fields.h"
#include "server/shared_fields.h"
#include "server/tool_fields.h"

namespace lserve {
namespace {

std::string StringOf(const Json& object, std::string_view name) {
  const Json* value = object.Find(name);
  return value != nullptr && value->is_string() ? value->as_string() : "";
}

Json Message(std::string role, std::string content) {
  return Json(Json::Object{{"role", Json(std::move(role))}, {"content", Json(std::move(content))}});
}

// One message becomes several where it holds results of tools: they come first, each as a message
// of the role "tool".
class MessageReader {
 public:
  explicit MessageReader(Json::Array* out) : out_(*out) {}

  bool Read(const Json& message, std::string* why) {
    const std::string role = StringOf(message, "role");
    if (role != "user" && role != "assistant") {
      *why =
          "role is none of user and assistant, expected one of them; system is a field beside "
          "messages";
      return false;
    }
    const Json* content = message.Find("content");
    text_.clear();
    calls_.clear();
    if (content != nullptr && content->is_string()) {
      text_ = content->as_string();
    } else if (content != nullptr && content->is_array()) {
      for (const Json& block : content->as_array()) {
        if (!ReadBlock(role, block, why)) return false;
      }
    } else {
      *why = "content is neither a string nor a list of blocks, expected one of them";
      return false;
    }
    const bool only_results = role == "user" && text_.empty() && has_results_;
    has_results_ = false;
    if (only_results) return true;
    Json read = Message(role, text_);
    if (!calls_.empty())
      read.mutable_object().emplace_back("tool_calls", Json(std::exchange(calls_, {})));
    out_.push_back(std::move(read));
    return true;
  }

 private:
  bool ReadBlock(const std::string& role, const Json& block, std::string* why) {
    const std::string type = StringOf(block, "type");
    const Json* text = block.Find("text");
    if (type == "text" && text != nullptr && text->is_string()) {
      text_ += text->as_string();
      return true;
    }
    // What an assistant thought earlier is no part of the conversation.
    if (role == "assistant" && (type == "thinking" || type == "redacted_thinking")) return true;
    if (role == "assistant" && type == "tool_use") {
      const Json* input = block.Find("input");
      const std::string name = StringOf(block, "name");
      if (!IsToolName(name) || input == nullptr || !input->is_object() ||
          calls_.size() >= kMaxTools) {
        *why = "content has a tool_use without name or input, expected both";
        return false;
      }
      calls_.emplace_back(Json::Object{
          {"id", Json(StringOf(block, "id"))},
          {"type", Json("function")},
          {"function", Json(Json::Object{{"name", Json(name)}, {"arguments", *input}})}});
      return true;
    }
    if (role == "user" && type == "tool_result") {
      std::optional<std::string> result = ContentText(block.Find("content"), why);
      if (!result) return false;
      Json read = Message("tool", *std::move(result));
      read.mutable_object().emplace_back("tool_call_id", Json(StringOf(block, "tool_use_id")));
      out_.push_back(std::move(read));
      has_results_ = true;
      return true;
    }
    *why = StrCat("content has a block of type ", ShownValue(Json(type)), " in the role ", role,
                  ", expected text, tool_use (assistant) or tool_result (user); this server reads "
                  "text only");
    return false;
  }

  Json::Array& out_;
  std::string text_;
  Json::Array calls_;
  bool has_results_ = false;
};

void ReadMessages(BodyFields& fields, ChatBody* out) {
  Json::Array read;
  if (const Json* system = fields.Find("system")) {
    std::string why;
    std::optional<std::string> text = ContentText(system, &why);
    if (!text) return fields.Fail("system", StrCat("system: ", why));
    if (!text->empty()) read.push_back(Message("system", *std::move(text)));
  }
  const Json* messages = fields.Find("messages");
  if (messages == nullptr || !messages->is_array() || messages->as_array().empty() ||
      messages->as_array().size() > kMaxMessages) {
    return fields.Fail(
        "messages", StrCat("messages is ", messages == nullptr ? "missing" : ShownValue(*messages),
                           ", expected a list of 1 to ", kMaxMessages, " messages"));
  }
  MessageReader reader(&read);
  for (size_t i = 0; i < messages->as_array().size(); ++i) {
    std::string why;
    if (!reader.Read(messages->as_array()[i], &why))
      return fields.Fail(StrCat("messages[", i, "]"), StrCat("messages[", i, "]: ", why));
  }
  if (read.back().Find("role")->as_string() == "assistant") {
    return fields.Fail(
        "messages",
        "messages ends with one of the assistant, expected one of the user; to go on "
        "with a text use /v1/completions");
  }
  out->messages = Json(std::move(read));
}

void ReadTools(BodyFields& fields, ToolOptions* out) {
  const Json* tools = fields.Find("tools");
  if (tools != nullptr && !tools->is_array()) return fields.Wrong("tools", *tools, "a list");
  for (size_t i = 0; tools != nullptr && i < tools->as_array().size() && fields.ok(); ++i) {
    const Json& tool = tools->as_array()[i];
    const std::string where = StrCat("tools[", i, "].");
    BodyFields inner(tool, where);
    const std::string type = inner.String("type").value_or("custom");
    if (inner.ok() && type != "custom") {
      inner.Fail("type", StrCat(where, "type is ", ShownValue(Json(type)),
                                ", expected custom; this server runs no tools of its own"));
    }
    const std::string name = inner.String("name").value_or("");
    const std::string description = inner.String("description").value_or("");
    if (inner.error()) return fields.Fail(*inner.error());
    AddTool(fields, {name, description, tool.Find("input_schema"), where, "input_schema"}, out);
  }
  const Json* choice = fields.Find("tool_choice");
  if (choice == nullptr) return;
  BodyFields inner(*choice, "tool_choice.");
  const std::string type = inner.String("type").value_or("");
  out->parallel = !inner.Bool("disable_parallel_tool_use").value_or(false);
  if (type == "none") {
    out->choice = ToolOptions::Choice::kNone;
  } else if (type == "any" || type == "tool") {
    out->choice = ToolOptions::Choice::kRequired;
    if (type == "tool") out->only = inner.String("name").value_or("");
    if (type == "tool" && out->only.empty())
      inner.Fail("name", "tool_choice.name is missing, expected a tool's");
  } else if (type != "auto" && inner.ok()) {
    inner.Fail("type", StrCat("tool_choice.type is ", ShownValue(Json(type)),
                              ", expected auto, any, tool or none"));
  }
  if (inner.error()) return fields.Fail(*inner.error());
  CheckToolChoice(fields, *out);
}

void ReadFormat(BodyFields& fields, OutputFormat* out) {
  const Json* config = fields.Find("output_config");
  const Json* format = config == nullptr ? fields.Find("output_format") : config->Find("format");
  const std::string where = config == nullptr ? "output_format" : "output_config.format";
  if (format == nullptr || format->is_null()) return;
  const Json* schema = format->Find("schema");
  if (StringOf(*format, "type") != "json_schema" || schema == nullptr) {
    return fields.Fail(where, StrCat(where,
                                     " is no {\"type\":\"json_schema\",\"schema\":...}, "
                                     "expected it"));
  }
  *out = {.kind = OutputFormat::Kind::kJsonSchema, .schema = *schema, .where = where + ".schema"};
}

void RefuseUnsupported(BodyFields& fields) {
  const Json* thinking = fields.Find("thinking");
  if (thinking != nullptr && StringOf(*thinking, "type") != "disabled") {
    fields.Fail(NotImplemented("thinking",
                               "only {\"type\":\"disabled\"}; templates may have a switch of "
                               "their own, see chat_template_kwargs of /v1/chat/completions"));
  }
  for (const auto& [name, instead] :
       {std::pair{"mcp_servers", "this server calls no other servers"},
        {"container", "this server runs no code"},
        {"context_management", "shorten the conversation"}}) {
    const Json* value = fields.Find(name);
    if (value != nullptr && !AsksForNothing(*value)) fields.Fail(NotImplemented(name, instead));
  }
}

}  // namespace

std::optional<ApiError> ParseMessagesBody(const Json& json, bool for_counting, ChatBody* out) {
  BodyFields fields(json);
  GenerationParams& params = out->params;
  params.model = fields.String("model").value_or("");
  ReadMessages(fields, out);
  params.max_tokens = fields.Int("max_tokens", 1, INT32_MAX);
  if (!params.max_tokens && !for_counting)
    fields.Fail("max_tokens", "max_tokens is missing, expected a whole number of at least 1");
  params.stream = fields.Bool("stream").value_or(false);
  params.stop = fields.Strings("stop_sequences", kMaxStops, kMaxStopBytes);
  ReadSampling(fields, &params);
  ReadSparse(fields, &params);
  ReadServing(fields, &params);
  ReadTools(fields, &out->tools);
  ReadFormat(fields, &params.format);
  RefuseUnsupported(fields);
  RefuseOtherInputs(fields);
  return fields.error();
}

}  // namespace lserve
