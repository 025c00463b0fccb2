#include "bench/selector_study/selector_backend.h"

#include <algorithm>
#include <cmath>

#include "backend/cpu/page_choice.h"
#include "base/check.h"

namespace lserve::study {
namespace {

// The smallest cosine between the rows of a and b, [rows, n].
double LeastCosine(const std::vector<float>& a, const std::vector<float>& b, int n) {
  double least = 1;
  for (size_t first = 0; first < a.size(); first += static_cast<size_t>(n)) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = first; i < first + static_cast<size_t>(n); ++i) {
      ab += double{a[i]} * b[i];
      aa += double{a[i]} * a[i];
      bb += double{b[i]} * b[i];
    }
    least = std::min(least, ab / std::sqrt(aa * bb));
  }
  return least;
}

}  // namespace

void SelectorBackend::Use(const std::optional<Strategy>& strategy) {
  strategy_ = strategy;
  kept_.clear();
  lists_due_ = lists_made_ = 0;
}

Result<std::unique_ptr<KvStore>> SelectorBackend::MakeKvStore(const KvLayout& layout,
                                                              const PageId (&max_pages)[kNumWays]) {
  std::unique_ptr<KvStore> store = LS_TRY(MeteredBackend::MakeKvStore(layout, max_pages));
  const auto* cpu_store = dynamic_cast<const CpuKvStore*>(store.get());
  LS_CHECK(cpu_store != nullptr) << "the study reads the pages of the cpu backend";
  scores_ = std::make_unique<PageScores>(*cpu_store);
  return store;
}

Status SelectorBackend::AppendKv(const AppendKvParams& params) {
  for (const RowRange& range : params.ranges) {
    const SequencePages& pages = params.sequences[static_cast<size_t>(range.sequence)];
    if (params.store->layout().way(Way::kRetrieval).num_entries == 0) break;
    const PageIdx last = NumPages(range.first_position + range.num_rows);
    for (auto p = static_cast<PageIdx>(range.first_position / kPageTokens); p < last; ++p) {
      scores_->Forget(pages.page(Way::kRetrieval, p));
    }
  }
  return MeteredBackend::AppendKv(params);
}

bool SelectorBackend::IsDue(const Kept& kept, const std::vector<float>& q, int head_dim) const {
  if (kept.q.empty() || kept.age >= strategy_->interval) return true;
  return strategy_->least_cosine > -1 && LeastCosine(kept.q, q, head_dim) < strategy_->least_cosine;
}

Status SelectorBackend::SelectPages(const SelectPagesParams& params) {
  if (!strategy_) return MeteredBackend::SelectPages(params);
  const KvLayout& layout = params.store->layout();
  const WayLayout& way = layout.way(Way::kRetrieval);
  kept_.resize(static_cast<size_t>(way.num_entries));
  LS_CHECK_EQ(params.requests.size(), size_t{1});
  for (int slot = 0; slot < way.num_slots(params.layer); ++slot) {
    Select(params, params.requests[0], slot);
  }
  return Status();
}

void SelectorBackend::Select(const SelectPagesParams& params,
                             const SelectRequest& request,
                             int slot) {
  const KvLayout& layout = params.store->layout();
  const WayLayout& way = layout.way(Way::kRetrieval);
  const size_t layer = static_cast<size_t>(params.layer);
  const int group = params.num_q_heads / layout.num_kv_heads;
  const float* row = params.q.row<float>(request.query_row) +
                     int64_t{way.heads[layer][static_cast<size_t>(slot)]} * group * layout.head_dim;
  std::vector<float> q(row, row + int64_t{group} * layout.head_dim);
  for (float& x : q) x = ToFloat(ToBf16(x));
  const int entry = way.first_entry[layer] + slot;
  Kept& kept = kept_[static_cast<size_t>(entry)];
  const int64_t step = lists_due_++ / way.num_entries;
  if (step >= strategy_->eager_steps && !IsDue(kept, q, layout.head_dim)) {
    ++kept.age;
    return;
  }
  ++lists_made_;
  kept.q = q;
  kept.age = 1;
  const FreePages free = FreePagesOf(request);
  std::vector<PageId> pages;
  for (PageIdx p = free.first; p < free.last; ++p) {
    pages.push_back(
        params.sequences[static_cast<size_t>(request.sequence)].page(Way::kRetrieval, p));
  }
  std::vector<float> scores(static_cast<size_t>(group) * pages.size());
  for (int h = 0; h < group; ++h) {
    scores_->Compute(
        strategy_->score, strategy_->logical, params.layer, slot, pages,
        std::span(q).subspan(static_cast<size_t>(h) * static_cast<size_t>(layout.head_dim),
                             static_cast<size_t>(layout.head_dim)),
        params.scale, scores.data() + static_cast<size_t>(h) * pages.size());
  }
  std::vector<PageIdx> best = ChoosePages(strategy_->grouping, scores, group, free.num_chosen);
  for (PageIdx& page : best) page += free.first;
  const std::vector<PageRun> runs = MergeRuns(request, free, best);
  LS_CHECK_LE(static_cast<int>(runs.size()), request.table.capacity);
  std::copy(runs.begin(), runs.end(), request.table.runs + int64_t{entry} * request.table.capacity);
  request.table.num_runs[entry] = static_cast<int>(runs.size());
}

}  // namespace lserve::study
