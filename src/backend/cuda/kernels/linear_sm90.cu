// Products of few rows on Hopper: what linear.cu computes for bf16 weights, and the same for int8
// and int4, with W streamed through shared memory by bulk copies, and with the norm before and the
// gate behind a product in it.
//
//   Bytes: the weight's; the bound is memory. A block per SM takes tiles of 16 out features in
//   turn. One warp copies stages of 1 KiB of each row of W into a ring; eight warps multiply them,
//   an eighth of K each, and are summed in their order at the end of a tile. So what is in flight
//   depends on neither registers nor the end of a tile, and the ring fills while the kernel before
//   this one still runs (launch.cuh). That order depends on `in` only, so a row's result does not
//   depend on the batch.
//
//   Out features are the 16 rows of a tensor-core tile and rows of x its 8 columns. The order of
//   the summed axis is free: lane (r, j) = (lane / 4, lane % 4) loads vector 4 c + j, 16 bytes, of
//   rows r and r + 8 straight into fragments. Rows of a stage are 64 bytes more than a power of two
//   apart: no bank is asked twice.
//
//   Codes become bf16 in registers, exactly (int8 by way of float, int4 by way of 128 + code). A
//   warp sums a quantization group on its own, then scales it (ops.h, LinearParams); what int4's
//   minimum stands for needs the sum of x, which is a product with ones.
//
//   Shared memory: ring 85 KiB, sums 4, x up to 32. docs/kernels/cuda_decode.md has the figures.
#include <cuda_bf16.h>

#include <algorithm>
#include <cstddef>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/launch.cuh"
#include "backend/cuda/kernels/mma.cuh"
#include "backend/cuda/kernels/norm.cuh"
#include "backend/cuda/kernels/numbers.cuh"
#include "backend/cuda/kernels/sums.cuh"
#include "backend/cuda/kernels/wgmma.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = kSm90Slices;  // that multiply
constexpr int kConsumers = kWarps * kWarp;
constexpr int kThreads = kConsumers + kWarp;
constexpr int kChunks = kTurnChunks;
constexpr int kStageBytes = kWarps * kTurnBytes;  // of a row
constexpr int kTileOuts = 16;
constexpr int kHalfTile = kTileOuts / 2;
constexpr int kTileRows = 8;
constexpr int kRowPitch = kStageBytes + 64;  // bytes
constexpr int kStages = 5;
constexpr size_t kMaxXBytes = size_t{32} << 10;
constexpr int kConsumerBarrier = 1;
static_assert(kConsumers == kNormRowThreads);

template <Stored W>
constexpr int kWarpDepth = kTurnVectors* kElements<W>;  // elements of K
template <Stored W>
constexpr int kStageDepth = kWarps* kWarpDepth<W>;

struct Shared {
  uint8_t ring[kStages][kTileOuts][kRowPitch];
  float sums[kWarps][kTileRows][kTileOuts + 1];
  float squares[kWarps];
  uint64_t full[kStages], empty[kStages];
  uint16_t x[];  // [rows, in + kVector] bf16, if x is float
};

__device__ void SyncConsumers() {
  SyncThreads(kConsumerBarrier, kConsumers);
}

// `bytes` of global memory into shared memory; streamed once, so it is the first to leave L2.
__device__ void CopyBytes(void* to, const void* from, int bytes, uint64_t policy, uint64_t* done) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], %2, [%3], %4;" ::"r"(SharedAddress(to)),
      "l"(from), "r"(bytes), "r"(SharedAddress(done)), "l"(policy)
      : "memory");
}

__device__ uint64_t EvictFirst() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// The out feature that is row `i` of tile `tile`. kGate: the first half of a tile is of the gate,
// the second of up. Rows past the end are computed from the last one and not stored.
template <bool kGate>
__device__ int64_t OutFeature(const GemvArgs& args, int64_t tile, int i) {
  const int64_t width = kGate ? args.out_features / 2 : args.out_features;
  const int64_t column = kGate ? tile * kHalfTile + i % kHalfTile : tile * kTileOuts + i;
  return min(column, width - 1) + (kGate ? i / kHalfTile * width : 0);
}

