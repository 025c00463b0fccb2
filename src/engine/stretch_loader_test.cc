#include "engine/stretch_loader.h"

#include <gtest/gtest.h>

#include <atomic>
#include <new>

#include "base/strings.h"

namespace lserve {
namespace {

// A tier whose reads wait until the test lets them go.
class GatedTier final : public PrefixTier {
 public:
  bool Has(std::string_view, std::span<const int32_t>) const override { return false; }
  void Save(std::shared_ptr<const Stretch>) override {}
  std::string Find(std::string_view, std::span<const int32_t>, int64_t, int64_t) override {
    return "x";
  }
  std::shared_ptr<const Stretch> Load(std::string_view family,
                                      std::span<const int32_t> prompt,
                                      int64_t first_token,
                                      int64_t) override {
    std::unique_lock lock(mutex_);
    ++loads_;
    opened_.wait(lock, [&] { return open_ > 0; });
    --open_;
    if (family == "none") return nullptr;
    if (family == "much") throw std::bad_alloc();
    Stretch stretch;
    stretch.snapshot.tokens = {prompt.begin(), prompt.end()};
    stretch.snapshot.first_token = first_token;
    return std::make_shared<const Stretch>(std::move(stretch));
  }
  void Clear() override {}
  KvTierStats stats() const override { return {}; }

  void Open(int reads) {
    const std::lock_guard lock(mutex_);
    open_ += reads;
    opened_.notify_all();
  }
  int loads() const {
    const std::lock_guard lock(mutex_);
    return loads_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable opened_;
  int open_ = 0;
  int loads_ = 0;
};

class StretchLoaderTest : public testing::Test {
 protected:
  ~StretchLoaderTest() override { tier_.Open(100); }

  std::shared_ptr<StretchLoad> Begin(const std::string& name, const char* family = "f") {
    return loader_.Begin(name, family, prompt_, 2048, 0);
  }
  // What came of it.
  std::shared_ptr<const Stretch> WaitFor(const StretchLoad& load) {
    std::shared_ptr<const Stretch> stretch;
    while (!loader_.Done(load, &stretch)) loader_.Wait(std::chrono::milliseconds(1000));
    return stretch;
  }
  bool IsDone(const StretchLoad& load) {
    std::shared_ptr<const Stretch> stretch;
    return loader_.Done(load, &stretch);
  }

  const std::vector<int32_t> prompt_ = std::vector<int32_t>(10'000, 7);
  std::atomic<double> now_ = 100;
  GatedTier tier_;
  StretchLoader loader_{&tier_, [this] { return now_.load(); }};
};

TEST_F(StretchLoaderTest, ReadsBesideItsCaller) {
  const auto load = Begin("a");
  ASSERT_NE(load, nullptr);
  EXPECT_FALSE(IsDone(*load));
  loader_.Wait(std::chrono::milliseconds(1));
  EXPECT_FALSE(IsDone(*load));
  tier_.Open(1);
  const auto stretch = WaitFor(*load);
  ASSERT_NE(stretch, nullptr);
  EXPECT_EQ(stretch->snapshot.tokens.size(), 4096u) << "what lies behind it is not carried along";
  EXPECT_EQ(stretch->snapshot.first_token, 2048);
}

TEST_F(StretchLoaderTest, WhatIsDamagedOrTooLargeIsNothing) {
  tier_.Open(3);
  EXPECT_EQ(WaitFor(*Begin("a", "none")), nullptr);
  EXPECT_EQ(WaitFor(*Begin("b", "much")), nullptr);
  EXPECT_NE(WaitFor(*Begin("c")), nullptr) << "the thread goes on";
}

TEST_F(StretchLoaderTest, OneReadServesAllWhoWantIt) {
  auto first = Begin("a"), second = Begin("a");
  EXPECT_EQ(first, second);
  tier_.Open(2);
  EXPECT_NE(WaitFor(*first), nullptr);
  EXPECT_EQ(Begin("a"), first) << "as long as somebody has it";
  EXPECT_EQ(tier_.loads(), 1);
  first.reset();
  second.reset();
  EXPECT_NE(WaitFor(*Begin("a")), nullptr);
  EXPECT_EQ(tier_.loads(), 2) << "then it is read again";
}

TEST_F(StretchLoaderTest, HoldsAFewAndForgetsWhatNobodyWantsAnyMore) {
  std::vector<std::shared_ptr<StretchLoad>> loads;
  for (size_t i = 0; i < StretchLoader::kMostLoads; ++i) loads.push_back(Begin(StrCat(i)));
  EXPECT_NE(loads.back(), nullptr);
  EXPECT_EQ(Begin("more"), nullptr);
  // Cancelled: those that were not begun are never read.
  while (tier_.loads() == 0) std::this_thread::yield();
  loads.clear();
  tier_.Open(1);
  std::shared_ptr<StretchLoad> next;
  while ((next = Begin("next")) == nullptr) std::this_thread::yield();
  tier_.Open(1);
  EXPECT_NE(WaitFor(*next), nullptr);
  EXPECT_EQ(tier_.loads(), 2);
}

TEST_F(StretchLoaderTest, NobodyWaitsForADiskThatHangs) {
  const auto load = Begin("a");
  while (tier_.loads() == 0) std::this_thread::yield();
  EXPECT_FALSE(loader_.stuck());
  now_ = 100 + StretchLoader::kMostSeconds + 1;
  EXPECT_TRUE(loader_.stuck());
  std::shared_ptr<const Stretch> stretch;
  EXPECT_TRUE(loader_.Done(*load, &stretch));
  EXPECT_EQ(stretch, nullptr);
  EXPECT_EQ(loader_.num_slow(), 1);
  tier_.Open(1);
  while (loader_.stuck()) std::this_thread::yield();
}

TEST_F(StretchLoaderTest, WhatIsDroppedComesToNothing) {
  const auto reading = Begin("a"), queued = Begin("b");
  while (tier_.loads() == 0) std::this_thread::yield();
  loader_.DropAll();
  EXPECT_EQ(WaitFor(*reading), nullptr);
  EXPECT_EQ(WaitFor(*queued), nullptr);
  tier_.Open(2);
  EXPECT_NE(WaitFor(*Begin("c")), nullptr);
  EXPECT_EQ(WaitFor(*reading), nullptr) << "although it was read in the end";
  EXPECT_EQ(tier_.loads(), 2);
}

}  // namespace
}  // namespace lserve
