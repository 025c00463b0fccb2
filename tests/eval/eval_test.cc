// Short texts: the evaluations tell good streaming heads from bad ones, know which path ran, go on
// after an interrupt, and find no difference where there is none.
#include <gmock/gmock.h>

#include "eval/fidelity.h"
#include "eval/filler_text.h"
#include "support/eval_support.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

NiahOptions ShortNiah() {
  NiahOptions options;
  options.kinds = {NiahKind::kSingle, NiahKind::kMultiKey};
  options.lengths = {1024};
  // Out of reach of a streaming head: behind 128 sink tokens, before the last 256.
  options.depths = {0.3, 0.45, 0.6};
  options.seed = 5;
  return options;
}

TEST(Niah, CalibratedHeadsAnswerAsDenseDoes) {
  const std::unique_ptr<Engine> engine = MustMake(NeedleConfig(512));
  const TrialRun run = RunNiah(*engine, ShortNiah());
  ASSERT_TRUE(run.status.ok()) << run.status.message();
  ASSERT_THAT(run.records, SizeIs(6));
  const TrialSummary summary = Summarize(run.records);
  EXPECT_EQ(summary.dense, 1.0);
  EXPECT_EQ(summary.sparse, 1.0);
  EXPECT_EQ(summary.ran_sparse, 6);
  EXPECT_LT(summary.page_share, 0.6);
  for (const TrialRecord& record : run.records) {
    EXPECT_EQ(record.arm(Arm::kDense).stats.sparse_steps, 0);
    EXPECT_EQ(record.arm(Arm::kSparse).stats.dense_steps, 0);
  }
}

// Half of the heads stream as with the calibrated file, but the wrong ones. A draw may be lucky:
// of seeds 1 to 12 three are (1, 7, 9), where the heads that retrieve happen to stay. Four of these
// six must fail.
TEST(Niah, RandomHeadsVisiblyFail) {
  int failing = 0;
  NiahOptions options = ShortNiah();
  options.depths = {0.45};
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    const RandomHeads heads(seed);
    EngineConfig config = NeedleConfig(512);
    config.streaming_heads = heads.path();
    config.streaming_ratio = 0.5;
    const std::unique_ptr<Engine> engine = MustMake(config);
    const TrialRun run = RunNiah(*engine, options);
    ASSERT_TRUE(run.status.ok()) << run.status.message();
    const TrialSummary summary = Summarize(run.records);
    EXPECT_EQ(summary.dense, 1.0) << seed;
    if (summary.sparse > 0.5) continue;
    ++failing;
    EXPECT_THAT(SummaryLines(run.records), HasSubstr("worse: "));
  }
  EXPECT_GE(failing, 4);
}

TEST(Niah, EqualSeedsEqualAnswers) {
  const std::unique_ptr<Engine> engine = MustMake(NeedleConfig(512));
  NiahOptions options = ShortNiah();
  options.kinds = {NiahKind::kSingle};
  options.depths = {0.5};
  const auto answer = [&](uint64_t seed) {
    options.seed = seed;
    const TrialRun run = RunNiah(*engine, options);
    return run.records.at(0).arm(Arm::kSparse).text + run.records.at(0).expected.at(0);
  };
  EXPECT_EQ(answer(1), answer(1));
  EXPECT_NE(answer(1), answer(2));
}

TEST(Niah, GoesOnAfterAnInterrupt) {
  const std::unique_ptr<Engine> engine = MustMake(NeedleConfig(512));
  const NiahOptions options = ShortNiah();
  const std::vector<TrialSpec> specs = NiahTrials(*engine->tokenizer(), options);
  ResultLog log = ResultLog::Open("", Json()).value();
  size_t done = 0;
  EvalHooks hooks;
  hooks.on_progress = [&](const EvalProgress& progress) { done = progress.cells_done; };
  hooks.should_stop = [&] { return done >= 2; };
  const TrialRun first = RunTrials(*engine, specs, log, hooks);
  EXPECT_TRUE(first.interrupted);
  EXPECT_TRUE(first.status.ok());
  EXPECT_THAT(first.records, SizeIs(2));
  EXPECT_EQ(engine->has_work(), false);

  size_t asked = 0;
  hooks.should_stop = nullptr;
  hooks.on_progress = [&](const EvalProgress& progress) { asked = progress.cells_total; };
  const TrialRun second = RunTrials(*engine, specs, log, hooks);
  EXPECT_EQ(asked, 4u);
  ASSERT_THAT(second.records, SizeIs(6));
  const TrialRun whole = RunNiah(*engine, options);
  for (size_t i = 0; i < 6; ++i) {
    for (const Arm arm : kArms) {
      EXPECT_EQ(second.records[i].arm(arm).text, whole.records[i].arm(arm).text);
      EXPECT_EQ(second.records[i].arm(arm).score, whole.records[i].arm(arm).score);
    }
  }
}

