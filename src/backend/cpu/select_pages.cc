// SelectPages: scores of all pages by their min/max bounds (the kernels), then per KV head the
// softmax over the group's query heads and the choice.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "backend/cpu/aligned_array.h"
#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/attention_scratch.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_kv_store.h"
#include "backend/cpu/page_choice.h"
#include "base/check.h"

namespace lserve {
namespace {

// Pages scored per item: 256 KiB of statistics of 64-dimensional heads.
constexpr int kPagesPerItem = 256;

struct Item {
  const SelectRequest* request;
  int slot;
  int unit;
  PageIdx first;  // pages [first, last), not forced
  PageIdx last;
};

// One (request, slot): its scores and how many items still work on them.
struct Unit {
  std::vector<float> scores;  // [group, pages that are not forced]
  std::unique_ptr<std::atomic<int>> items_left;
};

class Selection {
 public:
  Selection(const SelectPagesParams& params, const AttentionKernels& kernels)
      : params_(params),
        kernels_(kernels),
        store_(static_cast<const CpuKvStore&>(*params.store)),
        way_(store_.layout().way(Way::kRetrieval)),
        head_dim_(store_.part().head_dim),
        width_(store_.part().width),
        group_(params.num_q_heads / store_.layout().num_kv_heads) {
    LS_CHECK_EQ(group_ * store_.layout().num_kv_heads, params.num_q_heads);
    LS_CHECK_EQ(params.q.cols, int64_t{params.num_q_heads} * width_);
    for (const SelectRequest& request : params.requests) AddRequest(request);
  }

  void Run(ThreadPool& pool) {
    pool.Run(static_cast<int64_t>(items_.size()), [&](int64_t i, int /*thread*/) {
      const Item& item = items_[static_cast<size_t>(i)];
      Unit& unit = units_[static_cast<size_t>(item.unit)];
      Score(item, unit);
      if (unit.items_left->fetch_sub(1, std::memory_order_acq_rel) == 1) Choose(item, unit);
    });
  }

 private:
  void AddRequest(const SelectRequest& request);
  void Score(const Item& item, Unit& unit) const;
  void Choose(const Item& item, const Unit& unit) const;
  void Write(const Item& item, std::span<const PageRun> runs) const;
  int entry(int slot) const { return way_.first_entry[static_cast<size_t>(params_.layer)] + slot; }

  const SelectPagesParams& params_;
  const AttentionKernels& kernels_;
  const CpuKvStore& store_;
  const WayLayout& way_;
  const int head_dim_;  // as stored, see KvPart
  const int width_;     // as in q
  const int group_;
  std::vector<Unit> units_;
  std::vector<Item> items_;
};

void Selection::AddRequest(const SelectRequest& request) {
  const FreePages free = FreePagesOf(request);
  for (int slot = 0; slot < way_.num_slots(params_.layer); ++slot) {
    if (free.num_chosen == 0 || free.num_chosen == free.count()) {
      const Item item = {&request, slot, 0, 0, 0};
      Write(item, ForcedRuns(request, free));
      continue;
    }
    const int unit = static_cast<int>(units_.size());
    int num_items = 0;
    for (PageIdx first = free.first; first < free.last; first += kPagesPerItem, ++num_items) {
      items_.push_back({&request, slot, unit, first, std::min(first + kPagesPerItem, free.last)});
    }
    units_.push_back(
        {std::vector<float>(static_cast<size_t>(group_) * static_cast<size_t>(free.count())),
         std::make_unique<std::atomic<int>>(num_items)});
  }
}

void Selection::Score(const Item& item, Unit& unit) const {
  const int kv_head =
      way_.heads[static_cast<size_t>(params_.layer)][static_cast<size_t>(item.slot)];
  const float* q =
      params_.q.row<float>(item.request->query_row) + int64_t{kv_head} * group_ * width_;
  const int64_t q_bytes = int64_t{32} * head_dim_;
  const AlignedArray<std::byte> packed(q_bytes * group_);
  std::vector<float> head(static_cast<size_t>(head_dim_), 0.0f);
  for (int h = 0; h < group_; ++h) {
    std::copy_n(q + int64_t{h} * width_, width_, head.begin());
    kernels_.pack_bound_query(head.data(), head_dim_, packed.data() + h * q_bytes);
  }
  const SequencePages& pages = params_.sequences[static_cast<size_t>(item.request->sequence)];
  std::vector<const uint16_t*> stats;
  for (PageIdx p = item.first; p < item.last; ++p) {
    const PageId id = pages.page(Way::kRetrieval, p);
    LS_CHECK_GE(id, 0) << "page " << p << " of the retrieval way was trimmed";
    stats.push_back(reinterpret_cast<const uint16_t*>(
        store_.stats_part(Way::kRetrieval, id, params_.layer, item.slot)));
  }
  const FreePages free = FreePagesOf(*item.request);
  kernels_.score_pages({.head_dim = head_dim_,
                        .num_heads = group_,
                        .num_pages = item.last - item.first,
                        .q = packed.data(),
                        .stats = stats.data(),
                        .scores = unit.scores.data() + (item.first - free.first),
                        .stride = free.count()});
}

void Selection::Choose(const Item& item, const Unit& unit) const {
  const FreePages free = FreePagesOf(*item.request);
  const std::vector<double> mass = MeanSoftmax(unit.scores, group_, params_.scale);
  std::vector<PageIdx> best = BestPages(mass, free.num_chosen);
  for (PageIdx& page : best) page += free.first;
  Write(item, MergeRuns(*item.request, free, best));
}

void Selection::Write(const Item& item, std::span<const PageRun> runs) const {
  const SelectionTable& table = item.request->table;
  LS_CHECK_LE(static_cast<int64_t>(runs.size()), int64_t{table.capacity});
  const int at = entry(item.slot);
  std::copy(runs.begin(), runs.end(), table.runs + int64_t{at} * table.capacity);
  table.num_runs[at] = static_cast<int>(runs.size());
}

}  // namespace

int64_t PageSelectionScratchBytes(const ScratchQuery& query) {
  const AttentionLimits& limits = query.limits;
  // Scores of every head, and what one thread makes of those of a sequence: softmax, order, runs.
  return limits.sequences * limits.pages * limits.num_q_heads * int64_t{sizeof(float)} +
         query.num_threads * limits.pages * 4 * int64_t{sizeof(double)};
}

Status CpuBackend::SelectPages(const SelectPagesParams& params) {
  Selection(params, *attention_).Run(pool_);
  return Status();
}

}  // namespace lserve
