#include <cmath>
#include <limits>
#include <vector>

#include "backend/reference/reference_backend.h"
#include "backend/reference/reference_kv_store.h"
#include "base/check.h"

namespace lserve {
namespace {

// One query of one query head.
struct Query {
  std::vector<double> q;  // [head_dim], rounded to bf16
  int64_t position = 0;
};

// Two passes in the order of the definition: the maximum, then weights and their sum.
void Attend(const ReferenceKvStore& store,
            const AttentionParams& params,
            const PlanRow& row,
            int slot,
            const Query& query,
            float* out) {
  const int head_dim = store.layout().head_dim;
  const SequencePages& pages = params.sequences[static_cast<size_t>(row.sequence)];
  const int entry =
      store.layout().way(row.way).first_entry[static_cast<size_t>(params.layer)] + slot;

  const auto for_each_key = [&](auto&& f) {
    ForEachPage(*params.plan, row, entry, [&](PageIdx page) {
      const ReferencePart part = store.Part(row.way, pages.page(row.way, page), params.layer, slot);
      for (int token = 0; token < kPageTokens; ++token) {
        if (Visible(row, query.position, int64_t{page} * kPageTokens + token)) f(part, token);
      }
    });
  };
  std::vector<double> scores;
  double max = -std::numeric_limits<double>::infinity();
  for_each_key([&](const ReferencePart& part, int token) {
    double dot = 0;
    for (int d = 0; d < head_dim; ++d) {
      dot += query.q[static_cast<size_t>(d)] * part.Load(ReferencePart::kKey, token, d);
    }
    scores.push_back(dot * params.scale);
    max = std::max(max, scores.back());
  });
  std::vector<double> sum(static_cast<size_t>(head_dim), 0.0);
  double weights = 0;
  size_t i = 0;
  for_each_key([&](const ReferencePart& part, int token) {
    const double weight = std::exp(scores[i++] - max);
    weights += weight;
    for (int d = 0; d < head_dim; ++d) {
      sum[static_cast<size_t>(d)] += weight * part.Load(ReferencePart::kValue, token, d);
    }
  });
  for (int d = 0; d < head_dim; ++d) {
    out[d] = scores.empty() ? 0.0f : static_cast<float>(sum[static_cast<size_t>(d)] / weights);
  }
}

void AttendSlot(const ReferenceKvStore& store,
                const AttentionParams& params,
                const PlanRow& row,
                int slot) {
  const KvLayout& layout = store.layout();
  const int group = params.num_q_heads / layout.num_kv_heads;
  const int kv_head =
      layout.way(row.way).heads[static_cast<size_t>(params.layer)][static_cast<size_t>(slot)];
  for (int i = 0; i < row.num_queries; ++i) {
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      const int64_t column = int64_t{h} * layout.head_dim;
      const float* q = params.q.row<float>(row.first_query + i) + column;
      Query query{.q = {}, .position = row.first_position + i};
      for (int d = 0; d < layout.head_dim; ++d) query.q.push_back(ToFloat(ToBf16(q[d])));
      Attend(store, params, row, slot, query, params.out.row<float>(row.first_query + i) + column);
    }
  }
}

}  // namespace

Status ReferenceBackend::PrefillAttention(const AttentionParams& params) {
  const auto& store = *static_cast<const ReferenceKvStore*>(params.store);
  LS_CHECK_EQ(params.num_q_heads % store.layout().num_kv_heads, 0);
  for (const PlanRow& row : params.plan->rows) {
    const int num_slots = store.layout().way(row.way).num_slots(params.layer);
    for (int slot = 0; slot < num_slots; ++slot) {
      if (row.slot == kAllSlots || row.slot == slot) AttendSlot(store, params, row, slot);
    }
  }
  return Status();
}

// The definition does not know how many queries a row has.
Status ReferenceBackend::DecodeAttention(const AttentionParams& params) {
  return PrefillAttention(params);
}

}  // namespace lserve