TEST(Path, ContradictionsAreErrors) {
  AttentionSettings dense, sparse;
  dense.mode = AttentionMode::kDense;
  sparse.mode = AttentionMode::kSparse;
  sparse.token_budget = 1024;
  EngineInfo info;
  info.num_kv_heads = 24;
  info.num_streaming_kv_heads = 12;
  RequestStats all;  // everything was read
  all.prompt_tokens = 4096;
  all.dense_steps = 5;
  all.pages_visited = all.pages_present = 100;
  all.prefill_tiles_visited = all.prefill_tiles_present = 50;
  EXPECT_TRUE(CheckPath(dense, info, all, "x").ok());
  EXPECT_THAT(CheckPath(sparse, info, all, "x").message(), HasSubstr("x: prefill_tiles_visited"));
  RequestStats half = all;
  half.prefill_tiles_visited = 25;
  EXPECT_THAT(CheckPath(sparse, info, half, "x").message(), HasSubstr("dense_steps is 5"));
  EXPECT_THAT(CheckPath(dense, info, half, "x").message(), HasSubstr("every tile when dense"));
  half.dense_steps = 0;
  half.sparse_steps = 5;
  EXPECT_THAT(CheckPath(sparse, info, half, "x").message(), HasSubstr("fewer than all pages"));
  half.pages_visited = 30;
  EXPECT_TRUE(CheckPath(sparse, info, half, "x").ok());
  EXPECT_THAT(CheckPath(dense, info, half, "x").message(), HasSubstr("sparse_steps is 5"));
  // Within the budget and without streaming heads nothing is promised.
  info.num_streaming_kv_heads = 0;
  sparse.token_budget = 8192;
  EXPECT_FALSE(ExpectPath(sparse, info, 4096).sparse());
  EXPECT_TRUE(CheckPath(sparse, info, all, "x").ok());
  sparse.token_budget = 1024;
  EXPECT_TRUE(ExpectPath(sparse, info, 4096).sparse_decode);
  sparse.mode = AttentionMode::kAuto;  // dense below 8192
  EXPECT_FALSE(ExpectPath(sparse, info, 4096).sparse());
}

FidelityOptions ShortFidelity(const Engine& engine, int64_t num_tokens) {
  FidelityOptions options;
  options.config = NeedleConfig(1024);
  options.decode_tokens = 24;
  FillerText filler(9);
  std::string text;
  while (text.size() < static_cast<size_t>(num_tokens) * 8) text += filler.Sentence() + " ";
  options.texts = {{"text", engine.tokenizer()->Encode(text).value()}};
  LS_CHECK_GE(static_cast<int64_t>(options.texts[0].tokens.size()), num_tokens);
  options.texts[0].tokens.resize(static_cast<size_t>(num_tokens));
  return options;
}

FidelityRun RunFidelityOnce(const FidelityOptions& options) {
  ResultLog log = ResultLog::Open("", Json()).value();
  return RunFidelity(options, log, {});
}

