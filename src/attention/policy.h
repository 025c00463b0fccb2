// The attention policies: what each query may read, written as plan rows, and what the streaming
// way may forget. No arithmetic on keys or values happens here. Used by the engine.
#pragma once

#include <cstdint>

#include "attention/attention_settings.h"
#include "attention/page_plan.h"
#include "kv/kv_layout.h"

namespace lserve {

// Pages that every selected list contains: the attention sink, and the newest, whose keys the next
// tokens depend on most. research: without them the softmax over the other pages loses its mass
// to them, and answers fail.
inline constexpr int kForcedSinkPages = 1;
inline constexpr int kForcedNewestPages = 2;

// Tiles of keys that a block-sparse tile of queries always reads: the attention sink, its own
// (masked causally) and the one before, where most of the attention of text lies.
inline constexpr int kForcedSinkTiles = 1;
inline constexpr int kForcedNewestTiles = 2;

// First position that is sparse: 0, settings.min_context, or never.
int64_t FirstSparsePosition(const AttentionSettings& settings);
// First position whose tile may be block-sparse in the retrieval way; may be never. Only complete
// tiles are: the estimate needs all 128 queries.
int64_t FirstBlockSparsePosition(const AttentionSettings& settings);

// The last position <= `num_tokens` where a prompt may be cut in two (a chunk's or a kept prefix's
// end) so that the parts give the K/V of the whole. A tile that could be block-sparse must not be
// cut: its part would be dense.
int64_t ResumePosition(const AttentionSettings& settings, int64_t num_tokens);

// Adds the rows of a prompt chunk: for each way that has heads, tiles of at most kTileTokens
// queries at absolute alignment, cut where sparsity begins. Retrieval heads read everything or, in
// complete tiles from the first block-sparse position on, a list that SelectTiles has to write
// first: such a row names a table of its own, whose memory the caller provides. Streaming heads
// read, from the first sparse position on, sink and prefill window. What a query reads depends on
// its position and on tokens up to its tile's end alone, so any chunking that ends at a
// ResumePosition gives the same.
void PlanPrefill(const AttentionSettings& settings,
                 const KvLayout& layout,
                 const RowRange& range,
                 PagePlan* plan);

// The page lists of one decoding sequence, and how old they are.
struct SelectionState {
  SelectionTable table;
  int age = -1;           // decode steps since they were chosen; < 0: never
  PageIdx num_pages = 0;  // of the sequence when they were chosen
};
// Runs that a list of the largest size can take: every chosen page its own run, the forced ones
// two.
int SelectionCapacity(const AttentionSettings& settings);

// Whether retrieval heads read a list at `position`: then PlanDecode needs the state's table.
bool ReadsSelectedPages(const AttentionSettings& settings,
                        const KvLayout& layout,
                        int64_t position);

struct DecodeDecision {
  bool sparse = false;   // some head skips pages
  bool selects = false;  // the lists are due: SelectPages has to run before the attention
};

// Adds the rows of one decode query (range.num_rows == 1). At or below the budget, or before the
// first sparse position, every page is read: one run, no selection.
DecodeDecision PlanDecode(const AttentionSettings& settings,
                          const KvLayout& layout,
                          const RowRange& range,
                          SelectionState* state,
                          PagePlan* plan);
int BudgetPages(const AttentionSettings& settings);
// Tiles that the list of a block-sparse tile may hold; kAllTiles: no limit.
int MaxListedTiles(const AttentionSettings& settings);

// Adds a row for one query that reads what a streaming head reads in decode: sink and window.
// `row` names the query; everything where sink and window cover all there is.
void AddStreamingQuery(const AttentionSettings& settings, PlanRow row, PagePlan* plan);
// Adds a row for one query that reads everything up to its own position.
void AddDenseQuery(PlanRow row, PagePlan* plan);

// The first position that streaming heads may still have to read, apart from the sink, when the
// next query is at `next_position`; 0: nothing may be dropped. While a prompt is read the wider of
// the prefill and the decode window counts.
int64_t StreamingKeepFrom(const AttentionSettings& settings, int64_t next_position, bool in_prompt);
// The end of the sink that must stay: in whole tiles, since prefill lists are in tiles.
int64_t StreamingSinkEnd(const AttentionSettings& settings);

// Key tiles of kTileTokens keys that a prefill row with these runs visits for one head.
int64_t TilesVisited(const PlanRow& row, std::span<const PageRun> runs);
// Pages that a row of a decode plan visits for one head.
int64_t PagesVisited(const PlanRow& row, std::span<const PageRun> runs);

}  // namespace lserve
