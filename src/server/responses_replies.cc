#include "server/responses_replies.h"

#include <utility>

#include "base/strings.h"
#include "base/wall_time.h"
#include "server/ids.h"
#include "server/sse.h"

namespace lserve {
namespace {

Json UsageJson(const Usage& usage) {
  return Json(Json::Object{
      {"input_tokens", Json(usage.prompt_tokens)},
      {"input_tokens_details", Json(Json::Object{{"cached_tokens", Json(usage.cached_tokens)}})},
      {"output_tokens", Json(usage.completion_tokens)},
      {"output_tokens_details", Json(Json::Object{{"reasoning_tokens", Json(0)}})},
      {"total_tokens", Json(usage.prompt_tokens + usage.completion_tokens)}});
}

Json TextPart(const std::string& text) {
  return Json(Json::Object{{"type", Json("output_text")},
                           {"text", Json(text)},
                           {"annotations", Json(Json::Array{})},
                           {"logprobs", Json(Json::Array{})}});
}

Json ToolChoiceJson(const ToolOptions& options) {
  switch (options.choice) {
    case ToolOptions::Choice::kAuto:
      return Json("auto");
    case ToolOptions::Choice::kNone:
      return Json("none");
    case ToolOptions::Choice::kRequired:
      break;
  }
  if (options.only.empty()) return Json("required");
  return Json(Json::Object{{"type", Json("function")}, {"name", Json(options.only)}});
}

Json ToolsJson(const ToolOptions& options) {
  Json::Array tools;
  for (const Tool& tool : options.tools) {
    tools.emplace_back(Json::Object{{"type", Json("function")},
                                    {"name", Json(tool.name)},
                                    {"description", Json(tool.description)},
                                    {"parameters", tool.parameters},
                                    {"strict", Json(true)}});
  }
  return Json(std::move(tools));
}

Json FormatJson(const OutputFormat& format) {
  switch (format.kind) {
    case OutputFormat::Kind::kText:
      return Json(Json::Object{{"type", Json("text")}});
    case OutputFormat::Kind::kJsonObject:
      return Json(Json::Object{{"type", Json("json_object")}});
    case OutputFormat::Kind::kJsonSchema:
      break;
  }
  return Json(Json::Object{{"type", Json("json_schema")}, {"schema", format.schema}});
}

template <class T>
Json OrNull(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

class ResponsesReplies : public ReplyFormat {
 public:
  ResponsesReplies(std::string model, const ChatBody& body)
      : id_(RandomName("resp_")),
        created_(UnixSeconds()),
        echo_({{"model", Json(std::move(model))},
               {"max_output_tokens", OrNull(body.params.max_tokens)},
               {"temperature", OrNull(body.params.temperature)},
               {"top_p", OrNull(body.params.top_p)},
               {"tools", ToolsJson(body.tools)},
               {"tool_choice", ToolChoiceJson(body.tools)},
               {"parallel_tool_calls", Json(body.tools.parallel)},
               {"text", Json(Json::Object{{"format", FormatJson(body.params.format)}})},
               {"instructions", Json()},
               {"metadata", Json(Json::Object{})},
               {"previous_response_id", Json()},
               {"store", Json(false)},
               {"truncation", Json("disabled")}}) {}

  Json Whole(const std::vector<ChoiceState>& choices, const Usage& usage) override {
    const ChoiceState& choice = choices.front();
    items_.clear();
    if (!choice.text.empty() || choice.calls.empty())
      items_.push_back(MessageItem(RandomName("msg_"), choice.text, Status(choice)));
    for (const ToolCall& call : choice.calls)
      items_.push_back(CallItem(RandomName("fc_"), call, Status(choice)));
    return Response(Status(choice), &usage);
  }

  std::string Opening(int64_t) override {
    // One after the other: the events are numbered as they are made.
    std::string out = Event("response.created", {{"response", Response("in_progress", nullptr)}});
    out += Event("response.in_progress", {{"response", Response("in_progress", nullptr)}});
    return out;
  }
  std::string Progress(const RequestStats&, int64_t, double) override { return ""; }

  std::string Step(const StreamStep& step) override {
    std::string out;
    for (const OutputPiece& piece : *step.pieces) {
      switch (piece.kind) {
        case OutputPiece::Kind::kText:
          if (open_ != Open::kText) out += BeginText();
          text_ += piece.text;
          out += ItemEvent("response.output_text.delta", {{"content_index", Json(0)},
                                                          {"delta", Json(piece.text)},
                                                          {"logprobs", Json(Json::Array{})}});
          break;
        case OutputPiece::Kind::kCallBegin:
          out += EndItem("completed");
          call_ = {.id = piece.id, .name = piece.text, .arguments = ""};
          item_id_ = RandomName("fc_");
          open_ = Open::kCall;
          out += Event(
              "response.output_item.added",
              {{"output_index", Index()}, {"item", CallItem(item_id_, call_, "in_progress")}});
          break;
        case OutputPiece::Kind::kCallArguments:
          call_.arguments += piece.text;
          out += ItemEvent("response.function_call_arguments.delta", {{"delta", Json(piece.text)}});
          break;
        case OutputPiece::Kind::kCallEnd:
          out += EndItem(Status(*step.choice));
          break;
      }
    }
    return out;
  }

  std::string Closing(const std::vector<ChoiceState>& choices, const Usage& usage) override {
    const std::string status = Status(choices.front());
    std::string out;
    if (items_.empty() && open_ == Open::kNothing) out += BeginText();
    out += EndItem(status);
    return out + Event(StrCat("response.", status), {{"response", Response(status, &usage)}});
  }

  std::string Failure(const ApiError& error) override {
    return Event("error", {{"code", error.code.empty() ? Json() : Json(error.code)},
                           {"message", Json(error.message)},
                           {"param", Json()}});
  }
  std::string Heartbeat() const override { return std::string(kSseHeartbeat); }
  Json Error(const ApiError& error) const override { return error.ToJson(); }

 private:
  enum class Open : uint8_t { kNothing, kText, kCall };

  static std::string Status(const ChoiceState& choice) {
    return choice.finished == FinishReason::kLength ? "incomplete" : "completed";
  }
  static Json MessageItem(const std::string& id,
                          const std::string& text,
                          const std::string& status) {
    Json::Array content;
    if (status != "in_progress") content.push_back(TextPart(text));
    return Json(Json::Object{{"id", Json(id)},
                             {"type", Json("message")},
                             {"status", Json(status)},
                             {"role", Json("assistant")},
                             {"content", Json(std::move(content))}});
  }
  static Json CallItem(const std::string& id, const ToolCall& call, const std::string& status) {
    return Json(Json::Object{{"id", Json(id)},
                             {"type", Json("function_call")},
                             {"status", Json(status)},
                             {"call_id", Json(call.id)},
                             {"name", Json(call.name)},
                             {"arguments", Json(call.arguments)}});
  }

  Json Index() const { return Json(static_cast<int64_t>(items_.size())); }
  std::string Event(const std::string& type, Json::Object members) {
    members.insert(members.begin(), {{"type", Json(type)}, {"sequence_number", Json(sequence_++)}});
    return SseEvent(type, Json(std::move(members)));
  }
  std::string ItemEvent(const std::string& type, Json::Object members) {
    members.insert(members.begin(), {{"item_id", Json(item_id_)}, {"output_index", Index()}});
    return Event(type, std::move(members));
  }

  std::string BeginText() {
    item_id_ = RandomName("msg_");
    open_ = Open::kText;
    text_.clear();
    std::string out =
        Event("response.output_item.added",
              {{"output_index", Index()}, {"item", MessageItem(item_id_, "", "in_progress")}});
    out += ItemEvent("response.content_part.added",
                     {{"content_index", Json(0)}, {"part", TextPart("")}});
    return out;
  }
  std::string EndItem(const std::string& status) {
    if (open_ == Open::kNothing) return "";
    std::string out;
    Json item;
    if (open_ == Open::kText) {
      item = MessageItem(item_id_, text_, status);
      out += ItemEvent(
          "response.output_text.done",
          {{"content_index", Json(0)}, {"text", Json(text_)}, {"logprobs", Json(Json::Array{})}});
      out += ItemEvent("response.content_part.done",
                       {{"content_index", Json(0)}, {"part", TextPart(text_)}});
    } else {
      item = CallItem(item_id_, call_, status);
      out += ItemEvent("response.function_call_arguments.done",
                       {{"name", Json(call_.name)}, {"arguments", Json(call_.arguments)}});
    }
    out += Event("response.output_item.done", {{"output_index", Index()}, {"item", item}});
    items_.push_back(std::move(item));
    open_ = Open::kNothing;
    return out;
  }

  Json Response(const std::string& status, const Usage* usage) const {
    Json::Object response = {{"id", Json(id_)},
                             {"object", Json("response")},
                             {"created_at", Json(created_)},
                             {"status", Json(status)},
                             {"error", Json()},
                             {"incomplete_details", Json()},
                             {"output", Json(items_)}};
    if (status == "incomplete")
      response[5].second = Json(Json::Object{{"reason", Json("max_output_tokens")}});
    for (const Json::Member& member : echo_) response.push_back(member);
    response.emplace_back("usage", usage == nullptr ? Json() : UsageJson(*usage));
    return Json(std::move(response));
  }

  const std::string id_;
  const int64_t created_;
  const Json::Object echo_;
  int64_t sequence_ = 0;
  Json::Array items_;  // finished ones
  Open open_ = Open::kNothing;
  std::string item_id_;
  std::string text_;
  ToolCall call_;
};

}  // namespace

std::unique_ptr<ReplyFormat> MakeResponsesReplies(std::string model, const ChatBody& body) {
  return std::make_unique<ResponsesReplies>(std::move(model), body);
}

}  // namespace lserve
