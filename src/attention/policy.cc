#include "attention/policy.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace lserve {
namespace {

constexpr int kTilePages = kTileTokens / kPageTokens;

int64_t RoundDown(int64_t x, int64_t unit) {
  return x / unit * unit;
}

// Appends a row that reads the sink pages, then everything from `first_token` on.
void AddSinkAndWindow(
    PlanRow row, int64_t first_token, int64_t num_keys, int unit, PagePlan* plan) {
  const PageIdx pages_per_unit = unit / kPageTokens;
  row.newest = {.first = static_cast<PageIdx>(RoundDown(first_token, unit) / kPageTokens),
                .last = NumPages(num_keys)};
  const PageIdx sink_pages =
      (NumPages(row.sink_end) + pages_per_unit - 1) / pages_per_unit * pages_per_unit;
  const PageIdx sink_last = std::min(sink_pages, row.newest.first);
  if (sink_last > 0) {
    row.first_run = static_cast<int>(plan->runs.size());
    row.num_runs = 1;
    plan->runs.push_back({.first = 0, .last = sink_last});
  }
  plan->rows.push_back(row);
}

void AddDense(PlanRow row, int64_t num_keys, PagePlan* plan) {
  row.newest = {.first = 0, .last = NumPages(num_keys)};
  plan->rows.push_back(row);
}

// The first position that the decode window of a query at `p` holds.
int64_t FirstOfWindow(const AttentionSettings& settings, int64_t p) {
  return std::max<int64_t>(0, p - settings.recent_tokens + 1);
}

// Whether something lies between sink and window.
bool StreamingSkips(const AttentionSettings& settings, int64_t p) {
  return FirstOfWindow(settings, p) > settings.sink_tokens;
}

// Appends a complete tile whose list is to be selected, unless the forced tiles are all there are.
bool AddSelectedTile(const AttentionSettings& settings, PlanRow row, PagePlan* plan) {
  const PageIdx tile = static_cast<PageIdx>(row.first_position / kTileTokens);
  const PageIdx newest = tile + 1 - kForcedNewestTiles;
  if (newest <= kForcedSinkTiles) return false;
  row.newest = {.first = newest * kTilePages, .last = (tile + 1) * kTilePages};
  row.selection = static_cast<int>(plan->selections.size());
  const int most = std::min<int>(newest, MaxListedTiles(settings));
  // Every other tile before the newest ones a run of its own, or as many as may be chosen.
  plan->selections.push_back(
      {.capacity = std::min<int>((newest + 1) / 2, most), .max_pages = most * kTilePages});
  plan->rows.push_back(row);
  return true;
}

}  // namespace

int64_t FirstSparsePosition(const AttentionSettings& settings) {
  switch (settings.mode) {
    case AttentionMode::kAuto:
      return settings.min_context;
    case AttentionMode::kDense:
      return std::numeric_limits<int64_t>::max();
    case AttentionMode::kSparse:
      return 0;
  }
  LS_CHECK(false) << "attention mode " << static_cast<int>(settings.mode);
  return 0;
}

int64_t FirstBlockSparsePosition(const AttentionSettings& settings) {
  if (!settings.selects_tiles()) return std::numeric_limits<int64_t>::max();
  return std::max(FirstSparsePosition(settings), settings.prefill_min_position);
}

int64_t ResumePosition(const AttentionSettings& settings, int64_t num_tokens) {
  const int64_t tile = RoundDown(num_tokens, kTileTokens);
  return tile >= FirstBlockSparsePosition(settings) ? tile : num_tokens;
}

int MaxListedTiles(const AttentionSettings& settings) {
  if (settings.prefill_max_tokens == 0) return kAllTiles;
  return settings.prefill_max_tokens / kTileTokens - kForcedNewestTiles;
}

int BudgetPages(const AttentionSettings& settings) {
  return settings.token_budget / kPageTokens;
}

int SelectionCapacity(const AttentionSettings& settings) {
  return BudgetPages(settings) - kForcedSinkPages - kForcedNewestPages + 2;
}

void PlanPrefill(const AttentionSettings& settings,
                 const KvLayout& layout,
                 const RowRange& range,
                 PagePlan* plan) {
  const int64_t first_sparse = FirstSparsePosition(settings);
  const int64_t first_block_sparse = FirstBlockSparsePosition(settings);
  const int64_t end = range.first_position + range.num_rows;
  for (int64_t p = range.first_position; p < end;) {
    int64_t next = std::min(end, RoundDown(p, kTileTokens) + kTileTokens);
    if (p < first_sparse) next = std::min(next, first_sparse);
    for (const Way way : kWays) {
      if (layout.way(way).num_entries == 0) continue;
      PlanRow row{.sequence = range.sequence,
                  .way = way,
                  .first_query = range.first_row + static_cast<int>(p - range.first_position),
                  .num_queries = static_cast<int>(next - p),
                  .first_position = p};
      if (way == Way::kRetrieval && row.num_queries == kTileTokens && p >= first_block_sparse &&
          AddSelectedTile(settings, row, plan)) {
        continue;
      }
      if (way == Way::kRetrieval || p < first_sparse) {
        AddDense(row, next, plan);
        continue;
      }
      row.sink_end = settings.sink_tokens;
      row.window = settings.prefill_window();
      const int64_t first_token = std::max<int64_t>(0, p - row.window + 1);
      AddSinkAndWindow(row, first_token, next, kTileTokens, plan);
    }
    p = next;
  }
}

