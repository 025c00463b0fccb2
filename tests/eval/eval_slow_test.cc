// 16K to 131K tokens: the calibrated half of the heads streams, and every answer is right.
#include <gmock/gmock.h>

#include "support/eval_support.h"

namespace lserve {
namespace {

class NiahLong : public ::testing::TestWithParam<int64_t> {};

TEST_P(NiahLong, SparseIsDenseIsRight) {
  const std::unique_ptr<Engine> engine = MustMake(NeedleConfig(4096));
  NiahOptions options;
  // 32K tokens take half a minute on two idle cores, 131K seven minutes: one question each there,
  // the harder one. `lserve eval niah --device cuda` asks more (docs/studies/fidelity.md).
  const bool is_long = GetParam() > 20000;
  options.kinds = {NiahKind::kMultiKey};
  if (!is_long) options.kinds.push_back(NiahKind::kSingle);
  options.lengths = {GetParam()};
  options.depths = is_long ? std::vector<double>{0.35} : std::vector<double>{0, 0.5, 1};
  const TrialRun run = RunNiah(*engine, options);
  ASSERT_TRUE(run.status.ok()) << run.status.message();
  const TrialSummary summary = Summarize(run.records);
  EXPECT_EQ(summary.dense, 1.0) << SummaryLines(run.records);
  EXPECT_EQ(summary.sparse, 1.0) << SummaryLines(run.records);
  EXPECT_EQ(summary.ran_sparse, summary.trials);
  for (const TrialRecord& record : run.records) {
    EXPECT_GT(record.arm(Arm::kSparse).stats.selections, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Lengths, NiahLong, ::testing::Values(16384, 32768, 65536, 131072));

}  // namespace
}  // namespace lserve
