// What the endpoints answer, as JSON in OpenAI's shape: whole responses, stream chunks, usage, log
// probabilities. The mirror of openai_types.h. Used by generation.cc and service.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "lserve/request.h"
#include "server/engine_thread.h"
#include "tokenizer/tokenizer.h"

namespace lserve {

enum class ReplyKind : uint8_t { kChat, kCompletion };

// What all parts of one reply share.
struct ReplyHead {
  ReplyKind kind = ReplyKind::kChat;
  std::string id;
  int64_t created = 0;  // Unix seconds
  std::string model;
};

// A token with what it was likely as, and the most likely ones at its place.
struct ScoredToken {
  std::vector<TokenScore> scores;  // the drawn one first
  int64_t text_offset = 0;         // characters of the answer before it
};

struct ChoiceState {
  std::string text;
  int64_t characters = 0;  // of the text so far, sent ones included
  std::vector<ScoredToken> scored;
  std::optional<FinishReason> finished;
  RequestStats stats;
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t completion_tokens = 0;

  Json ToJson() const;
};

// What is said of one request's work, in llama.cpp's names where the meaning is the same.
Json TimingsJson(const RequestStats& stats);

// A whole, non-streaming response. `scores`: whether log probabilities were asked for.
Json WholeReply(const ReplyHead& head,
                const std::vector<ChoiceState>& choices,
                const Usage& usage,
                bool scores,
                const Tokenizer& tokenizer);

// One piece of a stream.
struct ChunkParts {
  size_t index = 0;
  bool with_role = false;  // chat: the first chunk of a choice
  std::string_view text = {};
  const ScoredToken* scored = nullptr;
  std::optional<FinishReason> finished = {};
  const RequestStats* timings = nullptr;
  bool null_usage = false;  // include_usage: every chunk but the last says "usage": null
};
Json Chunk(const ReplyHead& head, const ChunkParts& parts, const Tokenizer& tokenizer);
// The last chunk of a stream with include_usage: no choices.
Json UsageChunk(const ReplyHead& head, const Usage& usage);
// llama.cpp's return_progress: how far the prompt is read.
Json ProgressChunk(const ReplyHead& head,
                   const RequestStats& stats,
                   int64_t processed,
                   double milliseconds);

}  // namespace lserve
