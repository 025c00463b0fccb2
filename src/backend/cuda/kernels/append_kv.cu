// AppendKv: stores K and V of new tokens, quantised if the cache is, and folds the stored keys into
// the statistics, in one kernel.
//
//   One block per (piece of a page, KV head). A warp takes a token: its lanes hold the head's
//   elements, so that the range for quantization is a shuffle away. Values wait in shared memory,
//   [D][tokens], until all tokens are there, since rows of V^T are written along tokens.
#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/kv_part.cuh"
#include "backend/cuda/kernels/launch.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kMaxHeadDim = 128;
constexpr int kPerLane = kMaxHeadDim / kWarp;

struct Shared {
  __nv_bfloat16 keys[kPageTokens][kMaxHeadDim];   // as stored, dequantised
  uint16_t values[kMaxHeadDim][kPageTokens + 1];  // bf16 bits or codes; odd rows: no bank conflict
};

// The scale of the elements that the lanes of a warp hold.
template <KvType T>
__device__ ScaleType<T> WarpScale(const float (&x)[kPerLane], int head_dim) {
  const int lane = threadIdx.x % kWarp;
  float low = INFINITY, high = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (lane + i * kWarp >= head_dim) continue;
    const float value = ClampForQuant(x[i]);
    low = fminf(low, value);
    high = fmaxf(high, value);
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    low = fminf(low, __shfl_xor_sync(0xffffffffu, low, offset));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, offset));
  }
  if constexpr (T == KvType::kFp8) {
    return Fp8ExponentOf(fmaxf(fabsf(low), fabsf(high)));
  } else {
    return QuantScaleOf(low, high, kLevels<T>);
  }
}

// Stores one key from a warp's registers; `stored` gets what the cache now holds.
template <KvType T>
__device__ void StoreKey(
    std::byte* kv, int head_dim, int token, const float (&x)[kPerLane], __nv_bfloat16* stored) {
  const int lane = threadIdx.x % kWarp;
  std::byte* row = kv + token * KeyRowBytes<T>(head_dim);
  ScaleType<T> scale = {};
  if constexpr (T != KvType::kBf16) {
    scale = WarpScale<T>(x, head_dim);
    if (lane == 0) Scales<T>(kv, head_dim)[token] = scale;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + i * kWarp;
    if constexpr (T == KvType::kBf16) {
      if (d >= head_dim) continue;
      stored[d] = __float2bfloat16_rn(x[i]);
      reinterpret_cast<__nv_bfloat16*>(row)[d] = stored[d];
    } else {
      const uint32_t code = CodeOf<T>(x[i], scale);
      // Every lane takes part in the shuffle, whether it holds an element or not.
      const uint32_t next = __shfl_down_sync(0xffffffffu, code, 1);
      if (d >= head_dim) continue;
      stored[d] = StoredOf<T>(code, scale);
      if constexpr (T != KvType::kInt4) {
        row[d] = static_cast<std::byte>(code);
      } else if (d % 2 == 0) {
        row[d / 2] = static_cast<std::byte>(code | next << 4);
      }
    }
  }
}

// The bits of a value as V^T will hold them, into column `token`.
template <KvType T>
__device__ void StageValue(
    std::byte* kv, int head_dim, int token, const float (&x)[kPerLane], Shared* shared) {
  const int lane = threadIdx.x % kWarp;
  ScaleType<T> scale = {};
  if constexpr (T != KvType::kBf16) {
    scale = WarpScale<T>(x, head_dim);
    if (lane == 0) Scales<T>(kv, head_dim)[kPageTokens + token] = scale;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + i * kWarp;
    if (d >= head_dim) continue;
    if constexpr (T == KvType::kBf16) {
      shared->values[d][token] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
    } else {
      shared->values[d][token] = static_cast<uint16_t>(CodeOf<T>(x[i], scale));
    }
  }
}

// Writes columns [first, first + count) of V^T.
template <KvType T>
__device__ void WriteValues(
    std::byte* kv, int head_dim, int first, int count, const Shared& shared) {
  std::byte* values = kv + HalfBytes<T>(head_dim);
  if constexpr (T != KvType::kInt4) {
    for (int i = threadIdx.x; i < head_dim * count; i += kThreads) {
      const int d = i / count, token = first + i % count;
      if constexpr (T == KvType::kBf16) {
        reinterpret_cast<uint16_t*>(values)[d * kPageTokens + token] = shared.values[d][token];
      } else {
        values[d * kPageTokens + token] = static_cast<std::byte>(shared.values[d][token]);
      }
    }
  } else {
    // A byte holds two tokens; the half that is not ours keeps what it has.
    const int first_byte = first / 2, num_bytes = (first + count + 1) / 2 - first_byte;
    for (int i = threadIdx.x; i < head_dim * num_bytes; i += kThreads) {
      const int d = i / num_bytes, byte = first_byte + i % num_bytes;
      std::byte* at = values + d * (kPageTokens / 2) + byte;
      uint32_t bits = static_cast<uint32_t>(*at);
      for (int half = 0; half < 2; ++half) {
        const int token = 2 * byte + half;
        if (token < first || token >= first + count) continue;
        bits = (bits & ~(0xfu << (4 * half))) | uint32_t{shared.values[d][token]} << (4 * half);
      }
      *at = static_cast<std::byte>(bits);
    }
  }
}

