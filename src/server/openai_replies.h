// What the chat and completion endpoints answer, as JSON in OpenAI's shape: whole responses, stream
// chunks, usage, log probabilities. The mirror of openai_types.h. Used by the service.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "server/reply_format.h"
#include "tokenizer/tokenizer.h"

namespace lserve {

enum class ReplyKind : uint8_t { kChat, kCompletion };

// What all parts of one reply share.
struct OpenAiReplyOptions {
  ReplyKind kind = ReplyKind::kChat;
  std::string id;
  int64_t created = 0;  // Unix seconds
  std::string model;
  bool include_usage = false;    // in a stream
  bool return_progress = false;  // llama.cpp's: tells how far the prompt is read
  bool scores = false;           // log probabilities were asked for
  // Of each choice: the text that goes before the answer; empty: none of them has any.
  std::vector<std::string> echoes = {};
};

// `tokenizer` must outlive it.
std::unique_ptr<ReplyFormat> MakeOpenAiReplies(OpenAiReplyOptions options,
                                               const Tokenizer& tokenizer);

// What is said of one request's work, in llama.cpp's names where the meaning is the same.
Json TimingsJson(const RequestStats& stats);

}  // namespace lserve