// A warp; each of 16 lanes copies a row of every stage.
template <Stored W, bool kGate>
__device__ void Produce(const GemvArgs& args, int64_t tiles, Shared& shared) {
  const int lane = threadIdx.x % kWarp;
  if (lane >= kTileOuts) return;
  constexpr unsigned kLanes = (1u << kTileOuts) - 1;
  const int row_bytes = static_cast<int>(RowBytes<W>(args.in_features));
  const uint64_t policy = EvictFirst();
  int step = 0;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const std::byte* row = static_cast<const std::byte*>(args.weight) +
                           OutFeature<kGate>(args, tile, lane) * row_bytes;
    for (int at = 0; at < row_bytes; at += kStageBytes, ++step) {
      const int stage = step % kStages;
      const int bytes = min(kStageBytes, row_bytes - at);
      Wait(&shared.empty[stage], static_cast<uint32_t>(step / kStages % 2) ^ 1);
      if (lane == 0) ArriveAndExpect(&shared.full[stage], kTileOuts * bytes);
      __syncwarp(kLanes);
      CopyBytes(shared.ring[stage][lane], row + at, bytes, policy, &shared.full[stage]);
    }
  }
}

// x as bf16 in shared memory, normalised if args.norm says so (RmsNormParams).
__device__ void StoreX(const GemvArgs& args, Shared& shared) {
  const int in = static_cast<int>(args.in_features);
  constexpr int kStep = 4 * kConsumers;
  constexpr int kHeld = 4;  // vectors of a thread that wait in registers between the two passes
  for (int r = 0; r < args.rows; ++r) {
    const float* from = static_cast<const float*>(args.x) + r * args.x_stride;
    uint16_t* to = shared.x + r * (in + kVector);
    float4 held[kHeld];
    float scale = 1;
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int i = 4 * static_cast<int>(threadIdx.x) + h * kStep;
      held[h] = i < in ? *reinterpret_cast<const float4*>(from + i) : float4{};
    }
    if (args.norm != nullptr) {
      float squares = 0;
#pragma unroll
      for (int h = 0; h < kHeld; ++h) squares = AddSquares(squares, held[h]);
      for (int i = 4 * static_cast<int>(threadIdx.x) + kHeld * kStep; i < in; i += kStep) {
        squares = AddSquares(squares, *reinterpret_cast<const float4*>(from + i));
      }
      scale = NormScale(squares, in, args.eps, shared.squares, [] { SyncConsumers(); });
    }
    const auto store = [&](int i, float4 v) {
      float4 by = {1, 1, 1, 1};
      if (args.norm != nullptr) by = *reinterpret_cast<const float4*>(args.norm + i);
      *reinterpret_cast<uint2*>(to + i) = NormalisedBf16(v, scale, by);
    };
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int i = 4 * static_cast<int>(threadIdx.x) + h * kStep;
      if (i < in) store(i, held[h]);
    }
    for (int i = 4 * static_cast<int>(threadIdx.x) + kHeld * kStep; i < in; i += kStep) {
      store(i, *reinterpret_cast<const float4*>(from + i));
    }
  }
  SyncConsumers();
}

// Sums the warps' shares of a tile in their order, and stores y.
template <int kRowTiles, bool kGate>
__device__ void StoreTile(const GemvArgs& args,
                          int64_t tile,
                          const float (&sums)[kRowTiles][4],
                          Shared& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, r = lane / 4, j = lane % 4;
  constexpr int kStored = kGate ? kHalfTile : kTileOuts;  // columns of y
  const int64_t width = kGate ? args.out_features / 2 : args.out_features;
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    SyncConsumers();
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      shared.sums[warp][2 * j + e % 2][r + e / 2 * kHalfTile] = sums[t][e];
    }
    SyncConsumers();
    const int i = threadIdx.x;
    if (i >= kTileRows * kStored) continue;
    const int row_of_tile = i / kStored, column = i % kStored;
    const int row = t * kTileRows + row_of_tile;
    const int64_t out = tile * kStored + column;
    if (row >= args.rows || out >= width) continue;
    float sum = 0, up = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += shared.sums[w][row_of_tile][column];
    if (args.bias != nullptr) sum += args.bias[out];
    float* y = args.y.data + row * args.y.stride + out;
    if (kGate) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) up += shared.sums[w][row_of_tile][kHalfTile + column];
      if (args.bias != nullptr) up += args.bias[width + out];
      *y = Silu(sum) * up;
    } else {
      *y = args.accumulate ? *y + sum : sum;
    }
  }
}

