// The part of page and tile selection that is no SIMD: which pages are free to choose from, softmax
// over scores, the best ones, runs. Used by select_pages.cc, select_tiles.cc and their tests.
#pragma once

#include <span>
#include <vector>

#include "backend/ops.h"

namespace lserve {

// Pages [first, last) are between the forced ones; `num_chosen` of them fit the budget.
struct FreePages {
  PageIdx first = 0;
  PageIdx last = 0;
  int num_chosen = 0;
  int count() const { return last - first; }
};
FreePages FreePagesOf(const SelectRequest& request);

// The list when nothing is scored: all free pages are kept or none is.
std::vector<PageRun> ForcedRuns(const SelectRequest& request, const FreePages& free);

// Softmax of scale * scores over the pages of each query head, summed over the group (a mean but
// for a constant). `scores` is [group, pages]. In double, so that pages far below the best keep
// their order.
std::vector<double> MeanSoftmax(std::span<const float> scores, int group, float scale);

// The `count` best indices, ascending; ties go to the lower index.
std::vector<PageIdx> BestPages(std::span<const double> mass, int count);

// Forced pages and `chosen` (ascending, free) as ascending runs, none touching another.
std::vector<PageRun> MergeRuns(const SelectRequest& request,
                               const FreePages& free,
                               std::span<const PageIdx> chosen);

// The listed tiles of a query tile whose key tiles have these masses (ops.h, SelectTilesParams):
// ascending runs of pages, none touching another.
std::vector<PageRun> ChooseTiles(const TileSelectRequest& request, std::span<const double> masses);

}  // namespace lserve
