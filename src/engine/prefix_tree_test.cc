#include "engine/prefix_tree.h"

#include <gtest/gtest.h>

#include "attention/policy.h"
#include "base/rng.h"

namespace lserve {
namespace {

class NoStorage : public PageStorage {
 public:
  Status Commit(Way, PageId, int) override { return Status(); }
  void Decommit(Way, PageId, int) override {}
  void CopyPage(Way, PageId, PageId, int) override {}
};

class PrefixTreeTest : public testing::Test {
 protected:
  PrefixTreeTest() {
    settings_.mode = AttentionMode::kSparse;
    settings_.sink_tokens = 64;
    settings_.recent_tokens = 200;
    settings_.prefill_threshold = 1;  // any position may be resumed
  }
  static std::vector<int32_t> Tokens(int64_t count, uint64_t seed) {
    Rng rng(seed);
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(rng.NextBelow(1000)));
    return tokens;
  }
  PrefixKey Key() const { return {.settings = settings_, .salt = salt_}; }
  void Keep(std::span<const int32_t> prompt, int64_t point, const SequenceCache& cache) {
    tree_.Add(prompt, point, Key(),
              [&](Way way, PageIdx page) { return cache.SharePage(way, page); });
  }
  // What the engine does with a prompt: prefill in one chunk, keep, trim.
  SequenceCache Prefill(std::span<const int32_t> prompt, std::vector<int64_t> points) {
    SequenceCache cache(&pool_, &storage_);
    const int64_t size = static_cast<int64_t>(prompt.size());
    EXPECT_TRUE(cache.Reserve(size));
    cache.Advance(size);
    for (const int64_t point : points) Keep(prompt, point, cache);
    cache.TrimStreaming(StreamingSinkEnd(settings_), StreamingKeepFrom(settings_, size, true));
    return cache;
  }
  int64_t Cached(std::span<const int32_t> prompt) {
    return tree_.Find(prompt, Key()).cache.num_tokens();
  }