// kFloatX: x is float and goes through StoreX().
template <Stored W, int kRowTiles, bool kFloatX, bool kGate>
__device__ void Consume(const GemvArgs& args, int64_t tiles, Shared& shared) {
  constexpr bool kQuantised = W != Stored::kBf16;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, r = lane / 4, j = lane % 4;
  const int in = static_cast<int>(args.in_features);
  // The lane's first element of a stage.
  const int first = warp * kWarpDepth<W> + j * kElements<W>;
  const int last_group = (in - 1) / kQuantGroup;
  WaitForPrevious();
  if constexpr (kFloatX) StoreX(args, shared);
  const int64_t x_stride = kFloatX ? in + kVector : args.x_stride;
  const uint16_t* x = (kFloatX ? shared.x : static_cast<const uint16_t*>(args.x)) + r * x_stride;
  const auto load_x = [&](int tile, int at) {
    return tile * kTileRows + r < args.rows && at < in
               ? *reinterpret_cast<const uint4*>(x + tile * kTileRows * x_stride + at)
               : uint4{};
  };
  // From global memory x is loaded a stage ahead, since L2 takes longer than a stage's products.
  uint4 ahead[kFloatX ? 1 : kRowTiles][kChunks][kParts<W>];
  GroupScale scales[kTurnGroups<W>] = {};
  int64_t outs[2];
  const auto load_ahead = [&](int k) {
    if constexpr (!kFloatX) {
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
#pragma unroll
          for (int p = 0; p < kParts<W>; ++p) {
            ahead[t][c][p] = load_x(t, k + first + c * 4 * kElements<W> + p * kVector);
          }
        }
      }
    }
    if constexpr (kQuantised) {
#pragma unroll
      for (int g = 0; g < kTurnGroups<W>; ++g) {
        const int group = (k + warp * kWarpDepth<W>) / kQuantGroup + g;
        scales[g] = LoadScale<W>(args, outs, min(group, last_group));
      }
    }
  };
  const auto set_outs = [&](int64_t tile) {
    outs[0] = OutFeature<kGate>(args, tile, r);
    outs[1] = OutFeature<kGate>(args, tile, r + kHalfTile);
  };
  set_outs(blockIdx.x);
  load_ahead(0);
  int step = 0;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sums[kRowTiles][4] = {};
    for (int k = 0; k < in; k += kStageDepth<W>, ++step) {
      const int stage = step % kStages;
      Wait(&shared.full[stage], static_cast<uint32_t>(step / kStages % 2));
      float group_sums[kRowTiles][2][4] = {}, x_sums[kRowTiles][2][4] = {};
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int at = first + c * 4 * kElements<W>;
        const int byte = ((warp * kChunks + c) * 4 + j) * kVectorBytes;
        uint4 low = *reinterpret_cast<const uint4*>(&shared.ring[stage][r][byte]);
        uint4 high = *reinterpret_cast<const uint4*>(&shared.ring[stage][r + kHalfTile][byte]);
        // What an earlier stage left behind the end of K may be anything, a NaN too; codes are
        // finite, and x is zero there.
        if (!kQuantised && k + at >= in) low = high = uint4{};
#pragma unroll
        for (int p = 0; p < kParts<W>; ++p) {
          const uint4 low_part = Expand<W>(low, p), high_part = Expand<W>(high, p);
#pragma unroll
          for (int t = 0; t < kRowTiles; ++t) {
            uint4 b;
            if constexpr (kFloatX) {
              b = load_x(t, k + at + p * kVector);
            } else {
              b = ahead[t][c][p];
            }
            MultiplyEight(low_part, high_part, b, group_sums[t][0], group_sums[t][1]);
            if constexpr (W == Stored::kInt4) {
              constexpr uint32_t kOnes = 0x3f803f80u;
              const uint4 ones = {kOnes, kOnes, kOnes, kOnes};
              MultiplyEight(ones, ones, b, x_sums[t][0], x_sums[t][1]);
            }
          }
        }
        if ((c + 1) % kGroupChunks<W> != 0) continue;
        const GroupScale& by = scales[c / kGroupChunks<W>];
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            sums[t][e] = SumGroup<W>(sums[t][e], group_sums[t][0][e], group_sums[t][1][e], by, e,
                                     x_sums[t][0][e] + x_sums[t][1][e]);
#pragma unroll
            for (int i = 0; i < 2; ++i) group_sums[t][i][e] = x_sums[t][i][e] = 0;
          }
        }
      }
      const bool ends = k + kStageDepth<W> >= in;
      if (ends && kQuantised) set_outs(min(tile + gridDim.x, tiles - 1));
      load_ahead(ends ? 0 : k + kStageDepth<W>);
      __syncwarp();
      if (lane == 0) Arrive(&shared.empty[stage]);
    }
    StoreTile<kRowTiles, kGate>(args, tile, sums, shared);
  }
}

