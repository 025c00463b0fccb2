// Ten mistakes that a system with pages, streaming heads and reused selections invites, each of
// which the released code of LServe was found to make by reading it. One test per mistake, by its
// letter in our list; most hold an engine or a backend against the definition.
#include <gtest/gtest.h>

#include <set>

#include "attention/policy.h"
#include "loader/streaming_heads.h"
#include "parity/kv_harness.h"
#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

using parity::KvHarness;
using parity::KvShape;
using parity::RandomFloats;
using parity::RandomTokens;
using parity::Subject;
using parity::Subjects;
using parity::TokenAt;

// Every page that a list names, in order.
std::vector<PageIdx> PagesOf(const std::vector<PageRun>& runs) {
  std::vector<PageIdx> pages;
  for (const PageRun& run : runs) {
    for (PageIdx page = run.first; page < run.last; ++page) pages.push_back(page);
  }
  return pages;
}

class Defect : public testing::TestWithParam<Subject> {
 protected:
  std::unique_ptr<Backend> backend() const { return parity::Make(GetParam()); }
};

// a. The window was filled from the sink's setting. Sink and window differ here by ten times,
// either way round, and every query sees exactly its own.
TEST(DefectA, SinkAndWindowAreTwoSettings) {
  const KvLayout layout = MakeKvLayout(1, 1, 16, DType::kBf16, {0}, {.kv = 64, .stats = 64});
  for (const auto& [sink, window] : {std::pair{20, 200}, {200, 20}}) {
    AttentionSettings settings;
    settings.mode = AttentionMode::kSparse;
    settings.sink_tokens = sink;
    settings.recent_tokens = window;
    PagePlan plan;
    SelectionState state;
    PlanDecode(settings, layout, {.num_rows = 1, .first_position = 999}, &state, &plan);
    int64_t first = 0, recent = 0;
    ForEachPage(plan, plan.rows[0], 0, [&](PageIdx page) {
      for (int64_t k = int64_t{page} * kPageTokens; k < int64_t{page + 1} * kPageTokens; ++k) {
        if (!Visible(plan.rows[0], 999, k)) continue;
        ++(k < 500 ? first : recent);
      }
    });
    EXPECT_EQ(first, sink);
    EXPECT_EQ(recent, window);
  }
}

// b, f, g. Tables of streaming heads that rotate wrongly after a new page, recent tokens that drop
// out when a page fills, a page too many at a page's end: all show as decode steps that read other
// keys than the prefill of the same tokens. On the reference backend both compute the same sums in
// the same order, so that the logits agree bit for bit. The answer crosses five page boundaries,
// and what lies behind the window has been trimmed and recycled.
TEST(DefectBFG, DecodeReadsWhatPrefillOfTheSameTokensReads) {
  RandomModelShape shape;
  shape.kinds = {0, 0, 1, 0, 0, 1};
  const RandomCheckpoint checkpoint(shape);
  EngineConfig config;
  config.model_dir = checkpoint.dir();
  config.device = "reference";
  config.kv_cache_bytes = size_t{64} << 20;
  config.max_num_batched_tokens = 136;
  config.attention.mode = AttentionMode::kSparse;
  config.attention.sink_tokens = 10;
  config.attention.recent_tokens = 70;
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  for (const int64_t length : {127, 128, 190}) {
    Request ask;
    ask.prompt = lserve::RandomTokens(length, 97, static_cast<uint64_t>(length));
    ask.sampling.temperature = 0;
    ask.max_tokens = 330;
    ask.ignore_eos = true;
    Request again = ask;
    const Answer decoded = RunOne(*engine, std::move(ask));
    EXPECT_GT(decoded.stats.sparse_steps, 0);
    again.prompt.insert(again.prompt.end(), decoded.tokens.begin(), decoded.tokens.end() - 1);
    again.max_tokens = 1;
    Answer prefilled = RunOne(*engine, std::move(again));
    prefilled.prompt_logits.erase(prefilled.prompt_logits.begin(),
                                  prefilled.prompt_logits.begin() + (length - 1) * 97);
    EXPECT_TRUE(SameBits(decoded.token_logits, prefilled.prompt_logits)) << length;
  }
}

