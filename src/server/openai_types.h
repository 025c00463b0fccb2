// What the POST endpoints are asked for, as plain structs, and how JSON becomes them. JSON ends
// here: nothing behind it reads a request's JSON. Every field has a type and a range; what would
// change the answer and is not implemented is refused by name, the rest is ignored as OpenAI does.
// Used by the service.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "lserve/request.h"
#include "server/api_error.h"
#include "server/output_options.h"

namespace lserve {

// Bounds of what one request may ask for.
inline constexpr int kMaxChoices = 16;
inline constexpr size_t kMaxPrompts = 64;
inline constexpr size_t kMaxStops = 16;
inline constexpr size_t kMaxStopBytes = 1024;
inline constexpr size_t kMaxCacheSaltBytes = 256;
inline constexpr size_t kMaxStopTokenIds = 256;
inline constexpr size_t kMaxLogitBias = 1024;
inline constexpr int kMaxTopLogprobs = 20;
inline constexpr size_t kMaxMessages = 4096;
inline constexpr size_t kMaxTemplateArguments = 32;

// What chat and plain completions share.
struct GenerationParams {
  std::string model;  // empty: whatever is served
  bool stream = false;
  bool include_usage = false;    // stream_options
  bool return_progress = false;  // llama.cpp's: tells how far a prompt is read
  int n = 1;
  std::optional<int64_t> max_tokens;
  int64_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::optional<int> top_logprobs;  // set: log probabilities are wanted

  // Unset: the server's defaults.
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
  std::optional<int64_t> top_k;
  std::optional<int64_t> seed;
  std::vector<std::pair<int32_t, float>> logit_bias;

  OutputFormat format;     // response_format
  std::string cache_salt;  // shares prefixes with requests of the same salt only

  int64_t priority = 0;  // lower values are served first

  // "sparse": {"attention": ..., "token_budget": ...}
  std::optional<AttentionMode> attention;
  std::optional<int> token_budget;
};

struct ChatBody {
  GenerationParams params;
  // Of {"role", "content"} with text contents; an assistant's may have "tool_calls" (OpenAI's, the
  // arguments parsed), a tool's has "tool_call_id".
  Json messages;
  ToolOptions tools;
  Json template_arguments = Json(Json::Object{});
  bool add_generation_prompt = true;
};

struct CompletionPrompt {
  std::string text;
  std::vector<int32_t> token_ids;  // not empty: instead of `text`
};

struct CompletionBody {
  GenerationParams params;
  std::vector<CompletionPrompt> prompts;
  bool echo = false;
};

// POST /tokenize: a text, or messages for the chat template.
struct TokenizeBody {
  std::string model;
  std::optional<std::string> text;
  ChatBody chat;  // if there is no text
  bool add_special_tokens = true;
  bool return_token_strings = false;
};

struct DetokenizeBody {
  std::string model;
  std::vector<int32_t> tokens;
};

// Each fills `out` or says what is wrong.
std::optional<ApiError> ParseBody(const Json& json, ChatBody* out);
std::optional<ApiError> ParseBody(const Json& json, CompletionBody* out);
std::optional<ApiError> ParseBody(const Json& json, TokenizeBody* out);
std::optional<ApiError> ParseBody(const Json& json, DetokenizeBody* out);

}  // namespace lserve