  KvLayout layout_ = MakeKvLayout(1, 2, 64, DType::kBf16, {1, 0}, {.kv = 1 << 14, .stats = 1024});
  NoStorage storage_;
  PagePool pool_{layout_, &storage_, size_t{64} << 20};
  PrefixTree tree_{&pool_, &storage_};
  AttentionSettings settings_;
  std::string salt_;
};

std::vector<int32_t> Joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST_F(PrefixTreeTest, ResumesWhereTheWindowIsAndNowhereElse) {
  const std::vector<int32_t> document = Tokens(5000, 1);
  { const SequenceCache gone = Prefill(document, {2048, 4096, 5000}); }
  const auto at = [&](int64_t common) {
    std::vector<int32_t> prompt(document.begin(), document.begin() + common);
    prompt.push_back(-1);
    return Cached(prompt);
  };
  EXPECT_EQ(at(5000), 5000);
  EXPECT_EQ(at(4999), 4999);  // inside the last window all pages are there
  EXPECT_EQ(at(4800), 4096);
  EXPECT_EQ(at(4096), 4096);
  EXPECT_EQ(at(4095), 4095);
  EXPECT_EQ(at(3000), 2048);
  EXPECT_EQ(at(1000), 128) << "the sink is there";
  EXPECT_EQ(Cached(document), 4999) << "the last token's logits are needed";

  const PrefixTree::Found found = tree_.Find(Joined(document, {7}), Key());
  EXPECT_EQ(found.match.end, PrefixEnd::kEnds);
  // Sink and window, no page of the other resume points.
  EXPECT_EQ(found.cache.num_held(Way::kStreaming), 2 + (79 - (5000 - 199) / 128 * 2));
  EXPECT_EQ(found.cache.num_held(Way::kRetrieval), 79);
}

TEST_F(PrefixTreeTest, CommonBeginningsAreHeldOnce) {
  const std::vector<int32_t> document = Tokens(640, 2);
  const std::vector<int32_t> one = Joined(document, Tokens(100, 3));
  const std::vector<int32_t> other = Joined(document, Tokens(100, 4));
  { const SequenceCache gone = Prefill(one, {740}); }
  EXPECT_EQ(tree_.num_nodes(), 12);
  { const SequenceCache gone = Prefill(other, {740}); }
  EXPECT_EQ(tree_.num_nodes(), 14);
  EXPECT_EQ(pool_.pages_in_use(Way::kRetrieval), 14);
  EXPECT_EQ(Cached(Joined(one, {1})), 740);
  EXPECT_EQ(Cached(Joined(other, {1})), 740);
}

TEST_F(PrefixTreeTest, SaysWhereThePrefixDiverges) {
  const std::vector<int32_t> document = Tokens(700, 5);
  { const SequenceCache gone = Prefill(document, {700}); }
  std::vector<int32_t> prompt = document;
  prompt[333] += 1;
  PrefixMatch match = tree_.Find(prompt, Key()).match;
  EXPECT_EQ(match.end, PrefixEnd::kDiffers);
  EXPECT_EQ(match.common, 333);
  EXPECT_EQ(match.nearest, 700);
  EXPECT_EQ(tree_.Find(document, Key()).match.end, PrefixEnd::kWhole);
  EXPECT_EQ(tree_.Find(Tokens(100, 6), Key()).match.end, PrefixEnd::kNone);

  AttentionSettings dense = settings_;
  dense.mode = AttentionMode::kDense;
  match = tree_.Find(document, {.settings = dense, .salt = salt_}).match;
  EXPECT_EQ(match.end, PrefixEnd::kSettings);
  EXPECT_EQ(match.common, 700);

  // Nobody learns what was asked with another salt.
  const std::string other = "other";
  const PrefixTree::Found found = tree_.Find(document, {.settings = settings_, .salt = other});
  EXPECT_EQ(found.match.end, PrefixEnd::kNone);
  EXPECT_EQ(found.match.common, 0);
  EXPECT_EQ(found.cache.num_tokens(), 0);
}

TEST_F(PrefixTreeTest, EvictsLeavesFirstTheOldestFirstAndNothingInUse) {
  const std::vector<int32_t> document = Tokens(640, 7);
  const std::vector<int32_t> old = Joined(document, Tokens(128, 8));
  const std::vector<int32_t> recent = Joined(document, Tokens(128, 9));
  { const SequenceCache gone = Prefill(old, {640, 768}); }
  const SequenceCache used = Prefill(recent, {768});
  EXPECT_EQ(Cached(Joined(old, {1})), 768);  // from now on `recent` is the older one
  ASSERT_EQ(tree_.num_nodes(), 14);
  EXPECT_TRUE(tree_.EvictOne());
  EXPECT_TRUE(tree_.EvictOne());
  EXPECT_EQ(Cached(Joined(old, {1})), 640) << "the pages in use stay though they are older";
  EXPECT_EQ(Cached(Joined(recent, {1})), 768);
  EXPECT_FALSE(tree_.EvictOne());
  EXPECT_EQ(tree_.num_nodes(), 12);
}

TEST_F(PrefixTreeTest, EveryPageComesBack) {
  Rng rng(3);
  std::vector<std::vector<int32_t>> prompts = {Tokens(300, 10)};
  for (int round = 0; round < 60; ++round) {
    std::vector<int32_t> prompt = prompts[rng.NextBelow(prompts.size())];
    prompt.resize(1 + rng.NextBelow(prompt.size()));
    prompt = Joined(prompt, Tokens(1 + static_cast<int64_t>(rng.NextBelow(400)), 100 + round));
    const PrefixTree::Found found = tree_.Find(prompt, Key());
    EXPECT_LE(found.cache.num_tokens(), found.match.common);
    const SequenceCache cache =
        Prefill(prompt, {static_cast<int64_t>(1 + rng.NextBelow(prompt.size()))});
    prompts.push_back(prompt);
    if (rng.NextBelow(3) == 0) {
      for (uint64_t i = rng.NextBelow(30); i > 0; --i) tree_.EvictOne();
    }
  }
  while (tree_.EvictOne()) {
  }
  EXPECT_EQ(tree_.num_nodes(), 0);
  EXPECT_EQ(pool_.bytes_in_use(), 0u);
}

// A chain as long as a prompt of a million tokens is dropped without recursion.
TEST_F(PrefixTreeTest, LongChainsAreDropped) {
  const KvLayout tiny = MakeKvLayout(1, 1, 64, DType::kBf16, {1}, {.kv = 64, .stats = 64});
  PagePool pool(tiny, &storage_, size_t{64} << 20);
  PrefixTree tree(&pool, &storage_);
  SequenceCache cache(&pool, &storage_);
  const std::vector<int32_t> prompt(1'000'000, 1);
  ASSERT_TRUE(cache.Reserve(1'000'000));
  cache.Advance(1'000'000);
  tree.Add(prompt, 1'000'000, Key(),
           [&](Way way, PageIdx page) { return cache.SharePage(way, page); });
  EXPECT_EQ(tree.num_nodes(), 15'625);
  EXPECT_EQ(tree.Find(prompt, Key()).cache.num_tokens(), 999'999);
}

}  // namespace
}  // namespace lserve
