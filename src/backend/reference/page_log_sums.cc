#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/reference/reference_backend.h"
#include "backend/reference/reference_kv_store.h"
#include "base/check.h"

namespace lserve {
namespace {

constexpr double kNothing = -std::numeric_limits<double>::infinity();

// The row's query, query head `head`, on one page.
double LogSum(const PageLogSumsParams& params,
              const PlanRow& row,
              const ReferencePart& part,
              int head,
              PageIdx page) {
  const int head_dim = params.store->layout().head_dim;
  const float* q = params.q.row<float>(row.first_query) + int64_t{head} * head_dim;
  std::vector<double> scores;
  for (int token = 0; token < kPageTokens; ++token) {
    if (!Visible(row, row.first_position, int64_t{page} * kPageTokens + token)) continue;
    double dot = 0;
    for (int d = 0; d < head_dim; ++d) {
      dot += double{ToFloat(ToBf16(q[d]))} * part.Load(ReferencePart::kKey, token, d);
    }
    scores.push_back(dot * params.scale);
  }
  if (scores.empty()) return kNothing;
  const double max = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double score : scores) sum += std::exp(score - max);
  return max + std::log(sum);
}

}  // namespace

Status ReferenceBackend::PageLogSums(const PageLogSumsParams& params) {
  const auto& store = *static_cast<const ReferenceKvStore*>(params.store);
  const KvLayout& layout = store.layout();
  const int group = params.num_q_heads / layout.num_kv_heads;
  const std::vector<PlanRow>& rows = params.plan->rows;
  std::fill_n(params.log_sums,
              static_cast<int64_t>(rows.size()) * params.num_q_heads * params.stride,
              static_cast<float>(kNothing));
  for (size_t i = 0; i < rows.size(); ++i) {
    const PlanRow& row = rows[i];
    LS_CHECK_EQ(row.num_queries, 1);
    const WayLayout& way = layout.way(row.way);
    for (int slot = 0; slot < way.num_slots(params.layer); ++slot) {
      if (row.slot != kAllSlots && row.slot != slot) continue;
      const int kv_head = way.heads[static_cast<size_t>(params.layer)][static_cast<size_t>(slot)];
      const int entry = way.first_entry[static_cast<size_t>(params.layer)] + slot;
      const SequencePages& pages = params.sequences[static_cast<size_t>(row.sequence)];
      ForEachPage(*params.plan, row, entry, [&](PageIdx page) {
        LS_CHECK_LT(page, params.stride);
        const ReferencePart part =
            store.Part(row.way, pages.page(row.way, page), params.layer, slot);
        for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
          const int64_t at = static_cast<int64_t>(i) * params.num_q_heads + head;
          params.log_sums[at * params.stride + page] =
              static_cast<float>(LogSum(params, row, part, head, page));
        }
      });
    }
  }
  return Status();
}

}  // namespace lserve
