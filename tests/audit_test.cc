// The audit says what sparse steps leave out and changes nothing; what its probe measures is what
// attention did.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "bench/metered_backend.h"
#include "engine/attention_probe.h"
#include "engine/auditor.h"
#include "engine/engine_inputs.h"
#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

constexpr int kVocab = 97;

class Audit : public testing::Test {
 protected:
  // Layer 0 streams in full, layer 1 retrieves in full, layer 2 is mixed.
  static RandomModelShape Shape() {
    RandomModelShape shape;
    shape.kinds = {0, 0, 1, 1, 1, 0};
    return shape;
  }
  static AttentionSettings Sparse(int budget) {
    AttentionSettings settings;
    settings.mode = AttentionMode::kSparse;
    settings.token_budget = budget;
    settings.sink_tokens = 20;
    settings.recent_tokens = 50;
    settings.selector_interval = 3;
    settings.prefill_threshold = 0;
    return settings;
  }
  std::unique_ptr<Engine> Make(double audit_rate, int budget = 256) {
    EngineConfig config;
    config.model_dir = checkpoint_.dir();
    config.num_threads = 2;
    config.kv_cache_bytes = size_t{64} << 20;
    config.attention = Sparse(budget);
    config.audit_rate = audit_rate;
    config.max_num_seqs = 2;
    return MakeEngine(config);
  }
  static Request Ask(int64_t length, uint64_t seed, int64_t max_tokens) {
    Request request;
    request.prompt = RandomTokens(length, kVocab, seed);
    request.sampling.temperature = 0;
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    return request;
  }

  RandomCheckpoint checkpoint_{Shape()};
};

TEST_F(Audit, ChangesNoAnswer) {
  const auto run = [&](double rate) {
    const std::unique_ptr<Engine> engine = Make(rate);
    std::vector<Request> requests = {Ask(700, 1, 9), Ask(500, 2, 9)};
    requests[0].keep_prefix = 600;
    std::vector<Answer> answers = RunAll(*engine, std::move(requests));
    Request again = Ask(700, 1, 9);  // from the kept prefix
    answers.push_back(RunOne(*engine, std::move(again)));
    AuditStats sum;
    for (const Answer& answer : answers) sum.Add(answer.stats.audit);
    EXPECT_EQ(sum.steps, engine->audit().steps);
    EXPECT_EQ(sum.kl, engine->audit().kl);
    engine->DropPrefixes();
    EXPECT_EQ(engine->kv_bytes_in_use(), 0u);
    return answers;
  };
  const std::vector<Answer> plain = run(0), audited = run(1);
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_EQ(plain[i].tokens, audited[i].tokens) << i;
    EXPECT_TRUE(SameBits(plain[i].token_logits, audited[i].token_logits)) << i;
    EXPECT_EQ(plain[i].stats.audit.steps, 0);
    const RequestStats& stats = audited[i].stats;
    const AuditStats& audit = stats.audit;
    EXPECT_EQ(stats.sparse_steps, 8);
    EXPECT_EQ(audit.steps, 8);
    EXPECT_EQ(audit.skipped_steps, 0);
    EXPECT_EQ(audit.retrieval_steps, 8);
    EXPECT_EQ(audit.streaming_steps, 8);
    const double recall = audit.retrieval_recall / 8, streaming = audit.streaming_recall / 8;
    EXPECT_GT(audit.lowest_retrieval_recall, 0);
    EXPECT_LE(audit.lowest_retrieval_recall, recall);
    EXPECT_LT(recall, 1);
    EXPECT_LE(audit.lowest_streaming_recall, streaming);
    EXPECT_LT(streaming, 1);
    EXPECT_GT(audit.kl, 0);
    EXPECT_GT(audit.seconds, 0);
    // The pages that the streaming heads do not see stay.
    EXPECT_GT(stats.kv_bytes, plain[i].stats.kv_bytes);
  }
}

// The first decode step has the same cache whatever the budget of decode.
TEST_F(Audit, DivergenceIsFromAPassOverEveryPage) {
  const Answer audited = RunOne(*Make(1), Ask(600, 5, 2));
  const Answer all = RunOne(*Make(0, 1 << 20), Ask(600, 5, 2));
  const auto second = [](const Answer& answer) {
    return std::span(answer.token_logits).subspan(kVocab, kVocab);
  };
  EXPECT_EQ(all.stats.selections, 0);
  const LogitDifference expected = CompareLogits(second(all), second(audited));
  EXPECT_GT(expected.kl, 0);
  EXPECT_EQ(audited.stats.audit.kl, expected.kl);
  EXPECT_EQ(audited.stats.audit.same_top, expected.same_top ? 1 : 0);
}

TEST_F(Audit, WhatReadsEverythingHasNothingToAudit) {
  const Answer within = RunOne(*Make(1, 4096), Ask(600, 5, 4));
  EXPECT_EQ(within.stats.audit.steps, 3);
  EXPECT_EQ(within.stats.audit.retrieval_steps, 0);
  EXPECT_EQ(within.stats.audit.streaming_steps, 3);
  Request dense = Ask(600, 5, 4);
  dense.attention = Sparse(256);
  dense.attention->mode = AttentionMode::kDense;
  const Answer answer = RunOne(*Make(1), std::move(dense));
  EXPECT_EQ(answer.stats.audit.steps, 0);
}

TEST_F(Audit, TakesItsShare) {
  const std::unique_ptr<Engine> engine = Make(0.25);
  const Answer first = RunOne(*engine, Ask(600, 5, 13)), second = RunOne(*engine, Ask(600, 6, 13));
  EXPECT_EQ(first.stats.audit.steps + second.stats.audit.steps, 6);
  EXPECT_GT(first.stats.audit.streaming_steps, 0);
  EXPECT_EQ(second.stats.audit.streaming_steps, 0);  // trimmed, as every request but each fourth
}

