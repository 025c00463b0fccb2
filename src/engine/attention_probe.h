// AttentionProbe: measures where attention put its weight, from outside: one layer, one sequence,
// right after the op ran. Nothing that is answered changes. It owns no policy: what a query saw is
// the plan's row, what it might have seen is every page that is still there. Used by the audit of
// the engine, by calibration and fidelity (eval), and by `lserve run --explain`. ADR 0015.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "attention/attention_settings.h"
#include "backend/backend.h"

namespace lserve {

// What Request::on_attention is called with.
struct AttentionView {
  Backend* backend = nullptr;
  const AttentionParams* attention = nullptr;  // of the whole batch
  RowRange range;                              // the sequence's rows; range.sequence: of the batch
  bool decodes = false;                        // one query, after the prompt

  int layer() const { return attention->layer; }
  int64_t end() const { return range.first_position + range.num_rows; }
};

// Where the weight of one query lies, for one KV head: the mean over the query heads of its group.
struct HeadMass {
  int kv_head = 0;
  Way way = Way::kRetrieval;
  std::vector<double> pages;  // [pages up to the query's own], shares
  double seen = 1;            // share on keys that the plan showed the query
};

struct QueryMass {
  int64_t position = 0;
  std::vector<HeadMass> heads;  // by KV head
};

// The weight of the queries at `positions` (ascending, of view.range) over everything before them;
// a way that was trimmed is left out. With `streaming`, `seen` is what sink and window of these
// settings would show. Memory: some 16 queries at a time.
Result<std::vector<QueryMass>> MeasureMass(
    const AttentionView& view,
    std::span<const int64_t> positions,
    const std::optional<AttentionSettings>& streaming = std::nullopt);

// What the retrieval heads read of positions [first, last), for the query at `position`: shares of
// everything that the plan showed it. `seen` is their sum.
Result<QueryMass> MeasureReading(const AttentionView& view,
                                 int64_t position,
                                 int64_t first,
                                 int64_t last);

// How much the outputs of the KV heads at `positions` change if they see sink and window only:
// |o - o'| / |o| over the group's query heads, 0 where o is. [positions][KV heads]; heads of a way
// that was trimmed give 0. `attention->out` must hold what the op wrote.
Result<std::vector<std::vector<double>>> MeasureStreamingChange(const AttentionView& view,
                                                                std::span<const int64_t> positions,
                                                                const AttentionSettings& streaming);

}  // namespace lserve