TEST(Fidelity, NothingDiffersWhereEverythingIsRead) {
  const std::unique_ptr<Engine> engine = MustMake(NeedleConfig(1024));
  FidelityOptions options = ShortFidelity(*engine, 1200);
  options.ratios = {0.0};
  options.budgets = {256, 2048};
  const FidelityRun run = RunFidelityOnce(options);
  ASSERT_TRUE(run.status.ok()) << run.status.message();
  ASSERT_THAT(run.records, SizeIs(3));
  const FidelityRecord& prefill = run.records[0];
  EXPECT_EQ(prefill.budget, std::nullopt);
  EXPECT_EQ(prefill.divergence.positions, 1200 - 24);
  EXPECT_EQ(prefill.divergence.same_top, prefill.divergence.positions);
  // Bitwise equal logits: what is left is the rounding of 1 - 1 per position.
  EXPECT_LT(prefill.divergence.kl, 1e-12 * 1200);
  EXPECT_EQ(prefill.divergence.loss, prefill.divergence.reference_loss);
  EXPECT_EQ(prefill.visited, prefill.present);
  const FidelityRecord& small = run.records[1];
  EXPECT_EQ(small.budget, 256);
  EXPECT_EQ(small.divergence.positions, 23);  // the first of the 24 is prefill's
  EXPECT_GT(small.divergence.kl, 1e-4);
  // All heads select; each of the 24 says how much of its attention the selected pages carry.
  EXPECT_EQ(small.recall.positions, 23);
  ASSERT_THAT(small.recall.sum, SizeIs(24));
  for (size_t head = 0; head < 24; ++head) {
    EXPECT_GT(small.recall.mean(head), 0.0);
    EXPECT_LT(small.recall.mean(head), 1.0);
    EXPECT_EQ(small.recall.streaming[head], 0);
  }
  EXPECT_LT(small.visited, small.present / 3);
  const FidelityRecord& large = run.records[2];
  EXPECT_EQ(large.divergence.same_top, 23);
  EXPECT_LT(large.divergence.kl, 1e-12 * 23);
  EXPECT_EQ(large.visited, large.present);
  EXPECT_NEAR(large.recall.mean(0), 1.0, 1e-5);
  EXPECT_THAT(FidelityTable(run.records), HasSubstr("attention on what each head was shown"));
}

// The sums do not depend on which budget read the text, nor on a resumed log.
TEST(Fidelity, PrefixAndLogChangeNothing) {
  const std::unique_ptr<Engine> engine = MustMake(NeedleConfig(1024));
  FidelityOptions options = ShortFidelity(*engine, 1000);
  options.ratios = {0.5};
  options.budgets = {256, 512};
  const FidelityRun forward = RunFidelityOnce(options);
  options.budgets = {512, 256};
  const FidelityRun backward = RunFidelityOnce(options);
  ASSERT_THAT(forward.records, SizeIs(3));
  ASSERT_THAT(backward.records, SizeIs(3));
  EXPECT_EQ(forward.records[0].streaming_heads, 12);
  EXPECT_GT(forward.records[0].divergence.kl, 0.0);
  for (const auto& [a, b] : {std::pair(0, 0), std::pair(1, 2), std::pair(2, 1)}) {
    EXPECT_EQ(forward.records[a].budget, backward.records[b].budget);
    EXPECT_EQ(forward.records[a].divergence.kl, backward.records[b].divergence.kl);
    EXPECT_EQ(forward.records[a].visited, backward.records[b].visited);
    EXPECT_EQ(forward.records[a].recall.sum, backward.records[b].recall.sum);
  }

  ResultLog log = ResultLog::Open("", Json()).value();
  options.budgets = {256};
  ASSERT_THAT(RunFidelity(options, log, {}).records, SizeIs(2));
  options.budgets = {256, 512};
  const FidelityRun resumed = RunFidelity(options, log, {});
  ASSERT_THAT(resumed.records, SizeIs(3));
  EXPECT_EQ(resumed.records[2].divergence.kl, forward.records[2].divergence.kl);
  // What the log holds comes back, and what it can not hold is an error.
  const FidelityRecord& decode = resumed.records[1];
  EXPECT_EQ(FidelityFromJson(ToJson(decode), "x").value().recall.sum, decode.recall.sum);
  EXPECT_EQ(std::accumulate(decode.recall.streaming.begin(), decode.recall.streaming.end(), 0), 12);
  Json broken = ToJson(decode);
  for (auto& [name, value] : broken.mutable_object()) {
    if (name == "recall_sum") value.mutable_array().pop_back();
  }
  EXPECT_THAT(FidelityFromJson(broken, "x").status().message(), HasSubstr("x: \"recall_sum\""));
}

TEST(Fidelity, TextsThatDoNotFitAreErrors) {
  const FidelityText text{"f", std::vector<int32_t>(100, 1)};
  EXPECT_THAT(CheckFidelityText(text, 256, 4096).message(), HasSubstr("f: has 100 tokens"));
  EXPECT_THAT(CheckFidelityText(text, 24, 64).message(), HasSubstr("cut it with --length 64"));
  EXPECT_TRUE(CheckFidelityText(text, 24, 4096).ok());
}

}  // namespace
}  // namespace lserve
