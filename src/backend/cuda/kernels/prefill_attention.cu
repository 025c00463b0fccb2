// prefill_attention: a tile of up to 128 queries of one query head against its planned pages.
//
//   o = softmax(scale q K^T) V over the visible keys, by the online softmax (FlashAttention-2,
//   arXiv 2307.08691, section 3.1), scores in units of log2.
//
// Grid: x = (slot, query head of the group), y = plan rows, the longest first, so that short rows
// fill the end. Block: 4 warps of 32 queries each; a warp owns its queries, so nothing is exchanged
// between warps but the pages in shared memory.
//
// Pipeline: one buffer for K, one for V. The next K is copied while the softmax and the product
// with V run, the next V during the next q K^T; two blocks per SM cover each other's waits.
//
// Per page and block, D = 128: 4.2 MFLOP; 36 KiB copied from L2; each warp reads Q, K and V from
// shared memory once per 32 queries (40 KiB). Pages are bf16; of quantised ones this reads what
// dequantize_pages.cu makes of them.
//
// A row's result depends on its own queries, pages and masks only: a page that a query does not see
// multiplies its sums by 2^0 and adds zeros.
#include <cstdint>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/kv_part.cuh"
#include "backend/cuda/kernels/mma.cuh"
#include "backend/cuda/kernels/plan.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kWarpQueries = kTileTokens / kWarps;
constexpr int kRowTiles = kWarpQueries / 16;  // m16 tiles of a warp
constexpr int kKeyTiles = kPageTokens / 8;    // n8 tiles of a page
constexpr float kLog2E = 1.4426950408889634f;

// Rows are 16 bytes longer than their data: an odd number of 16-byte units, so that the 8 rows of a
// matrix lie in different banks.
template <int D>
struct Shared {
  static constexpr int kKeyStride = D + 8;
  static constexpr int kValueStride = kPageTokens + 8;
  alignas(16) uint16_t q[kTileTokens][kKeyStride];
  alignas(16) uint16_t k[kPageTokens][kKeyStride];
  alignas(16) uint16_t v[D][kValueStride];  // V^T
};
static_assert(sizeof(Shared<128>) <= 99 * 1024, "a block of sm_89 has 99 KiB");

// Copies rows of `kRow` elements of K or V^T into shared memory, asynchronously.
template <int kRows, int kRow, int kStride>
__device__ void CopyRows(uint16_t (&to)[kRows][kStride], const std::byte* from) {
  constexpr int kVectors = kRow / 8;
#pragma unroll
  for (int i = threadIdx.x; i < kRows * kVectors; i += kThreads) {
    const int row = i / kVectors, first = i % kVectors * 8;
    CopyAsync(&to[row][first], from + size_t{2} * (row * kRow + first));
  }
}

template <int D>
__device__ void CopyKeys(Shared<D>& shared, const std::byte* kv) {
  CopyRows<kPageTokens, D>(shared.k, kv);
}

template <int D>
__device__ void CopyValues(Shared<D>& shared, const std::byte* kv) {
  CopyRows<D, kPageTokens>(shared.v, kv + HalfBytes<KvType::kBf16>(D));
}

// The 32 queries of a warp.
template <int D>
struct WarpState {
  float out[kRowTiles][D / 8][4];
  float max[kRowTiles][2];  // of scores in units of log2, rows r and r + 8
  float sum[kRowTiles][2];  // this lane's share
};

template <int D>
__device__ void Scores(const Shared<D>& shared, int warp, float (&s)[kRowTiles][kKeyTiles][4]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[m][n][e] = 0;
    }
  }
#pragma unroll
  for (int d = 0; d < D; d += 16) {
    uint32_t a[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int row = warp * kWarpQueries + m * 16 + lane % 16;
      LoadMatrices(a[m], &shared.q[row][d + lane / 16 * 8]);
    }
#pragma unroll
    for (int n = 0; n < kKeyTiles; n += 2) {
      uint32_t b[4];
      LoadMatrices(b, &shared.k[n * 8 + lane / 16 * 8 + lane % 8][d + lane / 8 % 2 * 8]);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        Mma(s[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
        Mma(s[m][n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
      }
    }
  }
}

// Scores become weights; the state is rescaled to the new maximum.
template <int D>
__device__ void Softmax(float scale_log2,
                        WarpState<D>* state,
                        float (&s)[kRowTiles][kKeyTiles][4]) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float max = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
        max = fmaxf(max, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
      }
      max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
      max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
      const float old = state->max[m][half];
      const float now = fmaxf(old, max * scale_log2);
      state->max[m][half] = now;
      // A query that has seen nothing has weight 2^-inf for all, not 2^nan.
      const float base = now == -INFINITY ? 0.0f : now;
      const float rescale = Exp2(old - base);
      float sum = state->sum[m][half] * rescale;
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          s[m][n][e] = Exp2(fmaf(s[m][n][e], scale_log2, -base));
          sum += s[m][n][e];
        }
      }
      state->sum[m][half] = sum;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        state->out[m][n][2 * half] *= rescale;
        state->out[m][n][2 * half + 1] *= rescale;
      }
    }
  }
}