// Folds tokens [first, first + count) into the statistics; `key(token, d)` is a stored key.
template <class Key>
__device__ void FoldStats(std::byte* stats, int head_dim, int first, int count, Key key) {
  __nv_bfloat16* bounds = reinterpret_cast<__nv_bfloat16*>(stats);
  const int first_logical = first / kLogicalPageTokens;
  const int num_logical = (first + count - 1) / kLogicalPageTokens - first_logical + 1;
  for (int i = threadIdx.x; i < num_logical * head_dim; i += blockDim.x) {
    const int logical = first_logical + i / head_dim, d = i % head_dim;
    __nv_bfloat16* min_at = bounds + (logical * 2) * head_dim + d;
    __nv_bfloat16* max_at = min_at + head_dim;
    const int begin = max(first, logical * kLogicalPageTokens);
    const int end = min(first + count, (logical + 1) * kLogicalPageTokens);
    __nv_bfloat16 min = *min_at, max = *max_at;
    for (int token = begin; token < end; ++token) {
      const __nv_bfloat16 k = key(token, d);
      const bool reset = token % kLogicalPageTokens == 0;
      if (reset || __bfloat162float(k) < __bfloat162float(min)) min = k;
      if (reset || __bfloat162float(k) > __bfloat162float(max)) max = k;
    }
    *min_at = min;
    *max_at = max;
  }
}

template <KvType T>
__global__ void __launch_bounds__(kThreads) AppendKvKernel(AppendKvArgs args) {
  LetNextStart();
  WaitForPrevious();
  __shared__ Shared shared;
  const AppendPiece piece = args.pieces[blockIdx.x];
  const int head = blockIdx.y;
  const int head_dim = args.layer.head_dim;
  const HeadSlotView at = args.layer.slots[head];
  const WayView& way = args.layer.ways[at.way];
  const PageId page = args.sequences[piece.sequence].pages[at.way][piece.page];
  std::byte* kv = way.kv + page * way.page_stride + at.slot * way.kv_bytes;

  const int lane = threadIdx.x % kWarp;
  for (int i = threadIdx.x / kWarp; i < piece.num_tokens; i += kThreads / kWarp) {
    const int token = piece.first_token + i;
    const float* k = args.k.data + (piece.row + i) * args.k.stride + head * head_dim;
    const float* v = args.v.data + (piece.row + i) * args.v.stride + head * head_dim;
    float key[kPerLane], value[kPerLane];
#pragma unroll
    for (int e = 0; e < kPerLane; ++e) {
      const int d = lane + e * kWarp;
      key[e] = d < head_dim ? k[d] : 0.0f;
      value[e] = d < head_dim ? v[d] : 0.0f;
    }
    StoreKey<T>(kv, head_dim, token, key, shared.keys[token]);
    StageValue<T>(kv, head_dim, token, value, &shared);
  }
  __syncthreads();
  WriteValues<T>(kv, head_dim, piece.first_token, piece.num_tokens, shared);
  if (way.stats_bytes == 0) return;
  FoldStats(way.stats + page * way.page_stride + at.slot * way.stats_bytes, head_dim,
            piece.first_token, piece.num_tokens,
            [&](int token, int d) { return shared.keys[token][d]; });
}

template <KvType T>
__global__ void RebuildStatsKernel(WayView way, int head_dim, PageId page, int num_tokens) {
  const int slot = blockIdx.x;
  const std::byte* kv = way.kv + page * way.page_stride + slot * way.kv_bytes;
  FoldStats(way.stats + page * way.page_stride + slot * way.stats_bytes, head_dim, 0, num_tokens,
            [&](int token, int d) {
              const uint4 eight = LoadKey<T>(kv, head_dim, token, d / 8 * 8);
              const uint32_t pair = (&eight.x)[d % 8 / 2];
              return __ushort_as_bfloat16(static_cast<uint16_t>(d % 2 == 0 ? pair : pair >> 16));
            });
}

}  // namespace

cudaError_t LaunchAppendKv(const AppendKvArgs& args, cudaStream_t stream) {
  if (args.num_pieces == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(args.num_pieces),
                  static_cast<unsigned>(args.layer.num_kv_heads));
  switch (args.dtype) {
    case DType::kBf16:
      return LaunchChained(AppendKvKernel<KvType::kBf16>, grid, kThreads, 0, stream, args);
    case DType::kInt8:
      return LaunchChained(AppendKvKernel<KvType::kInt8>, grid, kThreads, 0, stream, args);
    case DType::kInt4:
      return LaunchChained(AppendKvKernel<KvType::kInt4>, grid, kThreads, 0, stream, args);
    case DType::kFp8:
      return LaunchChained(AppendKvKernel<KvType::kFp8>, grid, kThreads, 0, stream, args);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t LaunchRebuildStats(const WayView& way,
                               DType dtype,
                               int head_dim,
                               PageId page,
                               int num_tokens,
                               cudaStream_t stream) {
  if (way.num_slots == 0 || num_tokens == 0) return cudaSuccess;
  const unsigned slots = static_cast<unsigned>(way.num_slots);
  const auto launch = [&](auto kernel) {
    kernel<<<slots, kThreads, 0, stream>>>(way, head_dim, page, num_tokens);
  };
  switch (dtype) {
    case DType::kBf16:
      launch(RebuildStatsKernel<KvType::kBf16>);
      break;
    case DType::kInt8:
      launch(RebuildStatsKernel<KvType::kInt8>);
      break;
    case DType::kInt4:
      launch(RebuildStatsKernel<KvType::kInt4>);
      break;
    case DType::kFp8:
      launch(RebuildStatsKernel<KvType::kFp8>);
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace lserve
