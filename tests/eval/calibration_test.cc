// Calibration finds the heads that the bundled model retrieves with, from documents of a thousand
// tokens; what it measures is what attention did.
#include "eval/calibration.h"

#include <gmock/gmock.h>

#include "support/eval_support.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr int kHeads = 4;  // KV heads of a layer

PasskeyOptions Short(uint64_t seed, int64_t length) {
  return {.length = length, .documents = 1, .questions = 3, .seed = seed};
}

CalibrationOptions ShortCalibration(const Tokenizer& tokenizer, int64_t length = 1024) {
  CalibrationOptions options;
  options.config = NeedleConfig(1024);
  options.samples = PasskeySamples(tokenizer, Short(2, length)).value();
  options.checks = PasskeySamples(tokenizer, Short(3, length)).value();
  for (const uint64_t seed : {2, 3}) {
    const std::vector<int32_t> tokens = MadeText(tokenizer, length, seed).value();
    (seed == 2 ? options.samples : options.checks)
        .push_back(TextSamples("text", tokens, length, 1, 384).value()[0]);
  }
  options.target_ratio = 0.5;
  return options;
}

// Those whose absence costs answers when they alone stream (the model's card), worst first.
constexpr int kRetrieval[] = {4 * kHeads + 2, 2 * kHeads + 3, 3 * kHeads + 0, 4 * kHeads + 0,
                              2 * kHeads + 1};

TEST(Calibration, KeepsTheHeadsThatRetrieve) {
  const std::unique_ptr<Engine> engine = MustMake(NeedleConfig(1024));
  CalibrationOptions options = ShortCalibration(*engine->tokenizer());
  // A file that has it all wrong: it lets those stream first.
  options.other = StreamingHeadsFile{.layers = 6, .kv_heads = kHeads, .score = {}, .kind = {}};
  options.other->score.assign(24, 1.0f);
  for (const int head : kRetrieval) options.other->score[static_cast<size_t>(head)] = 0.0f;
  options.other_name = "wrong";
  const CalibrationResult result = RunCalibration(options, {}).value();
  EXPECT_FALSE(result.interrupted);
  EXPECT_GT(result.queries, 30);
  for (const int head : kRetrieval) {
    EXPECT_EQ((*result.file.kind)[static_cast<size_t>(head)], 1)
        << "head " << head / kHeads << "." << head % kHeads;
  }
  ASSERT_THAT(result.checks, SizeIs(2));
  const CutCheck& ours = result.checks[0];
  const CutCheck& wrong = result.checks[1];
  EXPECT_EQ(ours.name, "calibrated");
  EXPECT_EQ(ours.streaming_heads, 12);
  EXPECT_EQ(ours.answers, 3);
  EXPECT_EQ(ours.right, 3);
  EXPECT_LT(wrong.right, 3);
  EXPECT_LT(*ours.answer_kl, *wrong.answer_kl / 10);
  EXPECT_TRUE(ours.text_kl.has_value());
  const HeadComparison comparison = CompareHeads(result.file, *options.other);
  EXPECT_LT(comparison.rank_correlation, 0);
  EXPECT_EQ(comparison.retrieval, 12);
  EXPECT_EQ(comparison.both_retrieval + static_cast<int64_t>(comparison.only_ours.size()), 12);
  EXPECT_THAT(CalibrationText(result, options), HasSubstr("wrong: rank correlation -"));
  EXPECT_THAT(CalibrationSvg(result), HasSubstr("</svg>"));
  // What is written is what the loader reads.
  const StreamingHeadsFile read =
      ParseStreamingHeads(WriteJson(CalibrationToJson(result, options)), "x").value();
  EXPECT_EQ(*read.kind, *result.file.kind);
}

TEST(Calibration, TheSameEveryTime) {
  const std::unique_ptr<Engine> engine = MustMake(NeedleConfig(1024));
  CalibrationOptions options = ShortCalibration(*engine->tokenizer(), 640);
  options.samples.resize(1);
  options.checks.resize(1);
  const auto written = [&] {
    return WriteJson(CalibrationToJson(RunCalibration(options, {}).value(), options));
  };
  const std::string first = written();
  options.config.num_threads = 1;
  EXPECT_EQ(first, written());
}