template <int D>
__device__ void AddValues(const Shared<D>& shared,
                          const float (&p)[kRowTiles][kKeyTiles][4],
                          WarpState<D>* state) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int n = 0; n < kKeyTiles; n += 2) {
    uint32_t a[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      a[m][0] = PackBf16(p[m][n][0], p[m][n][1]);
      a[m][1] = PackBf16(p[m][n][2], p[m][n][3]);
      a[m][2] = PackBf16(p[m][n + 1][0], p[m][n + 1][1]);
      a[m][3] = PackBf16(p[m][n + 1][2], p[m][n + 1][3]);
    }
#pragma unroll
    for (int d = 0; d < D / 8; d += 2) {
      uint32_t b[4];
      LoadMatrices(b, &shared.v[d * 8 + lane / 16 * 8 + lane % 8][n * 8 + lane / 8 % 2 * 8]);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        Mma(state->out[m][d], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
        Mma(state->out[m][d + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
      }
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 2) PrefillAttentionKernel(AttentionArgs args) {
  extern __shared__ uint4 raw_shared[];
  Shared<D>& shared = *reinterpret_cast<Shared<D>*>(raw_shared);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;

  const PlanRow row = args.plan.rows[args.plan.order[blockIdx.y]];
  const int way_index = static_cast<int>(row.way);
  const WayView& way = args.layer.ways[way_index];
  const int slot = blockIdx.x / args.layer.group;
  if (slot >= way.num_slots) return;
  if (row.slot != kAllSlots && row.slot != way.first_slot + slot) return;
  const int q_head = way.heads[slot] * args.layer.group + blockIdx.x % args.layer.group;
  const PageId* table = args.sequences[row.sequence].pages[way_index];
  const auto part = [&](PageIdx page) {
    return way.kv + table[page] * way.page_stride + slot * way.kv_bytes;
  };
  const Mask mask = {row.sink_end, row.window};
  const float scale_log2 = args.scale * kLog2E;

  const float* q = args.q.data + row.first_query * args.q.stride + q_head * D;
  for (int i = threadIdx.x; i < kTileTokens * D / 2; i += kThreads) {
    const int r = i / (D / 2), d = i % (D / 2) * 2;
    const float* at = q + r * args.q.stride + d;
    *reinterpret_cast<uint32_t*>(&shared.q[r][d]) =
        r < row.num_queries ? PackBf16(at[0], at[1]) : 0u;
  }

  WarpState<D> state;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) state.out[m][n][e] = 0;
    }
    state.max[m][0] = state.max[m][1] = -INFINITY;
    state.sum[m][0] = state.sum[m][1] = 0;
  }

  const int64_t last_position = row.first_position + row.num_queries - 1;
  const int64_t warp_first = row.first_position + warp * kWarpQueries;
  PageCursor cursor(PagesOf(args.plan, row, way.first_entry + slot));
  PageIdx page = cursor.Next();
  if (page != PageCursor::kEnd) CopyKeys(shared, part(page));
  CommitCopies();
  if (page != PageCursor::kEnd) CopyValues(shared, part(page));
  CommitCopies();
  while (page != PageCursor::kEnd) {
    const PageIdx next = cursor.Next();
    const int64_t first_key = int64_t{page} * kPageTokens;
    WaitCopies<1>();
    __syncthreads();  // K (and at first Q) is there
    float s[kRowTiles][kKeyTiles][4];
    Scores(shared, warp, s);
    __syncthreads();  // K is read
    if (next != PageCursor::kEnd) CopyKeys(shared, part(next));
    CommitCopies();
    if (!mask.SeesAll(warp_first, warp_first + kWarpQueries - 1, page)) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int64_t position = warp_first + m * 16 + lane / 4 + e / 2 * 8;
            const int64_t key = first_key + n * 8 + lane % 4 * 2 + e % 2;
            if (!mask.Sees(position, key)) s[m][n][e] = -INFINITY;
          }
        }
      }
    }
    Softmax(scale_log2, &state, s);
    WaitCopies<1>();
    __syncthreads();  // V is there
    const int64_t unwritten = last_position + 1 - first_key;
    if (unwritten < kPageTokens) {
      // Memory past the last token may hold anything, and 0 * NaN is NaN.
      const int count = kPageTokens - static_cast<int>(unwritten);
      for (int i = threadIdx.x; i < D * count; i += kThreads) {
        shared.v[i / count][unwritten + i % count] = 0;
      }
      __syncthreads();
    }
    AddValues(shared, s, &state);
    __syncthreads();  // V is read
    if (next != PageCursor::kEnd) CopyValues(shared, part(next));
    CommitCopies();
    page = next;
  }

#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = state.sum[m][half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
      const int r = warp * kWarpQueries + m * 16 + half * 8 + lane / 4;
      if (r >= row.num_queries) continue;
      float* out = args.out.data + (row.first_query + r) * args.out.stride + q_head * D;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const int d = n * 8 + lane % 4 * 2;
        out[d] = state.out[m][n][2 * half] * inverse;
        out[d + 1] = state.out[m][n][2 * half + 1] * inverse;
      }
    }
  }
}

template <int D>
cudaError_t Launch(const AttentionArgs& args, cudaStream_t stream) {
  const auto kernel = PrefillAttentionKernel<D>;
  constexpr int kSharedBytes = static_cast<int>(sizeof(Shared<D>));
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const int slots = max(args.layer.ways[0].num_slots, args.layer.ways[1].num_slots);
  const dim3 grid(static_cast<unsigned>(slots * args.layer.group),
                  static_cast<unsigned>(args.plan.num_rows));
  kernel<<<grid, kThreads, kSharedBytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

bool HasAttentionKernels(int head_dim) {
  return head_dim == 32 || head_dim == 64 || head_dim == 96 || head_dim == 128;
}

cudaError_t LaunchPrefillAttention(const AttentionArgs& args, cudaStream_t stream) {
  if (args.plan.num_rows == 0) return cudaSuccess;
  switch (args.layer.head_dim) {
    case 32:
      return Launch<32>(args, stream);
    case 64:
      return Launch<64>(args, stream);
    case 96:
      return Launch<96>(args, stream);
    case 128:
      return Launch<128>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace lserve
