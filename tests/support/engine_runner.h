// Runs requests through an engine to their end and records what came out: for tests that compare
// runs bit for bit.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "lserve/engine.h"

namespace lserve {

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<float> prompt_logits;  // [positions computed, vocab]
  std::vector<float> token_logits;   // [tokens, vocab]
  std::string text;
  FinishReason reason = FinishReason::kError;
  Status error;
  RequestStats stats;
};

inline std::unique_ptr<Engine> MakeEngine(const EngineConfig& config) {
  Result<std::unique_ptr<Engine>> engine = Engine::Create(config);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

// Adds all requests at once, so that they share batches; answers in the same order.
inline std::vector<Answer> RunAll(Engine& engine, std::vector<Request> requests) {
  std::vector<Answer> answers(requests.size());
  std::map<RequestId, size_t> index;
  for (size_t i = 0; i < requests.size(); ++i) {
    Answer& answer = answers[i];
    requests[i].on_prompt_logits = [&answer](int64_t, const ConstMatrix& logits) {
      const float* data = static_cast<const float*>(logits.data);
      answer.prompt_logits.insert(answer.prompt_logits.end(), data,
                                  data + logits.rows * logits.cols);
      return Status();
    };
    requests[i].on_token_logits = [&answer](std::span<const float> logits) {
      answer.token_logits.insert(answer.token_logits.end(), logits.begin(), logits.end());
    };
    const Result<RequestId> id = engine.Add(std::move(requests[i]));
    EXPECT_TRUE(id.ok()) << id.status().message();
    if (id.ok()) index[id.value()] = i;
  }
  while (engine.has_work()) {
    Result<std::vector<RequestEvent>> events = engine.Step();
    EXPECT_TRUE(events.ok()) << events.status().message();
    if (!events.ok()) break;
    for (const RequestEvent& event : events.value()) {
      Answer& answer = answers[index.at(event.id)];
      if (event.token.has_value()) answer.tokens.push_back(*event.token);
      answer.text += event.text;
      if (!event.finished.has_value()) continue;
      answer.reason = *event.finished;
      answer.error = event.error;
      answer.stats = event.stats;
    }
  }
  return answers;
}

// Without observers, so that nobody asks for logits; the answers have none.
inline std::vector<Answer> RunUnseen(Engine& engine, const std::vector<Request>& requests) {
  std::map<RequestId, size_t> index;
  for (size_t i = 0; i < requests.size(); ++i) index[engine.Add(requests[i]).value()] = i;
  std::vector<Answer> answers(requests.size());
  while (engine.has_work()) {
    for (const RequestEvent& event : engine.Step().value()) {
      Answer& answer = answers[index[event.id]];
      if (event.token) answer.tokens.push_back(*event.token);
      answer.stats = event.stats;
      answer.reason = event.finished.value_or(answer.reason);
      answer.error = event.error;
    }
  }
  return answers;
}

inline Answer RunOne(Engine& engine, Request request) {
  std::vector<Request> requests;
  requests.push_back(std::move(request));
  return RunAll(engine, std::move(requests))[0];
}

// Fails at the first float whose bits differ, with its place and both values.
inline testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) {
    return testing::AssertionFailure() << a.size() << " values against " << b.size();
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) {
      return testing::AssertionFailure() << "value " << i << ": " << a[i] << " against " << b[i];
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace lserve
