// The ops that read and write the cache: what the host works out for their kernels. That of prefill
// is in cuda_prefill.cc.
#include <algorithm>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/cuda_kv_store.h"
#include "backend/cuda/cuda_status.h"
#include "backend/cuda/matrix_views.h"
#include "backend/cuda/plan_pages.h"
#include "base/check.h"
#include "base/round_up.h"

namespace lserve {
namespace {

// Scratch of one round of SelectTiles; more slots, then more requests take more rounds.
constexpr size_t kMaxTileScratchBytes = size_t{512} << 20;

// Blocks for a row. Sizes of grids and of scratch grow in steps, so that a step's graph serves the
// next ones too; blocks beyond what a row needs end at once.
int SplitsOf(const PagePlan& plan, const PlanRow& row) {
  constexpr int kPageStep = 16;
  return NumDecodeSplits(RoundUp(MostPages(plan, row), kPageStep));
}

// The splits of every row, those of long rows first.
std::vector<DecodeItem> ListItems(const PagePlan& plan) {
  std::vector<DecodeItem> items;
  for (const int row : LongestFirst(plan)) {
    const int splits = SplitsOf(plan, plan.rows[static_cast<size_t>(row)]);
    for (int split = 0; split < splits; ++split) items.push_back({row, split, splits});
  }
  return items;
}

// The new tokens of every range, cut at pages.
std::vector<AppendPiece> ListPieces(std::span<const RowRange> ranges) {
  std::vector<AppendPiece> pieces;
  for (const RowRange& range : ranges) {
    for (int i = 0; i < range.num_rows;) {
      const int64_t position = range.first_position + i;
      const int first_token = static_cast<int>(position % kPageTokens);
      const int count = std::min(kPageTokens - first_token, range.num_rows - i);
      pieces.push_back({.sequence = range.sequence,
                        .page = static_cast<PageIdx>(position / kPageTokens),
                        .first_token = first_token,
                        .num_tokens = count,
                        .row = range.first_row + i});
      i += count;
    }
  }
  return pieces;
}

// Scratch of SelectTiles in bytes, for one slot.
struct TileScratch {
  size_t keys = 0;
  size_t queries = 0, scores = 0, row_stats = 0;  // per request