template <Stored W, int kRowTiles, bool kFloatX, bool kGate>
__global__ void __launch_bounds__(kThreads, 1) StreamKernel(GemvArgs args) {
  extern __shared__ uint4 raw_shared[];
  Shared& shared = *reinterpret_cast<Shared*>(raw_shared);
  LetNextStart();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      InitBarrier(&shared.full[stage], 1);
      InitBarrier(&shared.empty[stage], kWarps);
    }
    FenceAsync();
  }
  __syncthreads();
  const int64_t tiles = (args.out_features + kTileOuts - 1) / kTileOuts;
  if (threadIdx.x / kWarp == kWarps) {
    Produce<W, kGate>(args, tiles, shared);
  } else {
    Consume<W, kRowTiles, kFloatX, kGate>(args, tiles, shared);
  }
}

size_t XBytes(int64_t rows, int64_t in_features) {
  return static_cast<size_t>(rows * (in_features + kVector)) * sizeof(uint16_t);
}

template <Stored W, int kRowTiles, bool kFloatX, bool kGate>
cudaError_t LaunchStream(const GemvArgs& args, int multiprocessors, cudaStream_t stream) {
  const auto kernel = StreamKernel<W, kRowTiles, kFloatX, kGate>;
  const size_t bytes = sizeof(Shared) + (kFloatX ? XBytes(args.rows, args.in_features) : 0);
  if (const cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
      error != cudaSuccess) {
    return error;
  }
  const int64_t tiles = (args.out_features + kTileOuts - 1) / kTileOuts;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(tiles, multiprocessors)));
  return LaunchChained(kernel, grid, kThreads, bytes, stream, args);
}

template <Stored W>
cudaError_t LaunchStored(const GemvArgs& args, int multiprocessors, cudaStream_t stream) {
  const auto launch = [&]<int kRowTiles, bool kFloatX>() {
    return args.gate ? LaunchStream<W, kRowTiles, kFloatX, true>(args, multiprocessors, stream)
                     : LaunchStream<W, kRowTiles, kFloatX, false>(args, multiprocessors, stream);
  };
  if (args.x_dtype == DType::kF32) return launch.template operator()<1, true>();
  if (args.rows <= kTileRows) return launch.template operator()<1, false>();
  if constexpr (W != Stored::kInt4) {
    if (args.rows <= 2 * kTileRows) return launch.template operator()<2, false>();
  }
  if constexpr (W == Stored::kBf16) return launch.template operator()<4, false>();
  return cudaErrorInvalidValue;
}

}  // namespace

bool HasSm90Gemv(DType weight, int64_t in_features) {
  return (weight == DType::kBf16 || weight == DType::kInt8 || weight == DType::kInt4) &&
         in_features % kVector == 0;
}

bool GemvSm90RoundsX(ConstMatrixView x, int64_t rows, int64_t in_features) {
  return rows <= kTileRows && XBytes(rows, in_features) <= kMaxXBytes && x.stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % sizeof(float4) == 0;
}

cudaError_t LaunchGemvSm90(const GemvArgs& args, int multiprocessors, cudaStream_t stream) {
  if (args.rows > MaxSm90GemvRows(args.dtype)) return cudaErrorInvalidValue;
  switch (args.dtype) {
    case DType::kBf16:
      return LaunchStored<Stored::kBf16>(args, multiprocessors, stream);
    case DType::kInt8:
      return LaunchStored<Stored::kInt8>(args, multiprocessors, stream);
    case DType::kInt4:
      return LaunchStored<Stored::kInt4>(args, multiprocessors, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace lserve
