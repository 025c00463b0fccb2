// The kernels, as host functions that launch them on a stream and return the launch's error. All
// pointers are the device's; what each computes is in backend/ops.h. Used by CudaBackend and
// CudaKvStore.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "backend/cuda/device_views.h"
#include "backend/logit_edits.h"
#include "backend/prefill_order.h"
#include "backend/token_draw.h"
#include "tensor/dtype.h"

namespace lserve {

// --- elementwise.cu
// `table` is [n, cols] of kBf16, kF16 or kF32 with rows `table_stride` elements apart.
cudaError_t LaunchGatherRows(const void* table,
                             DType dtype,
                             int64_t table_stride,
                             const int32_t* indices,
                             int num_rows,
                             int64_t cols,
                             MatrixView out,
                             cudaStream_t stream);
// `groups` slices of `n` elements per row.
cudaError_t LaunchRmsNorm(ConstMatrixView x,
                          const float* weight,
                          float eps,
                          int64_t rows,
                          int groups,
                          int n,
                          MatrixView y,
                          cudaStream_t stream);
// As bf16, packed: [rows, n], n a multiple of 4, with the bits of a norm that joins
// LaunchGemvSm90() (kernels/norm.cuh). One group.
cudaError_t LaunchRmsNormToBf16(ConstMatrixView x,
                                const float* weight,
                                float eps,
                                int64_t rows,
                                int n,
                                uint16_t* y,
                                cudaStream_t stream);
cudaError_t LaunchSiluMul(
    ConstMatrixView x, int64_t rows, int64_t n, MatrixView y, cudaStream_t stream);
cudaError_t LaunchRope(MatrixView x,
                       int64_t rows,
                       int num_heads,
                       int head_dim,
                       ConstMatrixView cos,
                       ConstMatrixView sin,
                       cudaStream_t stream);

// out[r] = the column of the largest element, the lowest of equal ones; -1 if the row has a NaN.
cudaError_t LaunchPickLargest(
    ConstMatrixView x, int64_t rows, int64_t cols, int32_t* out, cudaStream_t stream);

// --- pick_tokens.cu
// out[r] as PickTokensParams::out. The pointers and the arrays of `edits` (nullptr: none) are the
// device's, `host_draws` are `draws`; `scratch` is PickTokensScratchBytes().
size_t PickTokensScratchBytes(int64_t rows, int64_t cols);
cudaError_t LaunchPickTokens(MatrixView x,
                             int64_t cols,
                             std::span<const TokenDraw> host_draws,
                             const TokenDraw* draws,
                             const LogitEdits* edits,
                             std::byte* scratch,
                             int32_t* out,
                             cudaStream_t stream);

// --- linear.cu
// out[rows, cols] bf16, packed: x rounded to nearest even.
cudaError_t LaunchRoundToBf16(
    ConstMatrixView x, int64_t rows, int64_t cols, uint16_t* out, cudaStream_t stream);
// out[i] = values[i] as float.
cudaError_t LaunchWidenF16(const void* values, int64_t count, float* out, cudaStream_t stream);
// y[r, :] += bias.
cudaError_t LaunchAddBias(
    MatrixView y, int64_t rows, int64_t cols, const float* bias, cudaStream_t stream);

// y = x W^T + bias (or +=), for at most MaxGemvRows() rows; a row's result does not depend on the
// others. x is [rows, in] of `x_dtype`: kBf16 beside a kBf16 weight, unless GemvRoundsX() says that
// the kernel rounds this float matrix as it reads it.
int MaxGemvRows(DType weight, int64_t in_features);
bool GemvRoundsX(ConstMatrixView x, int64_t rows, int64_t in_features);
struct GemvArgs {
  const void* x = nullptr;
  DType x_dtype = DType::kF32;
  int64_t x_stride = 0;
  const void* weight = nullptr;  // [out, in], or codes
  const void* scales = nullptr;  // of codes: QuantizedRows
  DType dtype = DType::kBf16;    // of the weight: kBf16, kF16, kF32; LaunchGemvSm90: kInt8, kInt4
  const float* bias = nullptr;   // [out] or nullptr
  int rows = 0;
  int64_t in_features = 0;
  int64_t out_features = 0;
  MatrixView y = {};
  bool accumulate = false;
  // LaunchGemvSm90 only. `norm`, with float x: x is normalised first (RmsNormParams), with these
  // weights. `gate`: y [rows, out / 2] is SiluMul of the product.
  const float* norm = nullptr;  // [in]
  float eps = 0;
  bool gate = false;
};
cudaError_t LaunchGemv(const GemvArgs& args, cudaStream_t stream);

// --- weight_quant.cu
// Of backend/weight_quant.h, whose kWeightGroup this is.
inline constexpr int kQuantGroup = 128;
// Bytes of a row's codes: whole vectors of 16 bytes.
__host__ __device__ constexpr int64_t WeightRowBytes(bool int4, int64_t in_features) {
  return int4 ? (in_features + 31) / 32 * 16 : (in_features + 15) / 16 * 16;
}
// Rows [first_row, first_row + rows) of a quantised weight, within the arrays of the whole.
struct QuantizedRows {
  std::byte* codes = nullptr;  // [out_features] rows of WeightRowBytes()
  void* scales = nullptr;      // [groups, out_features]: uint16_t; for int4 uint32_t
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t first_row = 0;
  int64_t rows = 0;
  // The least (row * groups + group) that can not be quantised, if less than what it holds.
  unsigned long long* not_finite = nullptr;
};
// From [rows, in_features] of `dtype`.
cudaError_t LaunchQuantizeRows(
    const void* weights, DType dtype, bool int4, const QuantizedRows& to, cudaStream_t stream);
// To [rows, in_features] bf16.
cudaError_t LaunchDequantizeRows(const QuantizedRows& from,
                                 bool int4,
                                 uint16_t* to,
                                 cudaStream_t stream);

// --- linear_sm90.cu
// LaunchGemv() on Hopper, with the same two questions; also of kInt8 and kInt4 weights.
bool HasSm90Gemv(DType weight, int64_t in_features);
// What one launch takes of the rows; x of more would not fit in registers beside what becomes of
// codes.
constexpr int MaxSm90GemvRows(DType weight) {
  return weight == DType::kInt4 ? 8 : weight == DType::kInt8 ? 16 : 32;
}
bool GemvSm90RoundsX(ConstMatrixView x, int64_t rows, int64_t in_features);
cudaError_t LaunchGemvSm90(const GemvArgs& args, int multiprocessors, cudaStream_t stream);

// --- linear_tiles.cu
// Any number of rows with the bits that LaunchGemv() or LaunchGemvSm90() give each of them
// (kernels/sums.cuh). x is bf16, whole vectors of 16 bytes; no norm, no gate. kInt8 and kInt4
// weights: kGemvSm90.
enum class SumsOf { kGemv, kGemvSm90 };
// Products of the same shape, side by side: the distances of their operands, for x in elements, for
// the weight in bytes, for y in floats. y is the product times `scale`.
struct TileBatch {
  int count = 1;
  int64_t x_stride = 0;
  int64_t weight_stride = 0;
  int64_t y_stride = 0;
  float scale = 1;
};
cudaError_t LaunchTiles(const GemvArgs& args,
                        SumsOf sums,
                        const TileBatch& batch,
                        cudaStream_t stream);

// --- append_kv.cu
// Consecutive tokens of one sequence in one page.
struct AppendPiece {
  int sequence = 0;
  PageIdx page = 0;
  int first_token = 0;
  int num_tokens = 0;
  int row = 0;
};
struct AppendKvArgs {
  LayerView layer = {};
  DType dtype = DType::kBf16;
  const SequenceView* sequences = nullptr;
  const AppendPiece* pieces = nullptr;
  int num_pieces = 0;
  ConstMatrixView k = {};
  ConstMatrixView v = {};
};
cudaError_t LaunchAppendKv(const AppendKvArgs& args, cudaStream_t stream);
// The statistics of every slot of one page, from its first `num_tokens` keys.
cudaError_t LaunchRebuildStats(const WayView& way,
                               DType dtype,
                               int head_dim,
                               PageId page,
                               int num_tokens,
                               cudaStream_t stream);

// --- attention
struct AttentionArgs {
  LayerView layer = {};
  DType dtype = DType::kBf16;
  PlanView plan = {};
  const SequenceView* sequences = nullptr;
  ConstMatrixView q = {};
  MatrixView out = {};
  float scale = 0;
  // Decode: no kernel that is queued and may still run writes the page lists.
  bool lists_are_final = false;
};
// Head dims with kernels, for every op here.
bool HasAttentionKernels(int head_dim);
// Over bf16 pages.
cudaError_t LaunchPrefillAttention(const AttentionArgs& args, cudaStream_t stream);

// The same on Hopper: the pages of a layer as TMA sees them, per way.
struct PrefillMaps {
  CUtensorMap keys[kNumWays];    // (element of 64, token, part of head_dim, slot, page)
  CUtensorMap values[kNumWays];  // (token, element, slot, page)
};
bool HasSm90Prefill(int head_dim);
// Positions are below this there.
inline constexpr int kMaxSm90PrefillTokens = 1 << 30;
// plan.order holds rows as `order` counts them. `next_item`: scratch for a counter.
cudaError_t LaunchPrefillAttentionSm90(const AttentionArgs& args,
                                       const PrefillMaps& maps,
                                       const PrefillOrder& order,
                                       int* next_item,
                                       cudaStream_t stream);

// --- dequantize_pages.cu
// Slots of quantised pages of a layer as bf16 pages: [page][slot], parts as bf16 ones lie
// (kernels/kv_part.cuh), with the bits that the other kernels dequantise to.
struct DequantizeWay {
  const PageId* pages = nullptr;  // [num_pages]
  int num_pages = 0;
  int first_slot = 0;
  int num_slots = 0;
  std::byte* to = nullptr;
};
struct DequantizePagesArgs {
  LayerView layer = {};
  DType dtype = DType::kInt8;
  DequantizeWay ways[kNumWays];
};
cudaError_t LaunchDequantizePages(const DequantizePagesArgs& args, cudaStream_t stream);

// --- decode_attention.cu
// Pages of a sequence that decoding can read: 2^21 tokens.
inline constexpr int kMaxDecodePages = 32768;
inline constexpr int kDecodeWarps = 8;  // of a block
inline constexpr int kMaxDecodeSplits = 32;
// Blocks that share a row of so many pages: one for each 8. One for each 4 takes 3% from a step of
// one sequence and adds 5 to 9% to one of 8 to 16 (H100).
__host__ __device__ constexpr int NumDecodeSplits(int num_pages) {
  const int splits = (num_pages + kDecodeWarps - 1) / kDecodeWarps;
  return splits < 1 ? 1 : splits > kMaxDecodeSplits ? kMaxDecodeSplits : splits;
}
// One split of a plan's row. The items of a row follow one another.
struct DecodeItem {
  int row = 0;
  int split = 0;
  int max_splits = 0;  // items of the row, which may turn out to need fewer
};
struct DecodeWork {
  const DecodeItem* items = nullptr;
  int num_items = 0;
  int num_queries = 0;  // of a row, at most
};
// `partials` holds DecodePartialBytes(). `counters` are NumDecodeCounters() zeros, and are zero
// again when the kernel has ended.
size_t DecodePartialBytes(const AttentionArgs& args, const DecodeWork& work);
size_t NumDecodeCounters(const AttentionArgs& args, const DecodeWork& work);
cudaError_t LaunchDecodeAttention(const AttentionArgs& args,
                                  const DecodeWork& work,
                                  std::byte* partials,
                                  int* counters,
                                  cudaStream_t stream);

// --- select_pages.cu
// Adds up the time between the first block of a selection and its last one, by the GPU's clock. One
// selection runs at a time.
struct SelectorClock {
  uint64_t begin = 0;             // of the selection that runs or ran last, in ns
  uint64_t end = 0;               // of the latest of its blocks that have ended
  uint64_t total = 0;             // of those before it
  uint64_t* published = nullptr;  // `total`, in the host's memory
};
struct PageSelect {
  int sequence = 0;
  int query_row = 0;
  PageIdx num_pages = 0;
  PageIdx first = 0;  // pages [first, last) compete, the others are kept
  PageIdx last = 0;
  int keep = 0;  // of those that compete
  SelectionTable table = {};
};
struct SelectPagesArgs {
  LayerView layer = {};
  const SequenceView* sequences = nullptr;
  const PageSelect* requests = nullptr;
  int num_requests = 0;
  int max_candidates = 0;  // largest last - first
  PageIdx max_pages = 0;   // largest num_pages
  ConstMatrixView q = {};
  float scale = 0;
  std::byte* scratch = nullptr;  // of SelectPagesScratchBytes()
  SelectorClock* clock = nullptr;
};
size_t SelectPagesScratchBytes(const SelectPagesArgs& args);
cudaError_t LaunchSelectPages(const SelectPagesArgs& args, cudaStream_t stream);

// --- page_log_sums.cu
struct PageLogSumsArgs {
  LayerView layer = {};
  DType dtype = DType::kBf16;
  PlanView plan = {};  // `order` is not read
  const SequenceView* sequences = nullptr;
  ConstMatrixView q = {};
  int num_q_heads = 0;
  float scale = 0;
  int max_pages = 0;  // that a row visits at most; the grid follows
  float* log_sums = nullptr;
  int64_t stride = 0;
};
cudaError_t LaunchPageLogSums(const PageLogSumsArgs& args, cudaStream_t stream);

// --- select_tiles.cu
struct TileSelect {
  int first_query = 0;
  int num_tiles = 0;  // up to the queries' own
  int sink_tiles = 0;
  int newest_tiles = 0;
  double threshold = 1;
  int max_listed_tiles = 0;
  SelectionTable table = {};
};
// Rows of a tile's estimate per query head, and columns per tile.
inline constexpr int kTileEstimateRows = kTileTokens / kLogicalPageTokens;
// Consecutive tiles of one sequence, for slots [first_slot, first_slot + num_slots).
struct SelectTilesArgs {
  LayerView layer = {};
  DType dtype = DType::kBf16;
  const SequenceView* sequences = nullptr;
  int sequence = 0;
  const TileSelect* requests = nullptr;
  int num_requests = 0;
  int max_tiles = 0;  // largest num_tiles, at most kMaxSelectTiles
  int first_slot = 0;
  int num_slots = 0;
  ConstMatrixView q = {};
  // Scratch. columns = max_tiles * kTileEstimateRows, inner = kLogicalPageTokens * head_dim.
  uint16_t* keys = nullptr;     // bf16 [num_slots, columns, inner]
  uint16_t* queries = nullptr;  // bf16 [num_slots, num_requests, group, kTileEstimateRows, inner]
  float* scores = nullptr;      // [num_slots, num_requests, group, kTileEstimateRows, columns]
  float2* row_stats = nullptr;  // [num_slots, num_requests, group, kTileEstimateRows] (max, sum)
};
// 2^21 tokens.
inline constexpr int kMaxSelectTiles = 16384;
// Fills `keys` and `queries`, whose product `scores` is.
cudaError_t LaunchCopyTiles(const SelectTilesArgs& args, cudaStream_t stream);
// From `scores` to the lists.
cudaError_t LaunchChooseTiles(const SelectTilesArgs& args, cudaStream_t stream);

}  // namespace lserve
