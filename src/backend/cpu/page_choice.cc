#include "backend/cpu/page_choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace lserve {
namespace {

void Add(std::vector<PageRun>& runs, PageRun run) {
  if (run.first >= run.last) return;
  if (!runs.empty() && runs.back().last == run.first) {
    runs.back().last = run.last;
  } else {
    runs.push_back(run);
  }
}

}  // namespace

FreePages FreePagesOf(const SelectRequest& request) {
  FreePages free;
  free.first = std::min(request.sink_pages, request.num_pages);
  free.last = std::max(free.first, request.num_pages - request.newest_pages);
  const int forced = request.num_pages - free.count();
  free.num_chosen = std::clamp(request.budget_pages - forced, 0, free.count());
  return free;
}

std::vector<PageRun> ForcedRuns(const SelectRequest& request, const FreePages& free) {
  std::vector<PageRun> runs;
  Add(runs, {0, free.first});
  if (free.num_chosen > 0) Add(runs, {free.first, free.last});
  Add(runs, {free.last, request.num_pages});
  return runs;
}

std::vector<double> MeanSoftmax(std::span<const float> scores, int group, float scale) {
  const size_t n = scores.size() / static_cast<size_t>(group);
  std::vector<double> mass(n, 0.0);
  std::vector<double> weights(n);
  for (int h = 0; h < group; ++h) {
    const std::span<const float> row = scores.subspan(static_cast<size_t>(h) * n, n);
    const double max = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (size_t i = 0; i < n; ++i) {
      weights[i] = std::exp((double{row[i]} - max) * double{scale});
      sum += weights[i];
    }
    for (size_t i = 0; i < n; ++i) mass[i] += weights[i] / sum;
  }
  // NaN (from a broken model) has no order, and std::nth_element needs one.
  for (double& m : mass) m = m >= 0 ? m : 0;
  return mass;
}

std::vector<PageIdx> BestPages(std::span<const double> mass, int count) {
  std::vector<PageIdx> order(mass.size());
  std::iota(order.begin(), order.end(), 0);
  LS_CHECK_LE(static_cast<size_t>(count), order.size());
  const auto better = [&](PageIdx a, PageIdx b) {
    const double x = mass[static_cast<size_t>(a)];
    const double y = mass[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  std::nth_element(order.begin(), order.begin() + count, order.end(), better);
  order.resize(static_cast<size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<PageRun> MergeRuns(const SelectRequest& request,
                               const FreePages& free,
                               std::span<const PageIdx> chosen) {
  std::vector<PageRun> runs;
  Add(runs, {0, free.first});
  for (const PageIdx page : chosen) Add(runs, {page, page + 1});
  Add(runs, {free.last, request.num_pages});
  return runs;
}

std::vector<PageRun> ChooseTiles(const TileSelectRequest& request, std::span<const double> masses) {
  constexpr int kTilePages = kTileTokens / kPageTokens;
  const int num_tiles = static_cast<int>(masses.size());
  const int listed = std::max(0, num_tiles - request.newest_tiles);
  const int sink = std::min(request.sink_tiles, listed);
  // NaN (from a broken model) has no order, and std::sort needs one.
  const auto mass = [&](int tile) {
    const double m = masses[static_cast<size_t>(tile)];
    return m >= 0 ? m : 0.0;
  };
  double all = 0, read = 0;
  for (int tile = 0; tile < num_tiles; ++tile) {
    all += mass(tile);
    if (tile < sink || tile >= listed) read += mass(tile);
  }
  std::vector<int> order(static_cast<size_t>(listed - sink));
  std::iota(order.begin(), order.end(), sink);
  std::sort(order.begin(), order.end(),
            [&](int a, int b) { return mass(a) != mass(b) ? mass(a) > mass(b) : a < b; });
  const size_t most =
      std::min(order.size(), static_cast<size_t>(std::max(0, request.max_listed_tiles - sink)));
  size_t count = 0;
  while (count < most && read < request.threshold * all) read += mass(order[count++]);
  order.resize(count);
  std::sort(order.begin(), order.end());
  std::vector<PageRun> runs;
  Add(runs, {0, sink * kTilePages});
  for (const int tile : order) Add(runs, {tile * kTilePages, (tile + 1) * kTilePages});
  return runs;
}

}  // namespace lserve
