#include "server/openai_replies.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/strings.h"

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

Json Reason(std::optional<FinishReason> finished) {
  if (!finished) return Json();
  // No value of our own: clients map unknown ones to "other", or fail.
  return Json(*finished == FinishReason::kLength ? "length" : "stop");
}

Json::Object Head(const ReplyHead& head, const char* chat_object) {
  return {{"id", Json(head.id)},
          {"object", Json(head.kind == ReplyKind::kChat ? chat_object : "text_completion")},
          {"created", Json(head.created)},
          {"model", Json(head.model)}};
}

}  // namespace

Json Usage::ToJson() const {
  return Json(Json::Object{
      {"prompt_tokens", Json(prompt_tokens)},
      {"completion_tokens", Json(completion_tokens)},
      {"total_tokens", Json(prompt_tokens + completion_tokens)},
      {"prompt_tokens_details", Json(Json::Object{{"cached_tokens", Json(cached_tokens)}})}});
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

Json WholeReply(const ReplyHead& head,
                const std::vector<ChoiceState>& choices,
                const Usage& usage,
                bool scores,
                const Tokenizer& tokenizer) {
  Json::Array list;
  for (size_t i = 0; i < choices.size(); ++i) {
    const ChoiceState& choice = choices[i];
    Json::Object one = {{"index", Json(static_cast<int64_t>(i))}};
    if (head.kind == ReplyKind::kChat) {
      one.emplace_back("message", Json(Json::Object{{"role", Json("assistant")},
                                                    {"content", Json(choice.text)},
                                                    {"refusal", Json()}}));
    } else {
      one.emplace_back("text", Json(choice.text));
    }
    one.emplace_back(
        "logprobs",
        scores ? Scores(head.kind, choice.scored.data(), choice.scored.size(), tokenizer) : Json());
    one.emplace_back("finish_reason", Reason(choice.finished));
    list.emplace_back(std::move(one));
  }
  Json::Object reply = Head(head, "chat.completion");
  reply.emplace_back("choices", Json(std::move(list)));
  reply.emplace_back("usage", usage.ToJson());
  reply.emplace_back("timings", TimingsJson(choices.front().stats));
  return Json(std::move(reply));
}

Json Chunk(const ReplyHead& head, const ChunkParts& parts, const Tokenizer& tokenizer) {
  Json::Object choice = {{"index", Json(static_cast<int64_t>(parts.index))}};
  if (head.kind == ReplyKind::kChat) {
    Json::Object delta;
    if (parts.with_role) delta.emplace_back("role", Json("assistant"));
    if (parts.with_role || !parts.finished)
      delta.emplace_back("content", Json(std::string(parts.text)));
    choice.emplace_back("delta", Json(std::move(delta)));
  } else {
    choice.emplace_back("text", Json(std::string(parts.text)));
  }
  choice.emplace_back(
      "logprobs", parts.scored != nullptr ? Scores(head.kind, parts.scored, 1, tokenizer) : Json());
  choice.emplace_back("finish_reason", Reason(parts.finished));
  Json::Object chunk = Head(head, "chat.completion.chunk");
  chunk.emplace_back("choices", Json(Json::Array{Json(std::move(choice))}));
  if (parts.null_usage) chunk.emplace_back("usage", Json());
  if (parts.timings != nullptr) chunk.emplace_back("timings", TimingsJson(*parts.timings));
  return Json(std::move(chunk));
}

Json UsageChunk(const ReplyHead& head, const Usage& usage) {
  Json::Object chunk = Head(head, "chat.completion.chunk");
  chunk.emplace_back("choices", Json(Json::Array{}));
  chunk.emplace_back("usage", usage.ToJson());
  return Json(std::move(chunk));
}

Json ProgressChunk(const ReplyHead& head,
                   const RequestStats& stats,
                   int64_t processed,
                   double milliseconds) {
  Json::Object chunk = Head(head, "chat.completion.chunk");
  chunk.emplace_back("choices", Json(Json::Array{}));
  chunk.emplace_back("prompt_progress", Json(Json::Object{{"total", Json(stats.prompt_tokens)},
                                                          {"cache", Json(stats.cached_tokens)},
                                                          {"processed", Json(processed)},
                                                          {"time_ms", Json(milliseconds)}}));
  return Json(std::move(chunk));
}

}  // namespace lserve
