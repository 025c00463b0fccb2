#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "base/rng.h"
#include "engine/disk_tier.h"
#include "engine/host_tier.h"

namespace lserve {
namespace {

class DiskTierTest : public testing::Test {
 public:
  DiskTierTest() {
    dir_ = testing::TempDir() + "lserve_disk_tier_XXXXXX";
    EXPECT_NE(mkdtemp(dir_.data()), nullptr);
  }
  ~DiskTierTest() override { std::filesystem::remove_all(dir_); }

  std::unique_ptr<DiskTier> Open(uint64_t max_bytes = uint64_t{1} << 30,
                                 const std::string& origin = "model") {
    Result<std::unique_ptr<DiskTier>> tier = DiskTier::Open(
        {.dir = dir_, .max_bytes = max_bytes, .origin = origin, .page_bytes = {500, 300}});
    EXPECT_TRUE(tier.ok()) << tier.status().message();
    return std::move(tier).value();
  }
  static std::vector<int32_t> Tokens(int64_t count, int32_t seed) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i)
      tokens.push_back(seed * 1'000'000 + static_cast<int32_t>(i));
    return tokens;
  }
  // The last stretch of a prefix, every page of both ways.
  static void Save(PrefixTier& tier, const std::vector<int32_t>& tokens, const char* family = "f") {
    const int64_t size = static_cast<int64_t>(tokens.size());
    PrefixSnapshot snapshot{.family = family,
                            .tokens = tokens,
                            .first_token = (size - 1) / kStretchTokens * kStretchTokens};
    snapshot.masks.assign(static_cast<size_t>(NumPages(size) - snapshot.first_token / kPageTokens),
                          3);
    std::vector<std::byte> pages(snapshot.masks.size() * 800);
    for (size_t i = 0; i < pages.size(); ++i)
      pages[i] = static_cast<std::byte>(i * 7 + static_cast<size_t>(tokens[0]));
    tier.Save(std::make_shared<const Stretch>(Stretch{std::move(snapshot), std::move(pages)}));
  }
  std::vector<std::filesystem::path> Files() const {
    std::vector<std::filesystem::path> files;
    for (const auto& file : std::filesystem::recursive_directory_iterator(dir_)) {
      if (file.is_regular_file()) files.push_back(file.path());
    }
    return files;
  }

  std::string dir_;
};

TEST_F(DiskTierTest, ARestartFindsStretchAfterStretch) {
  const std::vector<int32_t> prompt = Tokens(5000, 1);
  const auto first = [&](int64_t n) {
    return std::vector<int32_t>(prompt.begin(), prompt.begin() + n);
  };
  {
    const auto tier = Open();
    for (const int64_t end : {2048, 4096, 4500}) Save(*tier, first(end));
    EXPECT_TRUE(tier->Has("f", first(4096))) << "also while it is only queued";
  }
  const auto tier = Open();
  EXPECT_EQ(tier->stats().stretches, 3);
  EXPECT_TRUE(tier->Has("f", first(4500)));
  EXPECT_FALSE(tier->Has("other", first(4500)));
  EXPECT_EQ(nullptr, tier->Load("other", prompt, 0, 0));
  for (const auto& [begin, end] :
       {std::pair<int64_t, int64_t>{0, 2048}, {2048, 4096}, {4096, 4500}}) {
    const std::shared_ptr<const Stretch> stretch = tier->Load("f", prompt, begin, 0);
    ASSERT_NE(stretch, nullptr) << begin;
    EXPECT_EQ(stretch->snapshot.tokens, first(end));
    EXPECT_EQ(stretch->pages[1], static_cast<std::byte>(7 + prompt[0]));
    EXPECT_EQ(nullptr, tier->Load("f", prompt, begin, end - begin)) << "nothing beyond";
  }
  EXPECT_EQ(tier->stats().loaded_tokens, 4500);
  // A prompt that leaves the stretch midway gets it for what they share.
  std::vector<int32_t> other = first(3000);
  other[2500] = -1;
  EXPECT_NE(nullptr, tier->Load("f", other, 2048, 451));
  EXPECT_EQ(nullptr, tier->Load("f", other, 2048, 452));
  tier->Clear();
  EXPECT_TRUE(Files().empty());
}

