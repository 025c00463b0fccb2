#include "server/openai_replies.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/strings.h"
#include "server/sse.h"

namespace lserve {
namespace {

// OpenAI's floor for what is all but impossible; JSON has no infinity.
constexpr double kLeastLogprob = -9999.0;

// What a token is as a piece of text, and its bytes unless it is a part of a character only.
struct TokenText {
  std::string text;
  Json bytes;
};

TokenText TextOf(int32_t token, const Tokenizer& tokenizer) {
  Result<std::string> decoded = tokenizer.Decode({&token, 1}, /*skip_special=*/false);
  TokenText out;
  if (!decoded.ok()) return out;
  out.text = std::move(decoded).value();
  if (out.text.find("\xef\xbf\xbd") != std::string::npos) return out;
  Json::Array bytes;
  for (const char c : out.text) bytes.emplace_back(static_cast<int>(static_cast<unsigned char>(c)));
  out.bytes = Json(std::move(bytes));
  return out;
}

double Bounded(float logprob) {
  return std::max(static_cast<double>(logprob), kLeastLogprob);
}

Json ChatScore(const TokenScore& score, const Tokenizer& tokenizer) {
  TokenText token = TextOf(score.token, tokenizer);
  return Json(Json::Object{{"token", Json(std::move(token.text))},
                           {"logprob", Json(Bounded(score.logprob))},
                           {"bytes", std::move(token.bytes)}});
}

Json ChatScores(const ScoredToken* first, size_t count, const Tokenizer& tokenizer) {
  Json::Array content;
  for (size_t i = 0; i < count; ++i) {
    const std::vector<TokenScore>& scores = first[i].scores;
    Json drawn = ChatScore(scores.front(), tokenizer);
    Json::Array top;
    for (size_t k = 1; k < scores.size(); ++k) top.push_back(ChatScore(scores[k], tokenizer));
    drawn.mutable_object().emplace_back("top_logprobs", Json(std::move(top)));
    content.push_back(std::move(drawn));
  }
  return Json(Json::Object{{"content", Json(std::move(content))}, {"refusal", Json()}});
}

Json CompletionScores(const ScoredToken* first, size_t count, const Tokenizer& tokenizer) {
  Json::Array tokens, logprobs, tops, offsets;
  for (size_t i = 0; i < count; ++i) {
    const std::vector<TokenScore>& scores = first[i].scores;
    tokens.emplace_back(TextOf(scores.front().token, tokenizer).text);
    logprobs.emplace_back(Bounded(scores.front().logprob));
    offsets.emplace_back(first[i].text_offset);
    Json::Object top;
    for (size_t k = 1; k < scores.size(); ++k) {
      std::string text = TextOf(scores[k].token, tokenizer).text;
      // Two tokens may be parts of characters that look alike; the likelier one stays.
      const bool is_new = std::none_of(top.begin(), top.end(),
                                       [&](const Json::Member& m) { return m.first == text; });
      if (is_new) top.emplace_back(std::move(text), Json(Bounded(scores[k].logprob)));
    }
    tops.emplace_back(std::move(top));
  }
  return Json(Json::Object{{"tokens", Json(std::move(tokens))},
                           {"token_logprobs", Json(std::move(logprobs))},
                           {"top_logprobs", Json(std::move(tops))},
                           {"text_offset", Json(std::move(offsets))}});
}

Json Scores(ReplyKind kind, const ScoredToken* first, size_t count, const Tokenizer& tokenizer) {
  return kind == ReplyKind::kChat ? ChatScores(first, count, tokenizer)
                                  : CompletionScores(first, count, tokenizer);
}

// No value of our own: clients map unknown ones to "other", or fail.
Json Reason(const ChoiceState& choice) {
  if (!choice.finished) return Json();
  if (*choice.finished == FinishReason::kLength) return Json("length");
  return Json(choice.calls.empty() ? "stop" : "tool_calls");
}

Json UsageJson(const Usage& usage) {
  return Json(Json::Object{
      {"prompt_tokens", Json(usage.prompt_tokens)},
      {"completion_tokens", Json(usage.completion_tokens)},
      {"total_tokens", Json(usage.prompt_tokens + usage.completion_tokens)},
      {"prompt_tokens_details", Json(Json::Object{{"cached_tokens", Json(usage.cached_tokens)}})}});
}

Json CallJson(const ToolCall& call) {
  return Json(Json::Object{{"id", Json(call.id)},
                           {"type", Json("function")},
                           {"function", Json(Json::Object{{"name", Json(call.name)},
                                                          {"arguments", Json(call.arguments)}})}});
}

class OpenAiReplies : public ReplyFormat {
 public:
  OpenAiReplies(OpenAiReplyOptions options, const Tokenizer& tokenizer)
      : options_(std::move(options)), tokenizer_(tokenizer) {}

