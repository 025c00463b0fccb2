#include "engine/prefix_archive.h"

#include <string>
#include <vector>

#include "base/log.h"
#include "base/strings.h"

namespace lserve {
namespace {

// Shorter prompts are computed about as fast as they are found elsewhere.
constexpr int64_t kMinTierTokens = 1024;
// Nor is a stretch fetched for less than this: all prompts of a chat template begin alike.
constexpr int64_t kMinGainTokens = 256;

std::string Family(const PrefixKey& key) {
  return StrCat(PrefillKey(key.settings), "\n", key.salt);
}

}  // namespace

void PrefixArchive::Keep(std::span<const int32_t> prompt,
                         int64_t num_tokens,
                         const PrefixKey& key) {
  if (num_tokens < kMinTierTokens) return;
  const std::span<const int32_t> tokens = prompt.first(static_cast<size_t>(num_tokens));
  const std::string family = Family(key);
  std::vector<PrefixTier*> without = tiers_->all();
  std::erase_if(without, [&](const PrefixTier* tier) { return tier->Has(family, tokens); });
  if (without.empty()) return;
  PrefixSnapshot snapshot{.family = family,
                          .tokens = {tokens.begin(), tokens.end()},
                          .first_token = (num_tokens - 1) / kStretchTokens * kStretchTokens};
  const auto pages = tree_->SharePages(prompt, snapshot.first_token, num_tokens, key);
  if (pages.empty()) return;
  for (const auto& page : pages) {
    uint8_t mask = 0;
    for (const Way way : kWays) {
      if (page[static_cast<size_t>(Index(way))]) mask = static_cast<uint8_t>(mask | MaskOf(way));
    }
    snapshot.masks.push_back(mask);
  }
  std::vector<std::byte> bytes(
      snapshot.PageBytes({pool_->page_bytes(Way::kRetrieval), pool_->page_bytes(Way::kStreaming)}));
  std::span<std::byte> rest = bytes;
  for (const auto& page : pages) {
    for (const Way way : kWays) {
      const PageRef& ref = page[static_cast<size_t>(Index(way))];
      if (!ref) continue;
      const Status status = store_->ReadPage(way, ref.id(), rest.first(pool_->page_bytes(way)));
      if (!status.ok()) return LogWarning(StrCat("KV tiers: ", status.message()));
      rest = rest.subspan(pool_->page_bytes(way));
    }
  }
  const auto stretch =
      std::make_shared<const Stretch>(Stretch{std::move(snapshot), std::move(bytes)});
  for (PrefixTier* tier : without) tier->Save(stretch);
}

std::shared_ptr<const Stretch> PrefixArchive::Fetch(std::span<const int32_t> prompt,
                                                    const std::string& family,
                                                    int64_t common,
                                                    std::shared_ptr<StretchLoad>* load,
                                                    bool* loading) {
  const int64_t first = common / kStretchTokens * kStretchTokens;
  const int64_t at_least = common - first + kMinGainTokens - 1;
  if (tiers_->host != nullptr) {
    std::shared_ptr<const Stretch> stretch = tiers_->host->Load(family, prompt, first, at_least);
    if (stretch != nullptr) return stretch;
  }
  if (!loader_ || loader_->stuck()) return nullptr;
  const std::string name = tiers_->disk->Find(family, prompt, first, at_least);
  if (name.empty()) return nullptr;
  *load = loader_->Begin(name, family, prompt, first, at_least);
  *loading = true;
  return nullptr;
}

PrefixArchive::Restored PrefixArchive::Restore(std::span<const int32_t> prompt,
                                               const PrefixKey& key,
                                               std::shared_ptr<StretchLoad>* load) {
  Restored restored;
  if (tiers_->all().empty()) return restored;
  const std::string family = Family(key);
  for (;;) {
    const int64_t common = tree_->Common(prompt, key);
    // The last token is computed anyhow.
    if (common + 1 >= static_cast<int64_t>(prompt.size())) break;
    std::shared_ptr<const Stretch> stretch;
    if (*load != nullptr) {
      restored.loading = !loader_->Done(**load, &stretch);
      if (restored.loading) return restored;
      const int64_t read_for = (*load)->first_token + (*load)->at_least;
      load->reset();
      // Another prompt has brought it meanwhile; there may be more.
      if (stretch != nullptr && common > read_for) {
        restored.some = true;
        continue;
      }
    } else {
      stretch = Fetch(prompt, family, common, load, &restored.loading);
      if (restored.loading) return restored;
    }
    if (stretch == nullptr || !Add(*stretch, key)) break;
    restored.some = true;
    // From the disk to where it is nearer.
    PrefixTier* host = tiers_->host.get();
    if (host != nullptr && !host->Has(family, stretch->snapshot.tokens)) host->Save(stretch);
    if (tree_->Common(prompt, key) <= common) break;
  }
  load->reset();
  return restored;
}

void PrefixArchive::Wait(std::chrono::milliseconds most) {
  if (loader_) loader_->Wait(most);
}

void PrefixArchive::Clear() {
  if (loader_) loader_->DropAll();
  for (PrefixTier* tier : tiers_->all()) tier->Clear();
}

bool PrefixArchive::Add(const Stretch& stretch, const PrefixKey& key) {
  const PrefixSnapshot& snapshot = stretch.snapshot;
  int64_t wanted[kNumWays] = {};
  for (const uint8_t mask : snapshot.masks) {
    for (const Way way : kWays) wanted[Index(way)] += (mask & MaskOf(way)) != 0 ? 1 : 0;
  }
  while (!pool_->CanAllocate(wanted[0], wanted[1])) {
    if (!tree_->EvictOne()) return false;
  }
  const PageIdx first = static_cast<PageIdx>(snapshot.first_token / kPageTokens);
  std::vector<std::array<PageRef, kNumWays>> pages(snapshot.masks.size());
  std::span<const std::byte> rest = stretch.pages;
  for (size_t i = 0; i < pages.size(); ++i) {
    for (const Way way : kWays) {
      if ((snapshot.masks[i] & MaskOf(way)) == 0) continue;
      std::optional<PageRef> page = pool_->Allocate(way);
      if (!page) return false;
      const Status status = store_->WritePage(way, page->id(), rest.first(pool_->page_bytes(way)));
      if (!status.ok()) {
        LogWarning(StrCat("KV tiers: ", status.message()));
        return false;
      }
      rest = rest.subspan(pool_->page_bytes(way));
      pages[i][static_cast<size_t>(Index(way))] = *std::move(page);
    }
  }
  tree_->Add(
      snapshot.tokens, static_cast<int64_t>(snapshot.tokens.size()), key,
      [&](Way way, PageIdx page) {
        if (page < first) return PageRef();
        const PageRef& ref =
            pages[static_cast<size_t>(page - first)][static_cast<size_t>(Index(way))];
        return ref ? ref.Share() : PageRef();
      },
      PrefixTree::StreamingPages::kAll);
  return true;
}

}  // namespace lserve
