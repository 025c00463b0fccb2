#include "engine/attention_probe.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/policy.h"
#include "base/check.h"

namespace lserve {
namespace {

constexpr size_t kQueriesAtOnce = 16;

const KvLayout& LayoutOf(const AttentionView& view) {
  return view.attention->store->layout();
}

const SequencePages& PagesOf(const AttentionView& view) {
  return view.attention->sequences[static_cast<size_t>(view.range.sequence)];
}

// Whether the layer has heads of this way and all their pages are here.
bool IsWhole(const AttentionView& view, Way way, PageIdx num_pages) {
  if (LayoutOf(view).way(way).num_slots(view.layer()) == 0) return false;
  const std::span<const PageId> pages =
      PagesOf(view).pages[Index(way)].first(static_cast<size_t>(num_pages));
  return std::find(pages.begin(), pages.end(), kNoPage) == pages.end();
}

PlanRow QueryRow(const AttentionView& view, Way way, int64_t position) {
  return {
      .sequence = view.range.sequence,
      .way = way,
      .first_query = view.range.first_row + static_cast<int>(position - view.range.first_position),
      .num_queries = 1,
      .first_position = position};
}

// The logarithms of the weights under a plan, on the host.
struct LogSums {
  int num_q_heads = 0;
  int64_t stride = 0;
  std::vector<float> values;  // [rows, num_q_heads, stride]

