#include "engine/reading.h"

#include <algorithm>
#include <numeric>

namespace lserve {
namespace {

// The first tokens of any text get weight that means nothing (the attention sink).
constexpr int64_t kSinkTokens = 4;
// Pages below this share of the heaviest one are noise, and so are those beyond the count.
constexpr double kLeastShare = 0.1;
constexpr size_t kMostPages = 8;

}  // namespace

Reading::Reading(int64_t prompt_size, int64_t first, int64_t last)
    : prompt_size_(prompt_size),
      first_(std::max(first, kSinkTokens)),
      last_(std::min(last, prompt_size)),
      pages_(static_cast<size_t>(NumPages(prompt_size))) {}

Status Reading::Observe(const AttentionView& view) {
  if (!view.decodes && view.end() != prompt_size_) return Status();
  const QueryMass mass = LS_TRY(MeasureReading(view, view.end() - 1, first_, last_));
  if (first_ >= last_) return Status();
  const size_t first_page = static_cast<size_t>(first_ / kPageTokens);
  const size_t last_page = static_cast<size_t>(NumPages(last_));
  for (const HeadMass& head : mass.heads) {
    const double even = head.seen / static_cast<double>(last_page - first_page);
    for (size_t page = first_page; page < last_page; ++page) {
      // What a head spreads evenly is no choice.
      const double more = std::max(0.0, head.pages[page] - even);
      pages_[page] += more * more;
    }
  }
  return Status();
}

std::vector<ReadPart> Reading::Parts(int most) const {
  const double sum = std::accumulate(pages_.begin(), pages_.end(), 0.0);
  if (!(sum > 0)) return {};
  std::vector<size_t> order(pages_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return pages_[a] > pages_[b]; });
  const double least = kLeastShare * pages_[order[0]];
  order.resize(std::min(order.size(), kMostPages));
  std::erase_if(order, [&](size_t page) { return pages_[page] < least; });
  std::sort(order.begin(), order.end());
  std::vector<ReadPart> parts;
  for (const size_t page : order) {
    const int64_t first = std::max(first_, static_cast<int64_t>(page) * kPageTokens);
    const int64_t last = std::min(last_, static_cast<int64_t>(page + 1) * kPageTokens);
    const double weight = pages_[page] / sum;
    if (!parts.empty() && parts.back().last == first) {
      parts.back().last = last;
      parts.back().weight += weight;
    } else {
      parts.push_back({first, last, weight});
    }
  }
  std::stable_sort(parts.begin(), parts.end(),
                   [](const ReadPart& a, const ReadPart& b) { return a.weight > b.weight; });
  if (parts.size() > static_cast<size_t>(most)) parts.resize(static_cast<size_t>(most));
  return parts;
}

}  // namespace lserve