// f. A list that outlived a page boundary took the old last page for the newest, so that recent
// tokens dropped out until the next selection. Here lists serve 50 steps, and each step must read
// the budget and every page that has come since its list was chosen.
TEST(DefectF, AReusedListReadsThePagesThatCameAfterIt) {
  RandomModelShape shape;
  shape.kinds = {1, 1, 1, 1, 1, 1};
  const RandomCheckpoint checkpoint(shape);
  for (const Subject& subject : Subjects()) {
    EngineConfig config;
    config.model_dir = checkpoint.dir();
    config.device = subject.config.device;
    config.cpu_isa = subject.config.cpu_isa;
    config.kv_cache_bytes = size_t{64} << 20;
    config.attention.mode = AttentionMode::kSparse;
    config.attention.token_budget = 5 * kPageTokens;
    config.attention.selector_interval = 50;
    const std::unique_ptr<Engine> engine = MakeEngine(config);
    constexpr int64_t kPrompt = 500, kSteps = 199;
    Request ask;
    ask.prompt = lserve::RandomTokens(kPrompt, 97, 6);
    ask.sampling.temperature = 0;
    ask.max_tokens = kSteps + 1;
    ask.ignore_eos = true;
    const Answer answer = RunOne(*engine, std::move(ask));
    double pages = 0;
    for (int64_t step = 0; step < kSteps; ++step) {
      const int64_t chosen_at = kPrompt + step / 50 * 50;
      const PageIdx since = NumPages(kPrompt + step + 1) - NumPages(chosen_at + 1);
      pages += 5 + since;
    }
    EXPECT_EQ(answer.stats.selections, 4);
    EXPECT_DOUBLE_EQ(answer.stats.pages_visited, pages * 6 / kSteps) << subject.name;
  }
}

// c. Statistics of generated tokens never reached the selector. Here every token after the first
// 300 arrives alone; the lists are those of tokens that came at once.
TEST_P(Defect, C_TokensThatComeOneByOneAreSelectedAsIfTheyCameAtOnce) {
  const std::unique_ptr<Backend> device = backend();
  const KvShape shape = {.head_dim = 32, .kinds = {1, 1}, .num_tokens = {20 * 64 + 7}};
  KvHarness at_once(*device, shape, RandomTokens(1, 32), 1),
      one_by_one(*device, shape, RandomTokens(1, 32), 2);
  at_once.Fill();
  one_by_one.Append(0, 300);
  for (int64_t t = 300; t < shape.num_tokens[0]; ++t) one_by_one.Append(t, 1);
  const std::vector<float> q = RandomFloats(2, shape.q_cols(), 4.0f);
  const SelectRequest request = {.num_pages = 21, .budget_pages = 8, .table = {}};
  const auto lists = at_once.Select(q, request);
  EXPECT_EQ(lists, one_by_one.Select(q, request));
  // And a generated page can win: pages past the first 300 tokens are among the chosen.
  std::set<PageIdx> chosen;
  for (const auto& list : lists) {
    for (const PageIdx page : PagesOf(list)) chosen.insert(page);
  }
  EXPECT_TRUE(std::any_of(chosen.begin(), chosen.end(), [](PageIdx p) { return p > 5 && p < 19; }));
}

// d. Statistics of a recycled page kept the old tenant's extremes. The old keys are a hundred times
// larger, so that any trace of them would win every list.
TEST_P(Defect, D_RecycledPagesForgetTheirStatistics) {
  const std::unique_ptr<Backend> device = backend();
  const KvShape shape = {.head_dim = 32, .kinds = {1, 1}, .num_tokens = {20 * 64}};
  KvHarness fresh(*device, shape, RandomTokens(3, 32)),
      recycled(*device, shape, RandomTokens(4, 32, 100.0f));
  fresh.Fill();
  recycled.Fill();
  recycled.Refill(RandomTokens(3, 32));
  recycled.Fill(77);
  const std::vector<float> q = RandomFloats(5, shape.q_cols(), 4.0f);
  const SelectRequest request = {.num_pages = 20, .budget_pages = 8, .table = {}};
  EXPECT_EQ(fresh.Select(q, request), recycled.Select(q, request));
}

