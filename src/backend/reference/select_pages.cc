#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/reference/reference_backend.h"
#include "backend/reference/reference_kv_store.h"
#include "base/check.h"

namespace lserve {
namespace {

// Largest value that q . k can take for a key inside the statistics' box (Quest, equation 2).
double Bound(const ReferencePart& part, int logical_page, const std::vector<double>& q) {
  double sum = 0;
  for (size_t d = 0; d < q.size(); ++d) {
    const int dim = static_cast<int>(d);
    sum +=
        std::max(q[d] * part.StatsMin(logical_page, dim), q[d] * part.StatsMax(logical_page, dim));
  }
  return sum;
}

// Adds to `mean` the softmax of `scores` divided by the number of query heads.
void AddSoftmax(const std::vector<double>& scores, int group, std::vector<double>* mean) {
  const double max = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double s : scores) sum += std::exp(s - max);
  for (size_t i = 0; i < scores.size(); ++i) (*mean)[i] += std::exp(scores[i] - max) / sum / group;
}

// Writes ascending pages as merged runs.
void WriteRuns(const std::vector<PageIdx>& pages, const SelectionTable& table, int entry) {
  PageRun* runs = table.runs + int64_t{entry} * table.capacity;
  int count = 0;
  for (const PageIdx page : pages) {
    if (count > 0 && runs[count - 1].last == page) {
      ++runs[count - 1].last;
      continue;
    }
    LS_CHECK_LT(count, table.capacity);
    runs[count++] = {.first = page, .last = page + 1};
  }
  table.num_runs[entry] = count;
}

}  // namespace

Status ReferenceBackend::SelectPages(const SelectPagesParams& params) {
  const auto& store = *static_cast<const ReferenceKvStore*>(params.store);
  const KvLayout& layout = store.layout();
  const WayLayout& way = layout.way(Way::kRetrieval);
  const int group = params.num_q_heads / layout.num_kv_heads;
  for (const SelectRequest& request : params.requests) {
    const SequencePages& pages = params.sequences[static_cast<size_t>(request.sequence)];
    const PageIdx first = std::min<PageIdx>(request.sink_pages, request.num_pages);
    const PageIdx last = std::max<PageIdx>(first, request.num_pages - request.newest_pages);
    const int keep = request.budget_pages - (request.num_pages - (last - first));
    for (int slot = 0; slot < way.num_slots(params.layer); ++slot) {
      const int kv_head = way.heads[static_cast<size_t>(params.layer)][static_cast<size_t>(slot)];
      std::vector<double> mean(static_cast<size_t>(last - first), 0.0);
      for (int h = kv_head * group; h < (kv_head + 1) * group && last > first; ++h) {
        const float* row = params.q.row<float>(request.query_row) + int64_t{h} * layout.head_dim;
        std::vector<double> q;
        for (int d = 0; d < layout.head_dim; ++d) q.push_back(ToFloat(ToBf16(row[d])));
        std::vector<double> scores;
        for (PageIdx page = first; page < last; ++page) {
          const ReferencePart part =
              store.Part(Way::kRetrieval, pages.page(Way::kRetrieval, page), params.layer, slot);
          double best = -std::numeric_limits<double>::infinity();
          for (int j = 0; j < kLogicalPagesPerPage; ++j) best = std::max(best, Bound(part, j, q));
          scores.push_back(best * params.scale);
        }
        AddSoftmax(scores, group, &mean);
      }
      // NaN (from a broken model) has no order, and a sort needs one.
      for (double& m : mean) m = m >= 0 ? m : 0;
      std::vector<PageIdx> order;
      for (PageIdx page = first; page < last; ++page) order.push_back(page);
      std::stable_sort(order.begin(), order.end(), [&](PageIdx a, PageIdx b) {
        return mean[static_cast<size_t>(a - first)] > mean[static_cast<size_t>(b - first)];
      });
      if (keep < static_cast<int>(order.size()))
        order.resize(static_cast<size_t>(std::max(0, keep)));
      for (PageIdx page = 0; page < first; ++page) order.push_back(page);
      for (PageIdx page = last; page < request.num_pages; ++page) order.push_back(page);
      std::sort(order.begin(), order.end());
      WriteRuns(order, request.table, way.first_entry[static_cast<size_t>(params.layer)] + slot);
    }
  }
  return Status();
}

}  // namespace lserve