  size_t Bytes(size_t slots, size_t requests) const {
    return slots * (keys + requests * (queries + scores + row_stats));
  }
};
TileScratch TileScratchOf(const SelectTilesArgs& args) {
  const size_t columns = static_cast<size_t>(args.max_tiles) * kTileEstimateRows;
  const size_t rows = static_cast<size_t>(args.layer.group) * kTileEstimateRows;
  const size_t inner = size_t{kTileStride} * static_cast<size_t>(args.layer.head_dim);
  return {.keys = columns * inner * sizeof(uint16_t),
          .queries = rows * inner * sizeof(uint16_t),
          .scores = rows * columns * sizeof(float),
          .row_stats = rows * sizeof(float2)};
}

// How many slots and requests a round takes.
struct TileRound {
  int slots = 1;
  int requests = 1;
};
TileRound TileRoundOf(const TileScratch& scratch, int num_slots, int num_requests) {
  const auto requests = static_cast<size_t>(num_requests);
  const size_t slots = kMaxTileScratchBytes / scratch.Bytes(1, requests);
  if (slots > 0) return {std::min(num_slots, static_cast<int>(slots)), num_requests};
  const size_t left = kMaxTileScratchBytes - std::min(kMaxTileScratchBytes, scratch.keys);
  const size_t fit = left / (scratch.Bytes(1, 1) - scratch.keys);
  return {1, static_cast<int>(std::max<size_t>(1, fit))};
}

int Group(const KvLayout& layout, int num_q_heads) {
  LS_CHECK_EQ(num_q_heads % layout.num_kv_heads, 0);
  return num_q_heads / layout.num_kv_heads;
}

}  // namespace

// What the ops below and PrefillAttention take of attention_scratch_, each with the largest call
// that `limits` allows.
size_t CudaBackend::AttentionScratchBytes(const KvLayout& layout,
                                          const AttentionLimits& limits) const {
  AttentionArgs attention;
  attention.layer.head_dim = layout.head_dim;
  attention.layer.group = Group(layout, limits.num_q_heads);
  for (int layer = 0; layer < layout.num_layers; ++layer) {
    for (const Way way : kWays) {
      int& most = attention.layer.ways[Index(way)].num_slots;
      most = std::max(most, layout.way(way).num_slots(layer));
    }
  }
  const int pages = static_cast<int>(std::min<int64_t>(limits.pages, kMaxDecodePages));
  SelectPagesArgs select;
  select.layer = attention.layer;
  select.num_requests = static_cast<int>(limits.sequences);
  select.max_candidates = pages;
  SelectTilesArgs tiles;
  tiles.layer = attention.layer;
  tiles.max_tiles = pages * kPageTokens / kTileTokens + 1;
  const TileScratch tile = TileScratchOf(tiles);
  const int num_slots = attention.layer.ways[0].num_slots;
  const auto requests = static_cast<int>(limits.rows / kTileTokens + 1);
  const TileRound round = TileRoundOf(tile, std::max(1, num_slots), requests);
  const size_t tile_bytes =
      tile.Bytes(static_cast<size_t>(round.slots), static_cast<size_t>(round.requests));
  const DecodeWork decode = {
      .num_items = static_cast<int>(limits.sequences) * kNumWays * NumDecodeSplits(pages),
      .num_queries = 1};
  return std::max({DecodePartialBytes(attention, decode), SelectPagesScratchBytes(select),
                   tile_bytes, PrefillScratchBytes(layout, limits)});
}

Result<const SequenceView*> CudaBackend::UploadSequences(std::span<const SequencePages> sequences) {
  if (const void* found = uploads_.Find(sequences.data()); found != nullptr) {
    return static_cast<const SequenceView*>(found);
  }
  std::vector<SequenceView> views(sequences.size());
  for (size_t s = 0; s < sequences.size(); ++s) {
    for (const Way way : kWays) {
      views[s].pages[Index(way)] = LS_TRY(uploads_.UploadAnew(sequences[s].pages[Index(way)]));
    }
  }
  return uploads_.Upload(std::span<const SequenceView>(views), sequences.data());
}

Status CudaBackend::AppendKv(const AppendKvParams& params) {
  const auto& store = static_cast<const CudaKvStore&>(*params.store);
  const KvLayout& layout = store.layout();
  LS_CHECK_EQ(params.k.cols, int64_t{layout.num_kv_heads} * layout.head_dim);
  LS_CHECK_EQ(params.v.cols, params.k.cols);
  for (const RowRange& range : params.ranges) {
    LS_CHECK_LE(int64_t{range.first_row} + range.num_rows, params.k.rows);
  }
  uploads_.BeginOp();
  AppendKvArgs args = {.layer = store.View(params.layer, 1), .dtype = layout.dtype};
  args.sequences = LS_TRY(UploadSequences(params.sequences));
  const std::vector<AppendPiece> pieces = ListPieces(params.ranges);
  args.pieces = LS_TRY(uploads_.Upload(std::span<const AppendPiece>(pieces), params.ranges.data()));
  args.num_pieces = static_cast<int>(pieces.size());
  args.k = View(params.k);
  args.v = View(params.v);
  if (Noted(&store, params.layer, args.sequences, args.pieces, args.num_pieces, args.k.data,
            args.k.stride, args.v.data)) {
    return Status();
  }
  LS_CUDA(LaunchAppendKv(args, stream_));
  return Status();
}

Result<AttentionArgs> CudaBackend::MakeAttentionArgs(const AttentionParams& params) {
  const auto& store = static_cast<const CudaKvStore&>(*params.store);
  const PagePlan& plan = *params.plan;
  uploads_.BeginOp();
  AttentionArgs args = {
      .layer = store.View(params.layer, Group(store.layout(), params.num_q_heads)),
      .dtype = store.layout().dtype};
  args.plan.rows = LS_TRY(uploads_.Upload(std::span(plan.rows)));
  args.plan.runs = LS_TRY(uploads_.Upload(std::span(plan.runs)));
  args.plan.selections = LS_TRY(uploads_.Upload(std::span(plan.selections)));
  args.plan.num_rows = static_cast<int>(plan.rows.size());
  args.sequences = LS_TRY(UploadSequences(params.sequences));
  args.q = View(params.q);
  args.out = View(params.out);
  args.scale = params.scale;
  return args;
}

Result<int*> CudaBackend::DecodeCounters(size_t count) {
  const size_t bytes = count * sizeof(int);
  if (decode_counters_.bytes < bytes) {
    LS_CUDA(cudaStreamSynchronize(stream_));
    decode_counters_ = LS_TRY(AllocateOnDevice(2 * bytes));
    LS_CUDA(cudaMemsetAsync(decode_counters_.data.get(), 0, decode_counters_.bytes, stream_));
  }
  return decode_counters_.as<int>();
}

Status CudaBackend::DecodeAttention(const AttentionParams& params) {
  const auto& store = static_cast<const CudaKvStore&>(*params.store);
  const PagePlan& plan = *params.plan;
  AttentionArgs args = LS_TRY(MakeAttentionArgs(params));
  DecodeWork work;
  for (const PlanRow& row : plan.rows) {
    LS_CHECK_LE(row.newest.last, kMaxDecodePages);
    work.num_queries = std::max(work.num_queries, row.num_queries);
    work.num_items += SplitsOf(plan, row);
  }
  if (const void* items = uploads_.Find(params.plan); items != nullptr) {
    work.items = static_cast<const DecodeItem*>(items);
  } else {
    const std::vector<DecodeItem> listed = ListItems(plan);
    work.items = LS_TRY(uploads_.Upload(std::span<const DecodeItem>(listed), params.plan));
  }
  // A step begins with copies on the stream, which wait for every kernel of the one before.
  args.lists_are_final = !selected_in_step_;
  std::byte* partials = LS_TRY(attention_scratch_.Get(DecodePartialBytes(args, work), stream_));
  int* counters = LS_TRY(DecodeCounters(NumDecodeCounters(args, work)));
  if (Noted(&store, params.layer, args.plan.rows, args.plan.runs, args.plan.selections,
            args.plan.num_rows, args.sequences, args.q.data, args.q.stride, args.out.data,
            args.out.stride, args.scale, args.layer.group, work.items, work.num_items,
            work.num_queries, args.lists_are_final, partials, counters)) {
    return Status();
  }
  LS_CUDA(LaunchDecodeAttention(args, work, partials, counters, stream_));
  return Status();
}

Status CudaBackend::PageLogSums(const PageLogSumsParams& params) {
  const auto& store = static_cast<const CudaKvStore&>(*params.store);
  const PagePlan& plan = *params.plan;
  uploads_.BeginOp();
  PageLogSumsArgs args = {
      .layer = store.View(params.layer, Group(store.layout(), params.num_q_heads)),
      .dtype = store.layout().dtype};
  for (const PlanRow& row : plan.rows) {
    LS_CHECK_EQ(row.num_queries, 1);
    LS_CHECK_LE(row.newest.last, params.stride);
    args.max_pages = std::max(args.max_pages, MostPages(plan, row));
  }
  args.plan.rows = LS_TRY(uploads_.Upload(std::span(plan.rows)));
  args.plan.runs = LS_TRY(uploads_.Upload(std::span(plan.runs)));
  args.plan.selections = LS_TRY(uploads_.Upload(std::span(plan.selections)));
  args.plan.num_rows = static_cast<int>(plan.rows.size());
  args.sequences = LS_TRY(UploadSequences(params.sequences));
  args.q = View(params.q);
  args.num_q_heads = params.num_q_heads;
  args.scale = params.scale;
  args.log_sums = params.log_sums;
  args.stride = params.stride;
  LS_CUDA(LaunchPageLogSums(args, stream_));
  return Status();
}

Status CudaBackend::SelectPages(const SelectPagesParams& params) {
  const auto& store = static_cast<const CudaKvStore&>(*params.store);
  selected_in_step_ = true;
  uploads_.BeginOp();
  SelectPagesArgs args = {.layer =
                              store.View(params.layer, Group(store.layout(), params.num_q_heads))};
  std::vector<PageSelect> requests;
  for (const SelectRequest& request : params.requests) {
    const PageIdx first = std::min<PageIdx>(request.sink_pages, request.num_pages);
    const PageIdx last = std::max<PageIdx>(first, request.num_pages - request.newest_pages);
    requests.push_back({.sequence = request.sequence,
                        .query_row = request.query_row,
                        .num_pages = request.num_pages,
                        .first = first,
                        .last = last,
                        .keep = request.budget_pages - (request.num_pages - (last - first)),
                        .table = request.table});
    args.max_candidates = std::max(args.max_candidates, last - first);
    args.max_pages = std::max(args.max_pages, request.num_pages);
  }
  args.clock = selector_timer_.clock();
  constexpr int kStep = 64;  // as SplitsOf()
  args.max_candidates = RoundUp(args.max_candidates, kStep);
  args.max_pages = RoundUp(args.max_pages, kStep);
  args.sequences = LS_TRY(UploadSequences(params.sequences));
  args.requests =
      LS_TRY(uploads_.Upload(std::span<const PageSelect>(requests), params.requests.data()));
  args.num_requests = static_cast<int>(requests.size());
  args.q = View(params.q);
  args.scale = params.scale;
  args.scratch = LS_TRY(attention_scratch_.Get(SelectPagesScratchBytes(args), stream_));
  if (Noted(&store, params.layer, args.sequences, args.requests, args.num_requests,
            args.max_candidates, args.max_pages, args.q.data, args.q.stride, args.scale,
            args.layer.group, args.scratch)) {
    return Status();
  }
  LS_CUDA(LaunchSelectPages(args, stream_));
  return Status();
}

Status CudaBackend::SelectTiles(const SelectTilesParams& params) {
  const auto& store = static_cast<const CudaKvStore&>(*params.store);
  LS_CHECK(!tracing_) << "prefill in RunStep";
  uploads_.BeginOp();
  SelectTilesArgs args = {
      .layer = store.View(params.layer, Group(store.layout(), params.num_q_heads)),
      .dtype = store.layout().dtype};
  std::vector<TileSelect> requests;
  for (const TileSelectRequest& request : params.requests) {
    LS_CHECK_EQ(request.first_position % kTileTokens, 0);
    const int num_tiles = static_cast<int>(request.first_position / kTileTokens) + 1;
    LS_CHECK_LE(num_tiles, kMaxSelectTiles);
    requests.push_back({.first_query = request.first_query,
                        .num_tiles = num_tiles,
                        .sink_tiles = request.sink_tiles,
                        .newest_tiles = request.newest_tiles,
                        .threshold = request.threshold,
                        .max_listed_tiles = request.max_listed_tiles,
                        .table = request.table});
  }
  const int num_slots = args.layer.ways[Index(Way::kRetrieval)].num_slots;
  if (requests.empty() || num_slots == 0) return Status();
  args.sequences = LS_TRY(UploadSequences(params.sequences));
  const TileSelect* uploaded =
      LS_TRY(uploads_.Upload(std::span<const TileSelect>(requests), params.requests.data()));
  args.q = View(params.q);
  const auto scale = static_cast<float>(params.scale / kTileStride);
  for (size_t first = 0; first < requests.size();) {
    // A sequence's requests share its keys.
    args.sequence = params.requests[first].sequence;
    args.max_tiles = 0;
    size_t end = first;
    for (; end < requests.size() && params.requests[end].sequence == args.sequence; ++end) {
      args.max_tiles = std::max(args.max_tiles, requests[end].num_tiles);
    }
    const TileRound round =
        TileRoundOf(TileScratchOf(args), num_slots, static_cast<int>(end - first));
    for (size_t done = first; done < end; done += static_cast<size_t>(round.requests)) {
      args.requests = uploaded + done;
      args.num_requests = std::min(round.requests, static_cast<int>(end - done));
      args.max_tiles = 0;
      for (int i = 0; i < args.num_requests; ++i) {
        args.max_tiles =
            std::max(args.max_tiles, requests[done + static_cast<size_t>(i)].num_tiles);
      }
      for (int slot = 0; slot < num_slots; slot += round.slots) {
        args.first_slot = slot;
        args.num_slots = std::min(round.slots, num_slots - slot);
        LS_TRY(SelectTilesRound(args, scale));
      }
    }
    first = end;
  }
  return Status();
}

Status CudaBackend::SelectTilesRound(SelectTilesArgs args, float scale) {
  const TileScratch scratch = TileScratchOf(args);
  const auto slots = static_cast<size_t>(args.num_slots);
  const size_t parts = slots * static_cast<size_t>(args.num_requests);
  std::byte* at = LS_TRY(attention_scratch_.Get(
      scratch.Bytes(slots, static_cast<size_t>(args.num_requests)), stream_));
  args.keys = reinterpret_cast<uint16_t*>(at);
  args.queries = reinterpret_cast<uint16_t*>(at += slots * scratch.keys);
  args.scores = reinterpret_cast<float*>(at += parts * scratch.queries);
  args.row_stats = reinterpret_cast<float2*>(at + parts * scratch.scores);
  LS_CUDA(LaunchCopyTiles(args, stream_));
  const int columns = args.max_tiles * kTileEstimateRows;
  const int rows = args.num_requests * args.layer.group * kTileEstimateRows;
  const int inner = kTileStride * args.layer.head_dim;
  if (options_.batch_invariant) {
    const TileBatch batch = {
        .count = args.num_slots,
        .x_stride = int64_t{rows} * inner,
        .weight_stride = int64_t{columns} * inner * static_cast<int64_t>(sizeof(uint16_t)),
        .y_stride = int64_t{rows} * columns,
        .scale = scale};
    LS_CUDA(LaunchTiles({.x = args.queries,
                         .x_dtype = DType::kBf16,
                         .x_stride = inner,
                         .weight = args.keys,
                         .rows = rows,
                         .in_features = inner,
                         .out_features = columns,
                         .y = {args.scores, columns}},
                        SumsOf::kGemv, batch, stream_));
  } else {
    // cuBLAS is column-major: scores^T = keys queries^T, with rows of both as columns.
    const float zero = 0;
    LS_CUBLAS(cublasGemmStridedBatchedEx(
        cublas_, CUBLAS_OP_T, CUBLAS_OP_N, columns, rows, inner, &scale, args.keys, CUDA_R_16BF,
        inner, int64_t{columns} * inner, args.queries, CUDA_R_16BF, inner, int64_t{rows} * inner,
        &zero, args.scores, CUDA_R_32F, columns, int64_t{rows} * columns, args.num_slots,
        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  }
  LS_CUDA(LaunchChooseTiles(args, stream_));
  return Status();
}

}  // namespace lserve