// e. Scores had the stride of their own sequence and were read with that of the longest.
TEST_P(Defect, E_SequencesOfMixedLengthsAreSelectedAsAlone) {
  const std::unique_ptr<Backend> device = backend();
  KvShape shape = {.head_dim = 32, .kinds = {1, 1}, .num_tokens = {30 * 64, 12 * 64 + 1, 20 * 64}};
  const auto fill_as_alone = [](const TokenAt& at, float* k, float* v) {
    RandomTokens(6, 32)({at.layer, 0, at.position, at.head}, k, v);
  };
  KvHarness batch(*device, shape, fill_as_alone);
  batch.Fill();
  const std::vector<float> q = RandomFloats(7, 3 * shape.q_cols(), 4.0f);
  for (int s = 0; s < 3; ++s) {
    KvShape single = shape;
    single.num_tokens = {shape.num_tokens[static_cast<size_t>(s)]};
    KvHarness alone(*device, single, fill_as_alone);
    alone.Fill();
    SelectRequest request = {.sequence = s,
                             .query_row = s,
                             .num_pages = NumPages(single.num_tokens[0]),
                             .budget_pages = 6,
                             .table = {}};
    const auto in_batch = batch.Select(q, request);
    request.sequence = 0;
    EXPECT_EQ(in_batch, alone.Select(q, request)) << "sequence " << s;
  }
}

// h. A page list outlived its sequence and served the next one.
TEST(DefectH, AListDiesWithItsSequence) {
  RandomModelShape shape;
  shape.kinds = {1, 1, 1, 0, 0, 1};
  const RandomCheckpoint checkpoint(shape);
  EngineConfig config;
  config.model_dir = checkpoint.dir();
  config.kv_cache_bytes = size_t{64} << 20;
  config.attention.mode = AttentionMode::kSparse;
  config.attention.token_budget = 256;
  config.attention.selector_interval = 100;  // one list for the whole answer
  const auto ask = [](uint64_t seed) {
    Request request;
    request.prompt = lserve::RandomTokens(700, 97, seed);
    request.sampling.temperature = 0;
    request.max_tokens = 10;
    request.ignore_eos = true;
    return request;
  };
  const std::unique_ptr<Engine> used = MakeEngine(config), fresh = MakeEngine(config);
  RunOne(*used, ask(1));
  const Answer after = RunOne(*used, ask(2)), alone = RunOne(*fresh, ask(2));
  EXPECT_EQ(after.stats.selections, 1);
  EXPECT_TRUE(SameBits(after.token_logits, alone.token_logits));
}

// i. Ties between head scores were broken by an unseeded random number.
TEST(DefectI, HeadsAreClassifiedTheSameInEveryRun) {
  StreamingHeadsFile file;
  file.layers = 4;
  file.kv_heads = 4;
  file.score.assign(16, 0.5f);
  file.score[3] = 0.1f;
  const HeadKinds expected = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  for (int run = 0; run < 20; ++run) EXPECT_EQ(CutByRatio(file, 0.5).value(), expected);
}

// j. Slots beyond the last page had score zero and beat pages whose scores are negative. All keys
// point away from the query, so every bound is negative.
TEST_P(Defect, J_PagesThatDoNotExistAreNeverChosen) {
  const std::unique_ptr<Backend> device = backend();
  for (const PageIdx num_pages : {9, 17, 33}) {
    const KvShape shape = {
        .head_dim = 32, .kinds = {1, 1}, .num_tokens = {int64_t{num_pages} * 64 - 30}};
    const auto away = [](const TokenAt& at, float* k, float* v) {
      RandomTokens(8, 32)(at, k, v);
      for (int d = 0; d < 32; ++d) k[d] = -1.0f - std::abs(k[d]);
    };
    KvHarness cache(*device, shape, away);
    cache.Fill();
    const std::vector<float> q(static_cast<size_t>(shape.q_cols()), 2.0f);
    for (const auto& list :
         cache.Select(q, {.num_pages = num_pages, .budget_pages = 6, .table = {}})) {
      const std::vector<PageIdx> pages = PagesOf(list);
      ASSERT_EQ(pages.size(), 6u);
      EXPECT_EQ(pages.front(), 0);
      EXPECT_EQ(pages[4], num_pages - 2);
      EXPECT_EQ(pages[5], num_pages - 1);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Defect, testing::ValuesIn(Subjects()), parity::SubjectName);

}  // namespace
}  // namespace lserve
