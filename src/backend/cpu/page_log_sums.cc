// PageLogSums: plain loops over one page at a time, which the compiler makes vectors of. Observers
// read some queries of some steps; a kernel per instruction set would not be felt.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/cpu/aligned_array.h"
#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_kv_store.h"
#include "backend/cpu/page_visits.h"
#include "base/check.h"

namespace lserve {
namespace {

constexpr int kPagesPerItem = 64;

// Some visits of one (row, KV head).
struct Item {
  int row;
  int slot;
  int first;  // visits [first, last)
  int last;
};

// scores[k] = q k over the 64 keys of a PageTile; q is [head_dim].
void ScorePage(const float* q, const uint16_t* keys, int head_dim, float* scores) {
  std::fill_n(scores, kPageTokens, 0.0f);
  for (int pair = 0; pair < head_dim / 2; ++pair) {
    const float even = q[2 * pair], odd = q[2 * pair + 1];
    for (int k = 0; k < kPageTokens; ++k, keys += 2) {
      scores[k] += even * ToFloat(Bf16{keys[0]}) + odd * ToFloat(Bf16{keys[1]});
    }
  }
}

float LogSum(const float* scores, uint64_t visible, float scale) {
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  float max = kNothing;
  for (int k = 0; k < kPageTokens; ++k) {
    if ((visible >> k & 1) != 0) max = std::max(max, scores[k]);
  }
  if (max == kNothing) return kNothing;
  float sum = 0;
  for (int k = 0; k < kPageTokens; ++k) {
    if ((visible >> k & 1) != 0) sum += std::exp(scale * (scores[k] - max));
  }
  return scale * max + std::log(sum);
}

class LogSums {
 public:
  LogSums(const PageLogSumsParams& params, const AttentionKernels& kernels)
      : params_(params),
        kernels_(kernels),
        store_(static_cast<const CpuKvStore&>(*params.store)),
        group_(params.num_q_heads / store_.layout().num_kv_heads) {
    LS_CHECK_EQ(group_ * store_.layout().num_kv_heads, params.num_q_heads);
    LS_CHECK_EQ(params.q.cols, int64_t{params.num_q_heads} * store_.part().width);
    const int num_rows = static_cast<int>(params.plan->rows.size());
    std::fill_n(params.log_sums, num_rows * params.num_q_heads * params.stride,
                -std::numeric_limits<float>::infinity());
    for (int i = 0; i < num_rows; ++i) AddItems(i);
  }

  void Run(ThreadPool& pool) {
    pool.Run(static_cast<int64_t>(items_.size()),
             [&](int64_t i, int /*thread*/) { RunItem(items_[static_cast<size_t>(i)]); });
  }

 private:
  const PlanRow& row_of(int i) const { return params_.plan->rows[static_cast<size_t>(i)]; }

  PageVisits VisitsOf(const PlanRow& row, int slot) const {
    const WayLayout& way = store_.layout().way(row.way);
    return {*params_.plan, row, way.first_entry[static_cast<size_t>(params_.layer)] + slot};
  }

  void AddItems(int i) {
    const PlanRow& row = row_of(i);
    LS_CHECK_EQ(row.num_queries, 1);
    const int num_slots = store_.layout().way(row.way).num_slots(params_.layer);
    for (int slot = 0; slot < num_slots; ++slot) {
      if (row.slot != kAllSlots && row.slot != slot) continue;
      const int count = VisitsOf(row, slot).count();
      for (int first = 0; first < count; first += kPagesPerItem) {
        items_.push_back({i, slot, first, std::min(first + kPagesPerItem, count)});
      }
    }
  }

  void RunItem(const Item& item) const {
    const PlanRow& row = row_of(item.row);
    const KvPart& part = store_.part();
    const WayLayout& way = store_.layout().way(row.way);
    const int kv_head =
        way.heads[static_cast<size_t>(params_.layer)][static_cast<size_t>(item.slot)];
    const int first_head = kv_head * group_;
    // As stored, see KvPart: what is added to a key meets zeros.
    std::vector<float> q(static_cast<size_t>(group_) * static_cast<size_t>(part.head_dim), 0.0f);
    for (int h = 0; h < group_; ++h) {
      const float* from =
          params_.q.row<float>(row.first_query) + int64_t{first_head + h} * part.width;
      float* to = q.data() + int64_t{h} * part.head_dim;
      for (int d = 0; d < part.width; ++d) to[d] = ToFloat(ToBf16(from[d]));
    }
    const AlignedArray<uint16_t> dequantized(int64_t{kPageTokens} * part.head_dim);
    std::array<float, kPageTokens> scores;
    const SequencePages& pages = params_.sequences[static_cast<size_t>(row.sequence)];
    VisitsOf(row, item.slot).ForEach(item.first, item.last, [&](PageIdx page) {
      LS_CHECK_LT(page, params_.stride);
      const PageId id = pages.page(row.way, page);
      LS_CHECK_GE(id, 0) << "page " << page << " was trimmed";
      const std::byte* kv = store_.kv_part(row.way, id, params_.layer, item.slot);
      const uint16_t* keys = reinterpret_cast<const uint16_t*>(kv);
      if (part.dtype != DType::kBf16) {
        kernels_.dequantize_page(part.Quantized(kv), BitsOf(part.dtype), part.head_dim,
                                 dequantized.data(), nullptr);
        keys = dequantized.data();
      }
      const uint64_t visible = VisibleKeys(row, row.first_position, page);
      for (int h = 0; h < group_; ++h) {
        ScorePage(q.data() + int64_t{h} * part.head_dim, keys, part.head_dim, scores.data());
        const int64_t at = int64_t{item.row} * params_.num_q_heads + first_head + h;
        params_.log_sums[at * params_.stride + page] =
            LogSum(scores.data(), visible, params_.scale);
      }
    });
  }

  const PageLogSumsParams& params_;
  const AttentionKernels& kernels_;
  const CpuKvStore& store_;
  const int group_;
  std::vector<Item> items_;
};

}  // namespace

Status CpuBackend::PageLogSums(const PageLogSumsParams& params) {
  LogSums(params, *attention_).Run(pool_);
  return Status();
}

}  // namespace lserve
