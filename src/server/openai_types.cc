#include "server/openai_types.h"

#include "base/strings.h"
#include "server/body_fields.h"
#include "server/shared_fields.h"
#include "server/tool_fields.h"

namespace lserve {
namespace {

// What would change the answer and is not implemented. A value that asks for nothing passes.
struct Unsupported {
  std::string_view name;
  std::string_view instead;
};
constexpr Unsupported kUnsupported[] = {
    {"functions", "use tools"},
    {"function_call", "use tool_choice"},
    {"audio", "this server reads and writes text"},
    {"web_search_options", "this server has no access to the web"},
    {"guided_json", "use response_format"},
    {"guided_regex", "use response_format with a schema that has a pattern"},
    {"guided_choice", "use response_format with a schema that has an enum"},
    {"guided_grammar", "use response_format with a schema"},
    {"structured_outputs", "use response_format"},
    {"grammar", "use response_format with a schema"},
    {"json_schema", "use response_format"},
    {"use_beam_search", "ask for n choices instead"},
    {"length_penalty", "it belongs to beam search"},
    {"bad_words", "logit_bias forbids tokens"},
    {"allowed_token_ids", "logit_bias favours tokens"},
    {"logits_processors", "no code from requests runs here"},
    {"prompt_logprobs", "lserve run --logits-out writes the logits of a prompt"},
    {"truncate_prompt_tokens", "shorten the prompt"},
    {"include_stop_str_in_output", "append the stop string to the answer"},
    {"continue_final_message", "use /v1/completions with the rendered prompt"},
    {"chat_template", "templates from requests are refused; the model's own one is used"},
    {"documents", "put the documents into a message"},
    {"suffix", "put the text after the gap into the prompt"},
    {"typical_p", "use top_p or min_p"},
    {"mirostat", "use temperature and top_p"},
    {"dry_multiplier", "use repetition_penalty"},
    {"xtc_probability", "use temperature"},
};

void RefuseUnsupported(BodyFields& fields) {
  for (const auto& [name, instead] : kUnsupported) {
    const Json* value = fields.Find(name);
    if (value != nullptr && !AsksForNothing(*value)) fields.Fail(NotImplemented(name, instead));
  }
  if (const Json* modalities = fields.Find("modalities")) {
    if (*modalities != Json(Json::Array{Json("text")})) {
      fields.Fail(NotImplemented("modalities", "only [\"text\"]"));
    }
  }
  const Json* skip_special = fields.Find("skip_special_tokens");
  if (skip_special != nullptr && *skip_special == Json(false)) {
    fields.Fail(NotImplemented("skip_special_tokens", "special tokens never become text"));
  }
}

void ReadFormat(BodyFields& fields, GenerationParams* out) {
  const Json* format = fields.Find("response_format");
  if (format == nullptr) return;
  BodyFields inner(*format, "response_format.");
  const std::string type = inner.String("type").value_or("");
  if (type == "json_object") {
    out->format.kind = OutputFormat::Kind::kJsonObject;
  } else if (type == "json_schema") {
    out->format.kind = OutputFormat::Kind::kJsonSchema;
    out->format.where = "response_format.json_schema.schema";
    const Json* named = inner.Find("json_schema");
    const Json* schema = named == nullptr ? nullptr : named->Find("schema");
    if (schema == nullptr) {
      inner.Fail("json_schema",
                 "response_format.json_schema.schema is missing, expected a JSON Schema");
    } else {
      out->format.schema = *schema;
    }
  } else if (type != "text" && inner.ok()) {
    inner.Fail("type", StrCat("response_format.type is ", ShownValue(Json(type)),
                              ", expected text, json_object or json_schema"));
  }
  if (inner.error()) fields.Fail(*inner.error());
  if (out->format.kind != OutputFormat::Kind::kText)
    CheckEndsItself(fields, "response_format", *out);
}

void ReadParams(BodyFields& fields, GenerationParams* out) {
  out->model = fields.String("model").value_or("");
  out->stream = fields.Bool("stream").value_or(false);
  if (const Json* options = fields.Find("stream_options")) {
    BodyFields inner(*options, "stream_options.");
    out->include_usage = inner.Bool("include_usage").value_or(false);
    if (inner.error()) fields.Fail(*inner.error());
  }
  out->return_progress = fields.Bool("return_progress").value_or(false);
  out->n = static_cast<int>(fields.Int("n", 1, kMaxChoices).value_or(1));
  const std::optional<int64_t> best_of = fields.Int("best_of", 1, kMaxChoices);
  if (best_of && *best_of != out->n) {
    fields.Fail(NotImplemented("best_of", "every choice is returned; set it to n or leave it out"));
  }
  out->max_tokens = fields.Int("max_completion_tokens", 1, INT32_MAX);
  if (!out->max_tokens) out->max_tokens = fields.Int("max_tokens", 1, INT32_MAX);
  out->min_tokens = fields.Int("min_tokens", 0, INT32_MAX).value_or(0);
  out->ignore_eos = fields.Bool("ignore_eos").value_or(false);
  out->stop = fields.Strings("stop", kMaxStops, kMaxStopBytes);
  out->stop_token_ids = fields.TokenIds("stop_token_ids", kMaxStopTokenIds);
  ReadSampling(fields, out);
  ReadSparse(fields, out);
  ReadServing(fields, out);
  ReadFormat(fields, out);
  RefuseUnsupported(fields);
  RefuseOtherInputs(fields);
}

// The calls that an assistant made earlier, their arguments as JSON: templates write them.
std::optional<Json> ReadCalls(std::string_view role, const Json& calls, std::string* why) {
  if (role != "assistant" || !calls.is_array() || calls.as_array().size() > kMaxTools) {
    *why = StrCat("tool_calls is ", ShownValue(calls), " of the role ",
                  ShownValue(Json(std::string(role))), ", expected a list of at most ", kMaxTools,
                  " calls of the assistant");
    return std::nullopt;
  }
  Json::Array read;
  for (const Json& call : calls.as_array()) {
    const Json* function = call.Find("function");
    const Json* name = function == nullptr ? nullptr : function->Find("name");
    const Json* arguments = function == nullptr ? nullptr : function->Find("arguments");
    if (name == nullptr || !name->is_string() || !IsToolName(name->as_string()) ||
        (arguments != nullptr && !arguments->is_string() && !arguments->is_object())) {
      *why =
          "tool_calls holds no {\"function\":{\"name\":...,\"arguments\":\"{...}\"}}, expected it";
      return std::nullopt;
    }
    Json value = arguments == nullptr ? Json(Json::Object{}) : *arguments;
    if (value.is_string()) {
      // A model may have written what is no JSON: then the template gets the text.
      Result<Json> parsed = ParseJson(value.as_string().empty() ? "{}" : value.as_string());
      if (parsed.ok()) value = std::move(parsed).value();
    }
    const Json* id = call.Find("id");
    read.emplace_back(Json::Object{
        {"id", id == nullptr || !id->is_string() ? Json("") : *id},
        {"type", Json("function")},
        {"function", Json(Json::Object{{"name", *name}, {"arguments", std::move(value)}})}});
  }
  return Json(std::move(read));
}

std::optional<Json> ReadMessage(const Json& message, std::string* why) {
  const Json* role = message.Find("role");
  if (role == nullptr || !role->is_string()) {
    *why = StrCat(message.is_object() ? "role is missing" : StrCat("it is ", message.TypeName()),
                  ", expected {\"role\":...,\"content\":...}");
    return std::nullopt;
  }
  std::string name = role->as_string();
  // OpenAI's newer name of the same thing, which the templates of open models do not know.
  if (name == "developer") name = "system";
  if (name != "system" && name != "user" && name != "assistant" && name != "tool") {
    *why = StrCat("role is ", ShownValue(*role),
                  ", expected system, developer, user, assistant or tool");
    return std::nullopt;
  }
  std::optional<std::string> text = ContentText(message.Find("content"), why);
  if (!text) return std::nullopt;
  Json::Object read = {{"role", Json(name)}, {"content", Json(*std::move(text))}};
  const Json* calls = message.Find("tool_calls");
  if (calls != nullptr && !AsksForNothing(*calls)) {
    std::optional<Json> list = ReadCalls(name, *calls, why);
    if (!list) return std::nullopt;
    read.emplace_back("tool_calls", *std::move(list));
  }
  const Json* call_id = message.Find("tool_call_id");
  if (name == "tool") {
    if (call_id == nullptr || !call_id->is_string()) {
      *why = "tool_call_id is missing, expected the id of the call that this is the result of";
      return std::nullopt;
    }
    read.emplace_back("tool_call_id", *call_id);
  }
  return Json(std::move(read));
}

void ReadChat(BodyFields& fields, ChatBody* out) {
  const Json* messages = fields.Find("messages");
  if (messages == nullptr || !messages->is_array() || messages->as_array().empty() ||
      messages->as_array().size() > kMaxMessages) {
    return fields.Fail(
        "messages", StrCat("messages is ", messages == nullptr ? "missing" : ShownValue(*messages),
                           ", expected a list of 1 to ", kMaxMessages, " messages"));
  }
  Json::Array read;
  for (size_t i = 0; i < messages->as_array().size(); ++i) {
    std::string why;
    std::optional<Json> message = ReadMessage(messages->as_array()[i], &why);
    if (!message)
      return fields.Fail(StrCat("messages[", i, "]"), StrCat("messages[", i, "]: ", why));
    read.push_back(*std::move(message));
  }
  out->messages = Json(std::move(read));
  out->add_generation_prompt = fields.Bool("add_generation_prompt").value_or(true);
  const Json* arguments = fields.Find("chat_template_kwargs");
  if (arguments == nullptr) return;
  if (!arguments->is_object() || arguments->as_object().size() > kMaxTemplateArguments) {
    return fields.Wrong("chat_template_kwargs", *arguments, "an object of template variables");
  }
  for (const auto& [name, value] : arguments->as_object()) {
    for (const std::string_view reserved :
         {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "documents",
          "chat_template"}) {
      if (name == reserved) {
        return fields.Fail("chat_template_kwargs",
                           StrCat("chat_template_kwargs names ", name, ", which is reserved"));
      }
    }
  }
  out->template_arguments = *arguments;
}

void ReadToolChoice(BodyFields& fields, ToolOptions* out) {
  const Json* choice = fields.Find("tool_choice");
  if (choice == nullptr) return;
  if (*choice == Json("auto")) return;
  if (*choice == Json("none")) {
    out->choice = ToolOptions::Choice::kNone;
    return;
  }
  const Json* function = choice->Find("function");
  const Json* name = function == nullptr ? nullptr : function->Find("name");
  const bool is_named = name != nullptr && name->is_string();
  if (*choice != Json("required") && !is_named) {
    return fields.Wrong("tool_choice", *choice,
                        "\"none\", \"auto\", \"required\" or "
                        "{\"type\":\"function\",\"function\":{\"name\":...}}");
  }
  out->choice = ToolOptions::Choice::kRequired;
  if (is_named) out->only = name->as_string();
  CheckToolChoice(fields, *out);
}

void ReadTools(BodyFields& fields, ToolOptions* out) {
  out->parallel = fields.Bool("parallel_tool_calls").value_or(true);
  const Json* tools = fields.Find("tools");
  if (tools != nullptr && !tools->is_array()) return fields.Wrong("tools", *tools, "a list");
  for (size_t i = 0; tools != nullptr && i < tools->as_array().size(); ++i) {
    const Json& tool = tools->as_array()[i];
    const std::string where = StrCat("tools[", i, "].");
    BodyFields inner(tool, where);
    const std::string type = inner.String("type").value_or("function");
    const Json* function = inner.Find("function");
    if (type != "function" || function == nullptr) {
      return fields.Fail(StrCat("tools[", i, "]"),
                         StrCat("tools[", i,
                                "] is no function, expected "
                                "{\"type\":\"function\",\"function\":{\"name\":...}}; this server "
                                "runs no tools of its own"));
    }
    BodyFields named(*function, where + "function.");
    const std::string name = named.String("name").value_or("");
    const std::string description = named.String("description").value_or("");
    AddTool(fields,
            {name, description, function->Find("parameters"), where + "function.", "parameters"},
            out);
    for (const BodyFields* part : {&inner, &named}) {
      if (part->error()) return fields.Fail(*part->error());
    }
    if (!fields.ok()) return;
  }
  ReadToolChoice(fields, out);
}

void ReadPrompts(BodyFields& fields, CompletionBody* out) {
  const Json* prompt = fields.Find("prompt");
  constexpr const char* kExpected =
      "a string, a list of strings, a list of token ids, or a list of lists of token ids";
  if (prompt == nullptr)
    return fields.Fail("prompt", StrCat("prompt is missing, expected ", kExpected));
  const auto wrong = [&] {
    fields.Fail("prompt", StrCat("prompt is ", ShownValue(*prompt), ", expected ", kExpected));
  };
  const auto ids = [&](const Json::Array& list) {
    CompletionPrompt one;
    for (const Json& item : list) {
      const std::optional<int32_t> id = AsTokenId(item);
      if (!id)
        return fields.Fail("prompt",
                           StrCat("prompt holds ", ShownValue(item), ", expected token ids"));
      one.token_ids.push_back(*id);
    }
    if (one.token_ids.empty())
      return fields.Fail("prompt", "prompt has 0 tokens, expected at least 1");
    out->prompts.push_back(std::move(one));
  };
  if (prompt->is_string()) {
    out->prompts.push_back({.text = prompt->as_string(), .token_ids = {}});
    return;
  }
  if (!prompt->is_array() || prompt->as_array().empty()) return wrong();
  const Json::Array& list = prompt->as_array();
  if (list[0].is_int()) return ids(list);
  if (list.size() > kMaxPrompts) {
    return fields.Fail(
        "prompt", StrCat("prompt has ", list.size(), " prompts, expected at most ", kMaxPrompts));
  }
  for (const Json& one : list) {
    if (one.is_string()) {
      out->prompts.push_back({.text = one.as_string(), .token_ids = {}});
    } else if (one.is_array()) {
      ids(one.as_array());
    } else {
      return wrong();
    }
  }
}

}  // namespace

std::optional<ApiError> ParseBody(const Json& json, ChatBody* out) {
  BodyFields fields(json);
  ReadChat(fields, out);
  ReadParams(fields, &out->params);
  ReadTools(fields, &out->tools);
  if (out->tools.enabled()) CheckEndsItself(fields, "tools", out->params);
  const bool wanted = fields.Bool("logprobs").value_or(false);
  const std::optional<int64_t> top = fields.Int("top_logprobs", 0, kMaxTopLogprobs);
  if (wanted) out->params.top_logprobs = static_cast<int>(top.value_or(0));
  if (top.value_or(0) > 0 && !wanted) {
    fields.Fail("top_logprobs",
                StrCat("top_logprobs is ", *top, ", expected \"logprobs\": true beside it"));
  }
  return fields.error();
}

std::optional<ApiError> ParseBody(const Json& json, CompletionBody* out) {
  BodyFields fields(json);
  ReadPrompts(fields, out);
  ReadParams(fields, &out->params);
  if (const auto top = fields.Int("logprobs", 0, kMaxTopLogprobs))
    out->params.top_logprobs = static_cast<int>(*top);
  out->echo = fields.Bool("echo").value_or(false);
  if (out->echo && out->params.top_logprobs) {
    fields.Fail(
        NotImplemented("echo", "log probabilities of the prompt; leave out echo or logprobs"));
  }
  if (out->prompts.size() * static_cast<size_t>(out->params.n) > kMaxPrompts) {
    fields.Fail(
        "n", StrCat("prompts times n is ", out->prompts.size() * static_cast<size_t>(out->params.n),
                    ", expected at most ", kMaxPrompts));
  }
  return fields.error();
}

std::optional<ApiError> ParseBody(const Json& json, TokenizeBody* out) {
  BodyFields fields(json);
  out->model = fields.String("model").value_or("");
  // vLLM's name, and llama.cpp's.
  out->text = fields.String("prompt");
  if (!out->text) out->text = fields.String("content");
  if (!out->text) ReadChat(fields, &out->chat);
  out->add_special_tokens = fields.Bool("add_special_tokens").value_or(true);
  out->return_token_strings = fields.Bool("return_token_strs").value_or(false);
  return fields.error();
}

std::optional<ApiError> ParseBody(const Json& json, DetokenizeBody* out) {
  BodyFields fields(json);
  out->model = fields.String("model").value_or("");
  out->tokens = fields.TokenIds("tokens", SIZE_MAX);
  if (fields.Find("tokens") == nullptr)
    fields.Fail("tokens", "tokens is missing, expected a list of token ids");
  return fields.error();
}

}  // namespace lserve
