// What penalties, biases, min_tokens and constraints do to a draw, written out in the plainest way:
// for tests of engines on any device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "loader/model_config.h"
#include "support/engine_runner.h"

namespace lserve {

// Every third token, the next time from the next one on.
class EveryThird : public TokenConstraint {
 public:
  static bool Allows(size_t step, int32_t token) {
    return (token + static_cast<int>(step)) % 3 == 0;
  }

  Status Mask(std::span<uint64_t> allowed) override {
    for (size_t token = 0; token < allowed.size() * 64; ++token) {
      if (Allows(step_, static_cast<int32_t>(token))) continue;
      allowed[token / 64] &= ~(uint64_t{1} << (token % 64));
    }
    return step_ == fail_at ? Status(Code::kInvalidArgument, "nothing may come next") : Status();
  }
  Status Accept(int32_t token) override {
    EXPECT_TRUE(Allows(step_, token)) << token << " at " << step_;
    ++step_;
    return Status();
  }
  bool complete() const override { return false; }

  size_t fail_at = std::numeric_limits<size_t>::max();

 private:
  size_t step_ = 0;
};

// Greedy, with what changes logits written out: the token that a request must have drawn at `step`
// from `logits` after `answer`.
inline int32_t TokenByRule(std::vector<float> logits,
                           const Request& request,
                           const std::vector<int32_t>& eos,
                           const std::vector<int32_t>& answer) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const SamplingParams& sampling = request.sampling;
  const size_t step = answer.size();
  for (size_t token = 0; token < logits.size(); ++token) {
    const int32_t id = static_cast<int32_t>(token);
    const auto in = [&](const std::vector<int32_t>& ids) {
      return std::count(ids.begin(), ids.end(), id);
    };
    float& logit = logits[token];
    const bool ends = in(eos) + in(request.stop_token_ids) > 0;
    if (ends && static_cast<int64_t>(step) < request.min_tokens) logit = kNever;
    if (request.constraint != nullptr && !EveryThird::Allows(step, id)) logit = kNever;
    for (const auto& [biased, bias] : sampling.logit_bias) logit += biased == id ? bias : 0;
    const float repetition = static_cast<float>(sampling.repetition_penalty);
    if (in(request.prompt) + in(answer) > 0) {
      logit = logit > 0 ? logit / repetition : logit * repetition;
    }
    if (in(answer) > 0) {
      logit -= static_cast<float>(sampling.presence_penalty +
                                  sampling.frequency_penalty * static_cast<double>(in(answer)));
    }
  }
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Requests like `base`, greedy, each with something else that changes its logits, in one batch: the
// tokens are what the rule says of the logits that an observer sees, which come before all changes;
// without an observer they are the same, and no logit leaves the device.
inline void ExpectDrawsByRule(Engine& engine, const Request& base) {
  const ModelConfig& model = engine.model_config();
  const size_t vocab = static_cast<size_t>(model.vocab_size);
  const auto requests = [&] {
    std::vector<Request> made;
    for (int i = 0; i < 7; ++i) {
      Request request = base;
      request.prompt.resize(base.prompt.size() - static_cast<size_t>(i));
      request.ignore_eos = false;
      request.sampling.temperature = 0;
      SamplingParams& sampling = request.sampling;
      if (i == 0 || i == 5) sampling.repetition_penalty = 1.5;
      if (i == 1 || i == 5) sampling.frequency_penalty = 0.6;
      if (i == 2) sampling.presence_penalty = 0.9;
      if (i == 3 || i == 5) sampling.logit_bias = {{50, 2.5f}, {3, -100.0f}};
      if (i == 4) {
        for (size_t token = 0; token < vocab; token += 2) {
          request.stop_token_ids.push_back(static_cast<int32_t>(token));
        }
        request.min_tokens = request.max_tokens - 6;
      }
      if (i >= 5) request.constraint = std::make_shared<EveryThird>();
      made.push_back(std::move(request));
    }
    return made;
  };
  const std::vector<Answer> seen = RunAll(engine, requests());
  const std::vector<Answer> unseen = RunUnseen(engine, requests());
  const std::vector<Request> asked = requests();
  for (size_t i = 0; i < asked.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(seen[i].error.ok()) << seen[i].error.message();
    ASSERT_FALSE(seen[i].tokens.empty());
    ASSERT_EQ(seen[i].token_logits.size(), seen[i].tokens.size() * vocab);
    std::vector<int32_t> answer;
    const float* logits = seen[i].token_logits.data();
    for (const int32_t token : seen[i].tokens) {
      ASSERT_EQ(token, TokenByRule({logits, logits + vocab}, asked[i], model.eos_token_ids, answer))
          << "step " << answer.size();
      answer.push_back(token);
      logits += vocab;
    }
    EXPECT_EQ(unseen[i].tokens, seen[i].tokens);
    EXPECT_EQ(unseen[i].stats.logit_copies, 0);
    EXPECT_EQ(seen[i].stats.logit_copies, static_cast<int64_t>(answer.size()));
  }
  EXPECT_GE(static_cast<int64_t>(unseen[4].tokens.size()), asked[4].min_tokens);
}

}  // namespace lserve