  std::span<const float> of(size_t row, int head) const {
    const size_t first = (row * static_cast<size_t>(num_q_heads) + static_cast<size_t>(head)) *
                         static_cast<size_t>(stride);
    return std::span(values).subspan(first, static_cast<size_t>(stride));
  }
};

Result<LogSums> Compute(const AttentionView& view, const PagePlan& plan) {
  const AttentionParams& attention = *view.attention;
  LogSums sums;
  sums.num_q_heads = attention.num_q_heads;
  sums.stride = NumPages(view.end());
  sums.values.resize(plan.rows.size() * static_cast<size_t>(sums.num_q_heads) *
                     static_cast<size_t>(sums.stride));
  if (sums.values.empty()) return sums;
  const size_t bytes = sums.values.size() * sizeof(float);
  const Buffer buffer = LS_TRY(view.backend->Allocate(bytes));
  // Of a step the backend may keep copies by address, and this plan lies where an earlier one may
  // have been.
  view.backend->BeginStep();
  LS_TRY(view.backend->PageLogSums({.q = attention.q,
                                    .num_q_heads = attention.num_q_heads,
                                    .scale = attention.scale,
                                    .store = attention.store,
                                    .layer = attention.layer,
                                    .sequences = attention.sequences,
                                    .plan = &plan,
                                    .log_sums = buffer.as<float>(),
                                    .stride = sums.stride}));
  LS_TRY(view.backend->CopyToHost(sums.values.data(), buffer.data.get(), bytes));
  return sums;
}

// ln(sum of exp(x)), -infinity for nothing.
double Total(std::span<const float> x) {
  const double max = *std::max_element(x.begin(), x.end());
  if (!std::isfinite(max)) return max;
  double sum = 0;
  for (const float value : x) sum += std::exp(double{value} - max);
  return max + std::log(sum);
}

// exp(part - whole), and 0 where nothing has weight or the model computes no numbers.
double Share(double part, double whole) {
  const double share = std::exp(part - whole);
  return std::isfinite(share) ? share : 0.0;
}

// Copies the rows of the plan that ran which hold the query, narrowed to it.
void AddRowsThatRan(const AttentionView& view, int64_t position, PagePlan* plan) {
  for (PlanRow row : view.attention->plan->rows) {
    const int64_t offset = position - row.first_position;
    if (row.sequence != view.range.sequence || offset < 0 || offset >= row.num_queries) continue;
    row.first_query += static_cast<int>(offset);
    row.num_queries = 1;
    row.first_position = position;
    plan->rows.push_back(row);
  }
}

// A plan whose rows may be copies of those of the plan that ran.
PagePlan WithListsOf(const AttentionView& view) {
  const PagePlan& ran = *view.attention->plan;
  return {.rows = {}, .runs = ran.runs, .selections = ran.selections};
}

// The KV heads of a way in the layer.
std::span<const int> HeadsOf(const AttentionView& view, Way way) {
  return LayoutOf(view).way(way).heads[static_cast<size_t>(view.layer())];
}

// What rows are for in the plan of MeasureMass.
struct Query {
  int64_t position = 0;
  size_t first_dense = 0, first_seen = 0, last = 0;  // rows of the plan
};

HeadMass MassOf(const AttentionView& view,
                const PagePlan& plan,
                const LogSums& sums,
                const Query& query,
                size_t dense_row,
                int kv_head) {
  const Way way = plan.rows[dense_row].way;
  const int group = sums.num_q_heads / LayoutOf(view).num_kv_heads;
  HeadMass mass{.kv_head = kv_head,
                .way = way,
                .pages = std::vector<double>(static_cast<size_t>(NumPages(query.position + 1))),
                .seen = 0};
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const std::span<const float> dense = sums.of(dense_row, head);
    const double whole = Total(dense);
    for (size_t page = 0; page < mass.pages.size(); ++page) {
      mass.pages[page] += Share(double{dense[page]}, whole) / group;
    }
    for (size_t row = query.first_seen; row < query.last; ++row) {
      if (plan.rows[row].way == way) mass.seen += Share(Total(sums.of(row, head)), whole) / group;
    }
  }
  return mass;
}

Status MeasureSome(const AttentionView& view,
                   std::span<const int64_t> positions,
                   const std::optional<AttentionSettings>& streaming,
                   std::vector<QueryMass>* out) {
  PagePlan plan = WithListsOf(view);
  std::vector<Query> queries;
  for (const int64_t position : positions) {
    LS_CHECK_GE(position, view.range.first_position);
    LS_CHECK_LT(position, view.end());
    Query query{.position = position, .first_dense = plan.rows.size()};
    std::vector<Way> ways;
    for (const Way way : kWays) {
      if (!IsWhole(view, way, NumPages(position + 1))) continue;
      ways.push_back(way);
      AddDenseQuery(QueryRow(view, way, position), &plan);
    }
    query.first_seen = plan.rows.size();
    if (streaming) {
      for (const Way way : ways) {
        AddStreamingQuery(*streaming, QueryRow(view, way, position), &plan);
      }
    } else {
      AddRowsThatRan(view, position, &plan);
    }
    query.last = plan.rows.size();
    queries.push_back(query);
  }
  const LogSums sums = LS_TRY(Compute(view, plan));
  for (const Query& query : queries) {
    QueryMass mass{.position = query.position, .heads = {}};
    for (size_t row = query.first_dense; row < query.first_seen; ++row) {
      for (const int kv_head : HeadsOf(view, plan.rows[row].way)) {
        mass.heads.push_back(MassOf(view, plan, sums, query, row, kv_head));
      }
    }
    std::sort(mass.heads.begin(), mass.heads.end(),
              [](const HeadMass& a, const HeadMass& b) { return a.kv_head < b.kv_head; });
    out->push_back(std::move(mass));
  }
  return Status();
}

}  // namespace

Result<std::vector<QueryMass>> MeasureMass(const AttentionView& view,
                                           std::span<const int64_t> positions,
                                           const std::optional<AttentionSettings>& streaming) {
  std::vector<QueryMass> masses;
  for (size_t first = 0; first < positions.size(); first += kQueriesAtOnce) {
    const size_t count = std::min(kQueriesAtOnce, positions.size() - first);
    LS_TRY(MeasureSome(view, positions.subspan(first, count), streaming, &masses));
  }
  return masses;
}