TEST_F(Audit, RatesOutOfRangeAreRefused) {
  EngineConfig config;
  config.model_dir = checkpoint_.dir();
  config.audit_rate = 1.5;
  EXPECT_THAT(Engine::Create(config).status().message(), testing::HasSubstr("--audit-rate is 1.5"));
}

// A backend may keep copies of a step's host arrays by address (Backend::BeginStep), so an address
// must not come back with other content before the next step.
class AddressChecker final : public MeteredBackend {
 public:
  AddressChecker(std::unique_ptr<Backend> inner, OpMeter* meter, int* violations)
      : MeteredBackend(std::move(inner), meter), violations_(violations) {}

  void BeginStep() override {
    seen_.clear();
    MeteredBackend::BeginStep();
  }
  Status PrefillAttention(const AttentionParams& params) override {
    Check(*params.plan);
    return MeteredBackend::PrefillAttention(params);
  }
  Status DecodeAttention(const AttentionParams& params) override {
    Check(*params.plan);
    return MeteredBackend::DecodeAttention(params);
  }
  Status PageLogSums(const PageLogSumsParams& params) override {
    Check(*params.plan);
    return MeteredBackend::PageLogSums(params);
  }

 private:
  void Check(const PagePlan& plan) {
    std::string rows;
    for (const PlanRow& row : plan.rows) {
      for (const int64_t field :
           {int64_t{row.sequence}, int64_t{Index(row.way)}, int64_t{row.slot},
            int64_t{row.first_query}, row.first_position, row.sink_end, row.window,
            int64_t{row.first_run}, int64_t{row.num_runs}, int64_t{row.selection},
            int64_t{row.newest.first}, int64_t{row.newest.last}}) {
        rows += std::to_string(field) + " ";
      }
    }
    for (const void* address :
         {static_cast<const void*>(&plan), static_cast<const void*>(plan.rows.data())}) {
      const auto [at, is_new] = seen_.try_emplace(address, rows);
      if (!is_new && at->second != rows) ++*violations_;
    }
  }

  int* violations_;
  std::map<const void*, std::string> seen_;
};

TEST_F(Audit, ObserversKeepToTheStep) {
  EngineConfig config;
  config.model_dir = checkpoint_.dir();
  config.kv_cache_bytes = size_t{64} << 20;
  config.attention = Sparse(256);
  config.audit_rate = 1;
  OpMeter meter;
  int violations = 0;
  EngineInputs inputs;
  inputs.wrap_backend = [&](std::unique_ptr<Backend> inner) {
    return std::make_unique<AddressChecker>(std::move(inner), &meter, &violations);
  };
  const std::unique_ptr<Engine> engine = Engine::Create(config, std::move(inputs)).value();
  Request request = Ask(600, 7, 4);
  request.on_attention = [&](const AttentionView& view) {
    const int64_t positions[] = {view.end() - 1};
    LS_TRY(MeasureMass(view, positions));
    LS_TRY(MeasureStreamingChange(view, positions, Sparse(256)));
    return Status();
  };
  EXPECT_EQ(RunOne(*engine, std::move(request)).stats.audit.steps, 3);
  EXPECT_EQ(violations, 0);
}

// Shares of selected rows are those of their pages; an output with sink and window only does not
// change if sink and window are all it had.
TEST_F(Audit, ProbeMeasuresWhatThePlanShowed) {
  const std::unique_ptr<Engine> engine = Make(1);  // keeps the streaming pages
  const AttentionSettings settings = Sparse(256);
  AttentionSettings wider = settings;
  wider.recent_tokens = 300;
  Request request = Ask(600, 7, 3);
  int seen_layers = 0;
  request.on_attention = [&](const AttentionView& view) {
    if (!view.decodes) return Status();
    ++seen_layers;
    const int64_t position = view.range.first_position;
    const QueryMass mass = MeasureMass(view, {&position, 1}).value()[0];
    EXPECT_EQ(mass.heads.size(), 2u);
    const KvLayout& layout = view.attention->store->layout();
    for (const HeadMass& head : mass.heads) {
      double all = 0;
      for (const double page : head.pages) all += page;
      EXPECT_NEAR(all, 1, 1e-6);
      if (head.way != Way::kRetrieval) continue;
      const HeadSlot at = layout.slots[static_cast<size_t>(view.layer() * 2 + head.kv_head)];
      const int entry = layout.way(at.way).first_entry[static_cast<size_t>(view.layer())] + at.slot;
      double listed = 0;
      for (const PlanRow& row : view.attention->plan->rows) {
        if (row.way != Way::kRetrieval) continue;
        ForEachPage(*view.attention->plan, row, entry,
                    [&](PageIdx page) { listed += head.pages[static_cast<size_t>(page)]; });
      }
      EXPECT_NEAR(head.seen, listed, 1e-6);
      EXPECT_LT(head.seen, 1);
    }
    const std::vector<double> same =
        MeasureStreamingChange(view, {&position, 1}, settings).value()[0];
    const std::vector<double> more = MeasureStreamingChange(view, {&position, 1}, wider).value()[0];
    for (const HeadMass& head : mass.heads) {
      const size_t h = static_cast<size_t>(head.kv_head);
      if (head.way == Way::kStreaming) {
        EXPECT_EQ(same[h], 0);
      }
      EXPECT_GT(more[h], 0);
    }
    return Status();
  };
  RunOne(*engine, std::move(request));
  EXPECT_EQ(seen_layers, 2 * 3);
}

}  // namespace
}  // namespace lserve