  Json Whole(const std::vector<ChoiceState>& choices, const Usage& usage) override;
  std::string Opening(int64_t) override { return ""; }
  std::string Progress(const RequestStats& stats, int64_t done, double milliseconds) override;
  std::string Step(const StreamStep& step) override;
  std::string Closing(const std::vector<ChoiceState>& choices, const Usage& usage) override;
  std::string Failure(const ApiError& error) override {
    return StrCat(SseData(error.ToJson()), kSseDone);
  }
  std::string Heartbeat() const override { return std::string(kSseHeartbeat); }
  Json Error(const ApiError& error) const override { return error.ToJson(); }

 private:
  bool is_chat() const { return options_.kind == ReplyKind::kChat; }
  std::string Echo(size_t index) const {
    return options_.echoes.empty() ? std::string() : options_.echoes[index];
  }
  Json::Object Head(const char* chat_object) const;
  std::string Chunk(size_t index,
                    Json::Object content,
                    const ScoredToken* scored,
                    const ChoiceState* ended) const;
  Json MessageJson(const ChoiceState& choice) const;
  // What a piece adds to the choice of a chunk.
  Json::Object PieceJson(const OutputPiece& piece, size_t call) const;
  Json::Object TextJson(std::string text, bool with_role) const;

  const OpenAiReplyOptions options_;
  const Tokenizer& tokenizer_;
};

Json::Object OpenAiReplies::Head(const char* chat_object) const {
  return {{"id", Json(options_.id)},
          {"object", Json(is_chat() ? chat_object : "text_completion")},
          {"created", Json(options_.created)},
          {"model", Json(options_.model)}};
}

Json OpenAiReplies::MessageJson(const ChoiceState& choice) const {
  const bool is_call = !choice.calls.empty();
  Json::Object message = {{"role", Json("assistant")},
                          {"content", is_call && choice.text.empty() ? Json() : Json(choice.text)},
                          {"refusal", Json()}};
  if (is_call) {
    Json::Array calls;
    for (const ToolCall& call : choice.calls) calls.push_back(CallJson(call));
    message.emplace_back("tool_calls", Json(std::move(calls)));
  }
  return Json(std::move(message));
}

Json OpenAiReplies::Whole(const std::vector<ChoiceState>& choices, const Usage& usage) {
  Json::Array list;
  for (size_t i = 0; i < choices.size(); ++i) {
    const ChoiceState& choice = choices[i];
    Json::Object one = {{"index", Json(static_cast<int64_t>(i))}};
    if (is_chat()) {
      one.emplace_back("message", MessageJson(choice));
    } else {
      one.emplace_back("text", Json(Echo(i) + choice.text));
    }
    one.emplace_back("logprobs", options_.scores ? Scores(options_.kind, choice.scored.data(),
                                                          choice.scored.size(), tokenizer_)
                                                 : Json());
    one.emplace_back("finish_reason", Reason(choice));
    list.emplace_back(std::move(one));
  }
  Json::Object reply = Head("chat.completion");
  reply.emplace_back("choices", Json(std::move(list)));
  reply.emplace_back("usage", UsageJson(usage));
  reply.emplace_back("timings", TimingsJson(choices.front().stats));
  return Json(std::move(reply));
}

std::string OpenAiReplies::Progress(const RequestStats& stats, int64_t done, double milliseconds) {
  if (!options_.return_progress) return "";
  Json::Object chunk = Head("chat.completion.chunk");
  chunk.emplace_back("choices", Json(Json::Array{}));
  chunk.emplace_back("prompt_progress", Json(Json::Object{{"total", Json(stats.prompt_tokens)},
                                                          {"cache", Json(stats.cached_tokens)},
                                                          {"processed", Json(done)},
                                                          {"time_ms", Json(milliseconds)}}));
  return SseData(Json(std::move(chunk)));
}

std::string OpenAiReplies::Chunk(size_t index,
                                 Json::Object content,
                                 const ScoredToken* scored,
                                 const ChoiceState* ended) const {
  Json::Object choice = {{"index", Json(static_cast<int64_t>(index))}};
  for (Json::Member& member : content) choice.push_back(std::move(member));
  choice.emplace_back("logprobs",
                      scored != nullptr ? Scores(options_.kind, scored, 1, tokenizer_) : Json());
  choice.emplace_back("finish_reason", ended != nullptr ? Reason(*ended) : Json());
  Json::Object chunk = Head("chat.completion.chunk");
  chunk.emplace_back("choices", Json(Json::Array{Json(std::move(choice))}));
  if (options_.include_usage) chunk.emplace_back("usage", Json());
  if (ended != nullptr) chunk.emplace_back("timings", TimingsJson(ended->stats));
  return SseData(Json(std::move(chunk)));
}

Json::Object OpenAiReplies::TextJson(std::string text, bool with_role) const {
  if (!is_chat()) return {{"text", Json(std::move(text))}};
  Json::Object delta;
  if (with_role) delta.emplace_back("role", Json("assistant"));
  delta.emplace_back("content", Json(std::move(text)));
  return {{"delta", Json(std::move(delta))}};
}

Json::Object OpenAiReplies::PieceJson(const OutputPiece& piece, size_t call) const {
  if (piece.kind == OutputPiece::Kind::kText) return TextJson(piece.text, false);
  Json::Object delta = {{"index", Json(static_cast<int64_t>(call))}};
  if (piece.kind == OutputPiece::Kind::kCallBegin) {
    delta.emplace_back("id", Json(piece.id));
    delta.emplace_back("type", Json("function"));
    delta.emplace_back("function",
                       Json(Json::Object{{"name", Json(piece.text)}, {"arguments", Json("")}}));
  } else {
    delta.emplace_back("function", Json(Json::Object{{"arguments", Json(piece.text)}}));
  }
  Json::Object calls = {{"tool_calls", Json(Json::Array{Json(std::move(delta))})}};
  return {{"delta", Json(std::move(calls))}};
}

std::string OpenAiReplies::Step(const StreamStep& step) {
  std::string out;
  const ScoredToken* scored = step.scored;
  if (step.is_first && (is_chat() || !Echo(step.index).empty()))
    out += Chunk(step.index, TextJson(Echo(step.index), true), nullptr, nullptr);
  // Which call a piece belongs to: the last of the step's pieces belong to the last call.
  size_t call = step.choice->calls.size();
  for (const OutputPiece& piece : *step.pieces)
    call -= piece.kind == OutputPiece::Kind::kCallBegin ? 1 : 0;
  for (const OutputPiece& piece : *step.pieces) {
    call += piece.kind == OutputPiece::Kind::kCallBegin ? 1 : 0;
    if (piece.kind == OutputPiece::Kind::kCallEnd) continue;
    const size_t index = piece.kind == OutputPiece::Kind::kText ? 0 : call - 1;
    out += Chunk(step.index, PieceJson(piece, index), scored, nullptr);
    scored = nullptr;
  }
  // A token without text, as the first byte of a character.
  if (scored != nullptr) out += Chunk(step.index, TextJson("", false), scored, nullptr);
  if (step.choice->finished) {
    Json::Object nothing =
        is_chat() ? Json::Object{{"delta", Json(Json::Object{})}} : TextJson("", false);
    out += Chunk(step.index, std::move(nothing), nullptr, step.choice);
  }
  return out;
}

std::string OpenAiReplies::Closing(const std::vector<ChoiceState>&, const Usage& usage) {
  if (!options_.include_usage) return std::string(kSseDone);
  Json::Object chunk = Head("chat.completion.chunk");
  chunk.emplace_back("choices", Json(Json::Array{}));
  chunk.emplace_back("usage", UsageJson(usage));
  return StrCat(SseData(Json(std::move(chunk))), kSseDone);
}

}  // namespace

std::unique_ptr<ReplyFormat> MakeOpenAiReplies(OpenAiReplyOptions options,
                                               const Tokenizer& tokenizer) {
  return std::make_unique<OpenAiReplies>(std::move(options), tokenizer);
}

Json TimingsJson(const RequestStats& stats) {
  const int64_t computed = stats.prompt_tokens - stats.cached_tokens;
  Json::Object timings = {{"cache_n", Json(stats.cached_tokens)},
                          {"prompt_n", Json(computed)},
                          {"prompt_ms", Json(stats.ttft_ms)}};
  if (stats.ttft_ms > 0) {
    timings.emplace_back("prompt_per_second",
                         Json(static_cast<double>(computed) * 1e3 / stats.ttft_ms));
  }
  // Where the prompt parts from what the prefix cache holds, and how long that prefix is.
  timings.emplace_back("prefix",
                       Json(Json::Object{{"end", Json(std::string(Name(stats.prefix.end)))},
                                         {"common", Json(stats.prefix.common)},
                                         {"nearest", Json(stats.prefix.nearest)}}));
  timings.emplace_back("preemptions", Json(stats.preemptions));
  timings.emplace_back("predicted_n", Json(stats.completion_tokens));
  if (stats.decode_ms_per_token) {
    const double per_token = *stats.decode_ms_per_token;
    timings.emplace_back("predicted_ms",
                         Json(per_token * static_cast<double>(stats.completion_tokens - 1)));
    timings.emplace_back("predicted_per_token_ms", Json(per_token));
    if (per_token > 0) timings.emplace_back("predicted_per_second", Json(1e3 / per_token));
  }
  // Which attention ran, so that a claim of sparse or exact can be checked.
  timings.emplace_back("kv_bytes", Json(static_cast<int64_t>(stats.kv_bytes)));
  timings.emplace_back("pages_visited", Json(stats.pages_visited));
  timings.emplace_back("pages_present", Json(stats.pages_present));
  timings.emplace_back("prefill_tiles_visited", Json(stats.prefill_tiles_visited));
  timings.emplace_back("prefill_tiles_present", Json(stats.prefill_tiles_present));
  timings.emplace_back("dense_steps", Json(stats.dense_steps));
  timings.emplace_back("sparse_steps", Json(stats.sparse_steps));
  timings.emplace_back("selections", Json(stats.selections));
  return Json(std::move(timings));
}

}  // namespace lserve
