// The kernels, as host functions that launch them on a stream and return the launch's error. All
// pointers are the device's; what each computes is in backend/ops.h. Used by CudaBackend and
// CudaKvStore.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "backend/cuda/device_views.h"
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
// out[r] as PickTokensParams::out; `draws` is the host's, `scratch` PickTokensScratchBytes().
size_t PickTokensScratchBytes(int64_t rows, int64_t cols);
cudaError_t LaunchPickTokens(ConstMatrixView x,
                             int64_t cols,
                             std::span<const TokenDraw> draws,
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
  const void* weight = nullptr;  // [out, in]
  DType dtype = DType::kBf16;    // of the weight: kBf16, kF16, kF32
  const float* bias = nullptr;   // [out] or nullptr
  int rows = 0;
  int64_t in_features = 0;
  int64_t out_features = 0;
  MatrixView y = {};
  bool accumulate = false;
};
cudaError_t LaunchGemv(const GemvArgs& args, cudaStream_t stream);

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
};
// Head dims with kernels, for every op here.
bool HasAttentionKernels(int head_dim);
cudaError_t LaunchPrefillAttention(const AttentionArgs& args, cudaStream_t stream);

// The same on Hopper: the pages of a layer as TMA sees them, per way.
struct PrefillMaps {
  CUtensorMap keys[kNumWays];    // (element of 64, token, part of head_dim, slot, page)
  CUtensorMap values[kNumWays];  // (token, element, slot, page)
};
bool HasSm90Prefill(DType dtype, int head_dim);
// `next_item`: scratch for a counter.
cudaError_t LaunchPrefillAttentionSm90(const AttentionArgs& args,
                                       const PrefillMaps& maps,
                                       int* next_item,
                                       cudaStream_t stream);

// Pages of a sequence that decoding can read: 2^21 tokens.
inline constexpr int kMaxDecodePages = 32768;
// What the rows of a plan are at most; the grid and the scratch follow.
struct DecodeLimits {
  int num_queries = 0;
  int num_pages = 0;
};
// `partials` holds DecodePartialBytes().
size_t DecodePartialBytes(const AttentionArgs& args, const DecodeLimits& limits);
cudaError_t LaunchDecodeAttention(const AttentionArgs& args,
                                  const DecodeLimits& limits,
                                  std::byte* partials,
                                  cudaStream_t stream);

// --- select_pages.cu
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
  float* scores = nullptr;  // [num_requests, num_slots, group, max_candidates] scratch
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
