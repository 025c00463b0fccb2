#include "server/anthropic_replies.h"

#include <utility>

#include "base/strings.h"
#include "server/ids.h"
#include "server/sse.h"

namespace lserve {
namespace {

std::string_view TypeOf(int http_status) {
  switch (http_status) {
    case 413:
      return "request_too_large";
    case 503:
      return "overloaded_error";
    default:
      return http_status >= 500 ? "api_error" : ErrorType(http_status);
  }
}

// Cached tokens are counted apart here; nothing is billed for writing the cache.
Json UsageJson(const Usage& usage) {
  return Json(Json::Object{{"input_tokens", Json(usage.prompt_tokens - usage.cached_tokens)},
                           {"cache_creation_input_tokens", Json(0)},
                           {"cache_read_input_tokens", Json(usage.cached_tokens)},
                           {"output_tokens", Json(usage.completion_tokens)}});
}

std::string StopReason(const ChoiceState& choice) {
  if (choice.finished == FinishReason::kLength) return "max_tokens";
  if (!choice.calls.empty()) return "tool_use";
  return choice.stop_string.empty() ? "end_turn" : "stop_sequence";
}

Json StopString(const ChoiceState& choice) {
  return choice.stop_string.empty() ? Json() : Json(choice.stop_string);
}

Json ToolUse(const ToolCall& call, Json input) {
  return Json(Json::Object{{"type", Json("tool_use")},
                           {"id", Json(call.id)},
                           {"name", Json(call.name)},
                           {"input", std::move(input)}});
}

Json TextBlock(std::string text) {
  return Json(Json::Object{{"type", Json("text")}, {"text", Json(std::move(text))}});
}

class AnthropicReplies : public ReplyFormat {
 public:
  explicit AnthropicReplies(std::string model)
      : id_(RandomName("msg_")), model_(std::move(model)) {}

  Json Whole(const std::vector<ChoiceState>& choices, const Usage& usage) override {
    const ChoiceState& choice = choices.front();
    Json::Array content;
    if (!choice.text.empty() || choice.calls.empty()) content.push_back(TextBlock(choice.text));
    for (const ToolCall& call : choice.calls) {
      // Cut off by max_tokens it is no JSON; the API knows objects only.
      Result<Json> input = ParseJson(call.arguments);
      content.push_back(
          ToolUse(call, input.ok() ? std::move(input).value() : Json(Json::Object{})));
    }
    return Message(std::move(content), Json(StopReason(choice)), StopString(choice), usage);
  }

  std::string Opening(int64_t prompt_tokens) override {
    // How many of them are cached shows when the answer begins; the last event says it.
    return Event("message_start",
                 {{"message", Message({}, Json(), Json(), {.prompt_tokens = prompt_tokens})}});
  }
  std::string Progress(const RequestStats&, int64_t, double) override { return ""; }

  std::string Step(const StreamStep& step) override {
    std::string out;
    for (const OutputPiece& piece : *step.pieces) {
      switch (piece.kind) {
        case OutputPiece::Kind::kText:
          if (!in_text_) {
            out += Begin(TextBlock(""));
            in_text_ = true;
          }
          out += Delta({{"type", Json("text_delta")}, {"text", Json(piece.text)}});
          break;
        case OutputPiece::Kind::kCallBegin:
          out += EndBlock();
          out += Begin(ToolUse({piece.id, piece.text, ""}, Json(Json::Object{})));
          break;
        case OutputPiece::Kind::kCallArguments:
          out += Delta({{"type", Json("input_json_delta")}, {"partial_json", Json(piece.text)}});
          break;
        case OutputPiece::Kind::kCallEnd:
          out += EndBlock();
          break;
      }
    }
    return out;
  }

  std::string Closing(const std::vector<ChoiceState>& choices, const Usage& usage) override {
    const ChoiceState& choice = choices.front();
    Json::Object delta = {{"stop_reason", Json(StopReason(choice))},
                          {"stop_sequence", StopString(choice)}};
    std::string out = EndBlock();
    out += Event("message_delta", {{"delta", Json(std::move(delta))}, {"usage", UsageJson(usage)}});
    return out + Event("message_stop", {});
  }

  std::string Failure(const ApiError& error) override {
    return SseEvent("error", AnthropicErrorJson(error));
  }
  std::string Heartbeat() const override {
    return SseEvent("ping", Json(Json::Object{{"type", Json("ping")}}));
  }
  Json Error(const ApiError& error) const override { return AnthropicErrorJson(error); }

 private:
  static std::string Event(const char* type, Json::Object members) {
    members.insert(members.begin(), {"type", Json(type)});
    return SseEvent(type, Json(std::move(members)));
  }
  std::string Begin(Json block) {
    is_open_ = true;
    return Event("content_block_start",
                 {{"index", Json(index_)}, {"content_block", std::move(block)}});
  }
  std::string Delta(Json::Object delta) const {
    return Event("content_block_delta",
                 {{"index", Json(index_)}, {"delta", Json(std::move(delta))}});
  }
  std::string EndBlock() {
    if (!is_open_) return "";
    is_open_ = false;
    in_text_ = false;
    return Event("content_block_stop", {{"index", Json(index_++)}});
  }
  Json Message(Json::Array content, Json stop_reason, Json stop_string, const Usage& usage) const {
    return Json(Json::Object{{"id", Json(id_)},
                             {"type", Json("message")},
                             {"role", Json("assistant")},
                             {"model", Json(model_)},
                             {"content", Json(std::move(content))},
                             {"stop_reason", std::move(stop_reason)},
                             {"stop_sequence", std::move(stop_string)},
                             {"usage", UsageJson(usage)}});
  }

  const std::string id_;
  const std::string model_;
  int64_t index_ = 0;  // of the block
  bool is_open_ = false;
  bool in_text_ = false;
};

}  // namespace

Json AnthropicErrorJson(const ApiError& error) {
  return Json(Json::Object{
      {"type", Json("error")},
      {"error", Json(Json::Object{{"type", Json(std::string(TypeOf(error.http_status)))},
                                  {"message", Json(error.message)}})}});
}

std::unique_ptr<ReplyFormat> MakeAnthropicReplies(std::string model) {
  return std::make_unique<AnthropicReplies>(std::move(model));
}

}  // namespace lserve