TEST(Calibration, MaxLossTakesAsManyAsItAllows) {
  const std::unique_ptr<Engine> engine = MustMake(NeedleConfig(1024));
  CalibrationOptions options = ShortCalibration(*engine->tokenizer(), 768);
  options.samples.resize(1);
  options.checks.resize(1);
  options.target_ratio.reset();
  options.max_loss = 0.02;
  const CalibrationResult result = RunCalibration(options, {}).value();
  const auto streaming = std::count(result.file.kind->begin(), result.file.kind->end(), 0);
  EXPECT_GT(streaming, 6);
  EXPECT_LT(streaming, 24);
  for (const CutCheck& check : result.checks) {
    if (check.streaming_heads == streaming) {
      EXPECT_LE(check.kl(), 0.02);
    }
    if (check.streaming_heads == streaming + 1) {
      EXPECT_GT(check.kl(), 0.02);
    }
  }
}

// Each head alone, on the samples: the score is what that costs, and the cut goes by it.
TEST(Calibration, AblationRanksByWhatAHeadCostsAlone) {
  const RandomCheckpoint checkpoint({.kinds = {}});
  CalibrationOptions options;
  options.config.model_dir = checkpoint.dir();
  options.config.attention.sink_tokens = 16;
  options.config.attention.recent_tokens = 32;
  for (const uint64_t seed : {1, 2}) {
    const std::vector<int32_t> tokens = RandomTokens(400, 97, seed);
    (seed == 1 ? options.samples : options.checks)
        .push_back(TextSamples("text", tokens, 400, 1, 48).value()[0]);
  }
  options.rank = HeadRank::kAblation;
  options.target_ratio = 0.5;
  const CalibrationResult result = RunCalibration(options, {}).value();
  ASSERT_THAT(result.alone, SizeIs(6));
  double least_kept = 1e9, most_streaming = 0;
  for (size_t head = 0; head < result.alone.size(); ++head) {
    const CutCheck& alone = result.alone[head];
    EXPECT_EQ(alone.streaming_heads, 1);
    EXPECT_FALSE(alone.answer_kl.has_value());
    EXPECT_GT(*alone.text_kl, 0);
    EXPECT_EQ(result.file.score[head], static_cast<float>(*alone.text_kl));
    if ((*result.file.kind)[head] == 1) {
      least_kept = std::min(least_kept, alone.mean_kl());
    } else {
      most_streaming = std::max(most_streaming, alone.mean_kl());
    }
  }
  EXPECT_LT(most_streaming, least_kept);
  EXPECT_EQ(result.checks.at(0).streaming_heads, 3);
  EXPECT_THAT(CalibrationText(result, options), HasSubstr("head 2.1"));
  EXPECT_THAT(WriteJson(CalibrationToJson(result, options)), HasSubstr("--rank ablation"));
}

TEST(Calibration, StopsWhenTold) {
  const std::unique_ptr<Engine> engine = MustMake(NeedleConfig(1024));
  const CalibrationOptions options = ShortCalibration(*engine->tokenizer());
  EvalHooks hooks;
  hooks.should_stop = [] { return true; };
  EXPECT_TRUE(RunCalibration(options, hooks).value().interrupted);
}

TEST(CalibrationSamples, TextsThatAreTooShortAreErrors) {
  const std::vector<int32_t> tokens(2000, 7);
  EXPECT_THAT(TextSamples("t", std::span(tokens).first(500), 1024, 4, 384).status().message(),
              HasSubstr("t: has 500 tokens, expected at least 512"));
  const std::vector<CalibrationSample> parts = TextSamples("t", tokens, 600, 2, 384).value();
  ASSERT_THAT(parts, SizeIs(2));
  for (const CalibrationSample& part : parts) {
    EXPECT_EQ(part.size(), 600);
    EXPECT_GE(part.positions.front(), 384);
    EXPECT_LT(part.positions.back(), 599);
    EXPECT_TRUE(std::is_sorted(part.positions.begin(), part.positions.end()));
  }
}

TEST(CalibrationSamples, NoRoomIsAnError) {
  const std::unique_ptr<Engine> engine = MustMake(NeedleConfig(1024));
  EXPECT_THAT(PasskeySamples(*engine->tokenizer(), Short(1, 64)).status().message(),
              HasSubstr("--length: got 64 tokens"));
}

}  // namespace
}  // namespace lserve
