// Requests of a million tokens, for the tests that ask one.
#pragma once

#include <string>
#include <utility>

#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace lserve {

inline constexpr int64_t kMillion = int64_t{1} << 20;

// Sparse from the first token on, in large steps.
inline EngineConfig MillionConfig(const std::string& model_dir) {
  EngineConfig config;
  config.model_dir = model_dir;
  config.device = "cpu";
  config.num_threads = 2;
  config.kv_cache_bytes = size_t{1} << 30;
  config.max_num_batched_tokens = 4096;
  config.attention.mode = AttentionMode::kSparse;
  return config;
}

inline Request AskMillion(int64_t max_tokens) {
  Request request;
  request.prompt = RandomTokens(kMillion, 97, 1);
  request.max_tokens = max_tokens;
  request.sampling.temperature = 0;
  request.ignore_eos = true;
  return request;
}

// RunOne(), but without the logits of the prompt, which are 400 MB.
inline Answer RunQuietly(Engine& engine, Request request) {
  Answer answer;
  request.on_token_logits = [&answer](std::span<const float> logits) {
    answer.token_logits.insert(answer.token_logits.end(), logits.begin(), logits.end());
  };
  const Result<RequestId> id = engine.Add(std::move(request));
  EXPECT_TRUE(id.ok()) << id.status().message();
  while (engine.has_work()) {
    const Result<std::vector<RequestEvent>> events = engine.Step();
    EXPECT_TRUE(events.ok()) << events.status().message();
    if (!events.ok()) break;
    for (const RequestEvent& event : events.value()) {
      if (event.token) answer.tokens.push_back(*event.token);
      if (!event.finished) continue;
      answer.reason = *event.finished;
      answer.error = event.error;
      answer.stats = event.stats;
    }
  }
  return answer;
}

}  // namespace lserve