Result<QueryMass> MeasureReading(const AttentionView& view,
                                 int64_t position,
                                 int64_t first,
                                 int64_t last) {
  LS_CHECK_LE(last, position + 1);
  QueryMass mass{.position = position, .heads = {}};
  if (first >= last) return mass;
  // Two rows each: what the plan showed, and of it the part that is asked for. A mask sees
  // positions only, so a row that pretends to stand at `last - 1` ends there.
  PagePlan plan = WithListsOf(view);
  AddRowsThatRan(view, position, &plan);
  std::erase_if(plan.rows, [](const PlanRow& row) { return row.way != Way::kRetrieval; });
  const size_t num_rows = plan.rows.size();
  for (size_t i = 0; i < num_rows; ++i) {
    PlanRow part = plan.rows[i];
    LS_CHECK_EQ(part.window, kNoWindow) << "a retrieval head has no window";
    part.first_position = last - 1;
    part.window = last - first;
    plan.rows.push_back(part);
  }
  const LogSums sums = LS_TRY(Compute(view, plan));
  const int group = sums.num_q_heads / LayoutOf(view).num_kv_heads;
  for (const int kv_head : HeadsOf(view, Way::kRetrieval)) {
    HeadMass head{.kv_head = kv_head,
                  .way = Way::kRetrieval,
                  .pages = std::vector<double>(static_cast<size_t>(NumPages(position + 1))),
                  .seen = 0};
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      for (size_t i = 0; i < num_rows; ++i) {
        const double whole = Total(sums.of(i, h));
        const std::span<const float> part = sums.of(num_rows + i, h);
        for (size_t page = 0; page < head.pages.size(); ++page) {
          const double share = Share(double{part[page]}, whole) / group;
          head.pages[page] += share;
          head.seen += share;
        }
      }
    }
    mass.heads.push_back(std::move(head));
  }
  return mass;
}

Result<std::vector<std::vector<double>>> MeasureStreamingChange(
    const AttentionView& view,
    std::span<const int64_t> positions,
    const AttentionSettings& streaming) {
  const KvLayout& layout = LayoutOf(view);
  std::vector<std::vector<double>> changes(
      positions.size(), std::vector<double>(static_cast<size_t>(layout.num_kv_heads)));
  PagePlan plan;
  for (const int64_t position : positions) {
    for (const Way way : kWays) {
      if (!IsWhole(view, way, NumPages(position + 1))) continue;
      AddStreamingQuery(streaming, QueryRow(view, way, position), &plan);
    }
  }
  if (plan.rows.empty()) return changes;
  // The op itself under another plan: what the head would have said, rounding and all.
  const Matrix out = view.attention->out;
  const size_t row_bytes = static_cast<size_t>(out.cols) * sizeof(float);
  const Buffer buffer = LS_TRY(view.backend->Allocate(static_cast<size_t>(out.rows) * row_bytes));
  AttentionParams params = *view.attention;
  params.plan = &plan;
  params.out = {.data = buffer.data.get(),
                .dtype = DType::kF32,
                .rows = out.rows,
                .cols = out.cols,
                .stride = out.cols};
  view.backend->BeginStep();  // as in Compute()
  LS_TRY(view.backend->DecodeAttention(params));
  std::vector<float> was(static_cast<size_t>(out.cols)), is(was);
  const int64_t width = out.cols / layout.num_kv_heads;  // of a group
  for (const PlanRow& row : plan.rows) {
    const size_t index = static_cast<size_t>(
        std::find(positions.begin(), positions.end(), row.first_position) - positions.begin());
    LS_TRY(view.backend->CopyToHost(was.data(), out.row<float>(row.first_query), row_bytes));
    LS_TRY(view.backend->CopyToHost(is.data(), params.out.row<float>(row.first_query), row_bytes));
    for (const int kv_head : HeadsOf(view, row.way)) {
      double change = 0, norm = 0;
      for (int64_t i = kv_head * width; i < (kv_head + 1) * width; ++i) {
        const double a = was[static_cast<size_t>(i)], b = is[static_cast<size_t>(i)];
        change += (a - b) * (a - b);
        norm += a * a;
      }
      const double relative = std::sqrt(change / norm);
      changes[index][static_cast<size_t>(kv_head)] = std::isfinite(relative) ? relative : 0.0;
    }
  }
  return changes;
}

}  // namespace lserve