TEST_F(DiskTierTest, DamageIsRefusedAndOthersFilesAreLeftAlone) {
  const std::vector<int32_t> prompt = Tokens(2048, 1);
  { Save(*Open(), prompt); }
  ASSERT_EQ(Files().size(), 1u);
  const std::filesystem::path path = Files()[0];
  const uint64_t size = std::filesystem::file_size(path);
  const auto put = [&](uint64_t at, char value) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(at)).put(value);
  };
  // The pages: seen when they are read, not before.
  put(size - 5, 'x');
  {
    const auto tier = Open();
    EXPECT_EQ(tier->stats().stretches, 1);
    EXPECT_EQ(nullptr, tier->Load("f", prompt, 0, 0));
    EXPECT_EQ(tier->stats().refused, 1);
    EXPECT_EQ(tier->stats().stretches, 0);
    EXPECT_FALSE(tier->Has("f", prompt));
    Save(*tier, prompt);  // and it is written again
    tier->Flush();
    EXPECT_NE(nullptr, tier->Load("f", prompt, 0, 0));
  }
  std::filesystem::resize_file(path, size / 2);
  EXPECT_EQ(Open()->stats().refused, 1);
  { Save(*Open(), prompt); }
  put(90, 'x');  // the tokens
  EXPECT_EQ(Open()->stats().refused, 1);
  std::filesystem::rename(path, path.parent_path() / (std::string(32, 'a') + ".kv"));
  std::ofstream(path.parent_path() / "notes.txt") << "mine";
  std::ofstream(path.parent_path() / "cut.kv.tmp") << "of a killed run";
  EXPECT_EQ(Open()->stats().stretches, 0);
  EXPECT_TRUE(std::filesystem::exists(path.parent_path() / "notes.txt"));
  EXPECT_FALSE(std::filesystem::exists(path.parent_path() / "cut.kv.tmp"));
  // Another model's files are elsewhere.
  { Save(*Open(uint64_t{1} << 30, "another"), prompt); }
  EXPECT_EQ(nullptr, Open()->Load("f", prompt, 0, 0));
}

TEST_F(DiskTierTest, StaysWithinItsBytesAndDropsWhatWasUsedLongestAgo) {
  const uint64_t one = 36'000;  // a stretch's file: 32 pages of 800 bytes, 2048 tokens
  const auto tier = Open(3 * one);
  for (int32_t i = 1; i <= 3; ++i) Save(*tier, Tokens(2048, i));
  tier->Flush();
  EXPECT_EQ(tier->stats().stretches, 3);
  EXPECT_NE(nullptr, tier->Load("f", Tokens(2048, 1), 0, 0));
  Save(*tier, Tokens(2048, 4));
  tier->Flush();
  EXPECT_TRUE(tier->Has("f", Tokens(2048, 1)));
  EXPECT_FALSE(tier->Has("f", Tokens(2048, 2)));
  EXPECT_LE(tier->stats().bytes, 3 * one);
  EXPECT_EQ(Files().size(), 3u);
}

// As on a full disk: a write ends short.
TEST_F(DiskTierTest, AFullDiskCostsTheFileAndNothingElse) {
  const auto tier = Open();
  Save(*tier, Tokens(100, 1));
  tier->Flush();
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit small = {.rlim_cur = 10'000, .rlim_max = old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  Save(*tier, Tokens(2048, 2));
  tier->Flush();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, before);
  EXPECT_EQ(tier->stats().dropped, 1);
  EXPECT_EQ(Files().size(), 1u) << "half a file was left";
  EXPECT_NE(nullptr, tier->Load("f", Tokens(100, 1), 0, 0));
  Save(*tier, Tokens(90, 3));  // fits once the old one has made room
  tier->Flush();
  EXPECT_EQ(tier->stats().stretches, 1);
  EXPECT_TRUE(tier->Has("f", Tokens(90, 3)));
}

TEST(HostTier, KeepsWhatFitsAndDropsWhatWasUsedLongestAgo) {
  HostTier tier(100'000);  // two stretches of 2048 tokens and 32 pages of 800 bytes
  for (int32_t i = 1; i <= 2; ++i) DiskTierTest::Save(tier, DiskTierTest::Tokens(2048, i));
  const std::shared_ptr<const Stretch> held = tier.Load("f", DiskTierTest::Tokens(2050, 1), 0, 0);
  ASSERT_NE(held, nullptr);
  EXPECT_EQ(held->snapshot.tokens, DiskTierTest::Tokens(2048, 1));
  DiskTierTest::Save(tier, DiskTierTest::Tokens(2048, 3));
  EXPECT_EQ(tier.stats().stretches, 2);
  EXPECT_LE(tier.stats().bytes, 100'000u);
  EXPECT_TRUE(tier.Has("f", DiskTierTest::Tokens(2048, 1)));
  EXPECT_FALSE(tier.Has("f", DiskTierTest::Tokens(2048, 2)));
  EXPECT_EQ(tier.stats().loaded_tokens, 2048);
  HostTier tiny(1000);
  DiskTierTest::Save(tiny, DiskTierTest::Tokens(2048, 1));
  EXPECT_EQ(tiny.stats().dropped, 1);
  EXPECT_EQ(tiny.stats().bytes, 0u);
  tier.Clear();
  EXPECT_EQ(tier.stats().stretches, 0);
  EXPECT_EQ(tier.Load("f", DiskTierTest::Tokens(2050, 1), 0, 0), nullptr);
}

}  // namespace
}  // namespace lserve