bool ReadsSelectedPages(const AttentionSettings& settings,
                        const KvLayout& layout,
                        int64_t position) {
  return layout.way(Way::kRetrieval).num_entries > 0 && position >= FirstSparsePosition(settings) &&
         NumPages(position + 1) > BudgetPages(settings);
}

DecodeDecision PlanDecode(const AttentionSettings& settings,
                          const KvLayout& layout,
                          const RowRange& range,
                          SelectionState* state,
                          PagePlan* plan) {
  LS_CHECK_EQ(range.num_rows, 1);
  const int64_t p = range.first_position;
  const int64_t num_keys = p + 1;
  const PageIdx num_pages = NumPages(num_keys);
  const bool sparse = p >= FirstSparsePosition(settings);
  const PlanRow row{.sequence = range.sequence,
                    .first_query = range.first_row,
                    .num_queries = 1,
                    .first_position = p};
  DecodeDecision decision;

  PlanRow retrieval = row;
  if (layout.way(Way::kRetrieval).num_entries == 0) {
    // Nothing to read.
  } else if (ReadsSelectedPages(settings, layout, p)) {
    decision.sparse = true;
    decision.selects = state->age < 0 || state->age >= settings.interval();
    state->age = decision.selects ? 1 : state->age + 1;
    if (decision.selects) state->num_pages = num_pages;
    retrieval.selection = static_cast<int>(plan->selections.size());
    plan->selections.push_back(state->table);
    // Pages that came after the list are all new, however long it is reused.
    retrieval.newest = {.first = std::min(num_pages - kForcedNewestPages, state->num_pages),
                        .last = num_pages};
    plan->rows.push_back(retrieval);
  } else {
    state->age = -1;
    AddDense(retrieval, num_keys, plan);
  }

  PlanRow streaming = row;
  streaming.way = Way::kStreaming;
  if (layout.way(Way::kStreaming).num_entries == 0) {
    // Nothing to read.
  } else if (sparse && StreamingSkips(settings, p)) {
    decision.sparse = true;
    AddStreamingQuery(settings, streaming, plan);
  } else {
    AddDense(streaming, num_keys, plan);
  }
  return decision;
}

void AddStreamingQuery(const AttentionSettings& settings, PlanRow row, PagePlan* plan) {
  LS_CHECK_EQ(row.num_queries, 1);
  const int64_t p = row.first_position;
  if (!StreamingSkips(settings, p)) return AddDense(row, p + 1, plan);
  row.sink_end = settings.sink_tokens;
  row.window = settings.recent_tokens;
  AddSinkAndWindow(row, FirstOfWindow(settings, p), p + 1, kPageTokens, plan);
}

void AddDenseQuery(PlanRow row, PagePlan* plan) {
  LS_CHECK_EQ(row.num_queries, 1);
  AddDense(row, row.first_position + 1, plan);
}

int64_t StreamingKeepFrom(const AttentionSettings& settings,
                          int64_t next_position,
                          bool in_prompt) {
  if (next_position < FirstSparsePosition(settings)) return 0;
  const int64_t window = in_prompt ? std::max(settings.prefill_window(), settings.recent_tokens)
                                   : settings.recent_tokens;
  return RoundDown(std::max<int64_t>(0, next_position - window + 1), kTileTokens);
}

int64_t StreamingSinkEnd(const AttentionSettings& settings) {
  return RoundDown(settings.sink_tokens + kTileTokens - 1, kTileTokens);
}

int64_t PagesVisited(const PlanRow& row, std::span<const PageRun> runs) {
  int64_t pages = row.newest.last - row.newest.first;
  for (const PageRun& run : runs) {
    pages += std::max(0, std::min(run.last, row.newest.first) - run.first);
  }
  return pages;
}

int64_t TilesVisited(const PlanRow& row, std::span<const PageRun> runs) {
  const auto tiles = [](PageIdx first, PageIdx last) {
    return (last + kTilePages - 1) / kTilePages - first / kTilePages;
  };
  int64_t visited = tiles(row.newest.first, row.newest.last);
  for (const PageRun& run : runs) {
    const PageIdx last = std::min(run.last, row.newest.first);
    if (last > run.first) visited += tiles(run.first, last);
  }
  return visited;
}

}  // namespace lserve
