// Products of few rows on Hopper: what linear.cu computes for bf16 weights, with W streamed through
// shared memory by bulk copies, and with the norm before and the gate behind a product in it.
//
//   Bytes: the weight's, out * in * 2; the bound is memory. A block per SM takes tiles of 16 out
//   features in turn. One warp copies stages of [16, kStageDepth] of W into a ring; eight warps
//   multiply them, kWarpDepth elements of K each, and are summed in their order at the end of a
//   tile. So what is in flight depends on neither registers nor the end of a tile, and the ring
//   fills while the kernel before this one still runs (launch.cuh). That order depends on `in`
//   only, so a row's result does not depend on the batch.
//
//   Out features are the 16 rows of a tensor-core tile and rows of x its 8 columns. The order of
//   the summed axis is free: lane (r, j) = (lane / 4, lane % 4) loads elements 32 c + 8 j .. + 7 of
//   rows r and r + 8 in 16-byte vectors straight into fragments. Rows of a stage are 64 bytes more
//   than a power of two apart: no bank is asked twice.
//
//   Shared memory: ring 85 KiB, sums 4, x up to 32. docs/kernels/cuda_decode.md has the figures.
#include <cuda_bf16.h>

#include <algorithm>
#include <cstddef>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/launch.cuh"
#include "backend/cuda/kernels/mma.cuh"
#include "backend/cuda/kernels/wgmma.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;  // that multiply
constexpr int kConsumers = kWarps * kWarp;
constexpr int kThreads = kConsumers + kWarp;
constexpr int kVector = 8;  // bf16 elements in 16 bytes
constexpr int kChunk = 32;  // of K: what the vectors of four lanes cover
constexpr int kChunks = 2;
constexpr int kWarpDepth = kChunk * kChunks;
constexpr int kStageDepth = kWarps * kWarpDepth;  // elements of K
constexpr int kTileOuts = 16;
constexpr int kHalfTile = kTileOuts / 2;
constexpr int kTileRows = 8;
constexpr int kRowPitch = kStageDepth + 32;  // elements
constexpr int kStages = 5;  // two blocks of an SM fit, so that one fills its ring early
constexpr size_t kMaxXBytes = size_t{32} << 10;
constexpr int kConsumerBarrier = 1;

struct Shared {
  uint16_t ring[kStages][kTileOuts][kRowPitch];
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

// Row `i` of tile `tile` of W. kGate: the first half of a tile is of the gate, the second of up.
// Rows past the end are computed from the last one and not stored.
template <bool kGate>
__device__ const uint16_t* WeightRow(const GemvArgs& args, int64_t tile, int i) {
  const int64_t width = kGate ? args.out_features / 2 : args.out_features;
  const int64_t column = kGate ? tile * kHalfTile + i % kHalfTile : tile * kTileOuts + i;
  const int64_t out = min(column, width - 1) + (kGate ? i / kHalfTile * width : 0);
  return static_cast<const uint16_t*>(args.weight) + out * args.in_features;
}

// A warp; each of 16 lanes copies a row of every stage.
template <bool kGate>
__device__ void Produce(const GemvArgs& args, int64_t tiles, Shared& shared) {
  const int lane = threadIdx.x % kWarp;
  if (lane >= kTileOuts) return;
  constexpr unsigned kLanes = (1u << kTileOuts) - 1;
  const int in = static_cast<int>(args.in_features);
  const uint64_t policy = EvictFirst();
  int step = 0;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const uint16_t* row = WeightRow<kGate>(args, tile, lane);
    for (int k = 0; k < in; k += kStageDepth, ++step) {
      const int stage = step % kStages;
      const int bytes = min(kStageDepth, in - k) * static_cast<int>(sizeof(uint16_t));
      Wait(&shared.empty[stage], static_cast<uint32_t>(step / kStages % 2) ^ 1);
      if (lane == 0) ArriveAndExpect(&shared.full[stage], kTileOuts * bytes);
      __syncwarp(kLanes);
      CopyBytes(shared.ring[stage][lane], row + k, bytes, policy, &shared.full[stage]);
    }
  }
}

__device__ float ConsumerSum(float x, float* shared) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  }
  SyncConsumers();  // the last sum has been read
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = x;
  SyncConsumers();
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp];
  return sum;
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
      for (int h = 0; h < kHeld; ++h) {
        squares += held[h].x * held[h].x + held[h].y * held[h].y + held[h].z * held[h].z +
                   held[h].w * held[h].w;
      }
      for (int i = 4 * static_cast<int>(threadIdx.x) + kHeld * kStep; i < in; i += kStep) {
        const float4 v = *reinterpret_cast<const float4*>(from + i);
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
      }
      const float mean = ConsumerSum(squares, shared.squares) / static_cast<float>(in);
      scale = 1.0f / sqrtf(mean + args.eps);
    }
    const auto store = [&](int i, float4 v) {
      float4 by = {1, 1, 1, 1};
      if (args.norm != nullptr) by = *reinterpret_cast<const float4*>(args.norm + i);
      const __nv_bfloat162 low = __floats2bfloat162_rn(v.x * scale * by.x, v.y * scale * by.y);
      const __nv_bfloat162 high = __floats2bfloat162_rn(v.z * scale * by.z, v.w * scale * by.w);
      *reinterpret_cast<uint2*>(to + i) = {reinterpret_cast<const uint32_t&>(low),
                                           reinterpret_cast<const uint32_t&>(high)};
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

__device__ float Silu(float x) {
  return x / (1.0f + expf(-x));
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
template <int kRowTiles, bool kFloatX, bool kGate>
__device__ void Consume(const GemvArgs& args, int64_t tiles, Shared& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, r = lane / 4, j = lane % 4;
  const int in = static_cast<int>(args.in_features);
  const int first = warp * kWarpDepth + j * kVector;  // the lane's first element of a stage
  WaitForPrevious();
  if constexpr (kFloatX) StoreX(args, shared);
  const uint16_t* x = kFloatX ? shared.x + r * (in + kVector)
                              : static_cast<const uint16_t*>(args.x) + r * args.x_stride;
  // From global memory a stage ahead, since L2 takes longer than a stage's products.
  const auto load_x = [&](int k, uint4(&to)[kRowTiles][kChunks]) {
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int at = k + first + c * kChunk;
        to[t][c] = t * kTileRows + r < args.rows && at < in
                       ? *reinterpret_cast<const uint4*>(x + t * kTileRows * args.x_stride + at)
                       : uint4{};
      }
    }
  };
  uint4 b[kRowTiles][kChunks];
  load_x(0, b);
  int step = 0;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sums[kRowTiles][4] = {};
    for (int k = 0; k < in; k += kStageDepth, ++step) {
      const int stage = step % kStages;
      Wait(&shared.full[stage], static_cast<uint32_t>(step / kStages % 2));
      const uint16_t(&rows)[kTileOuts][kRowPitch] = shared.ring[stage];
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        uint4 low = *reinterpret_cast<const uint4*>(&rows[r][first + c * kChunk]);
        uint4 high = *reinterpret_cast<const uint4*>(&rows[r + kHalfTile][first + c * kChunk]);
        // What an earlier stage left behind the end of K may be anything.
        if (k + first + c * kChunk >= in) low = high = uint4{};
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          Mma(sums[t], low.x, high.x, low.y, high.y, b[t][c].x, b[t][c].y);
          Mma(sums[t], low.z, high.z, low.w, high.w, b[t][c].z, b[t][c].w);
        }
      }
      load_x(k + kStageDepth < in ? k + kStageDepth : 0, b);
      __syncwarp();
      if (lane == 0) Arrive(&shared.empty[stage]);
    }
    StoreTile<kRowTiles, kGate>(args, tile, sums, shared);
  }
}

template <int kRowTiles, bool kFloatX, bool kGate>
__global__ void __launch_bounds__(kThreads, 2) StreamKernel(GemvArgs args) {
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
    Produce<kGate>(args, tiles, shared);
  } else {
    Consume<kRowTiles, kFloatX, kGate>(args, tiles, shared);
  }
}

size_t XBytes(int64_t rows, int64_t in_features) {
  return static_cast<size_t>(rows * (in_features + kVector)) * sizeof(uint16_t);
}

template <int kRowTiles, bool kFloatX, bool kGate>
cudaError_t LaunchStream(const GemvArgs& args, int multiprocessors, cudaStream_t stream) {
  const auto kernel = StreamKernel<kRowTiles, kFloatX, kGate>;
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

}  // namespace

bool HasSm90Gemv(DType weight, int64_t rows, int64_t in_features) {
  // Beyond, reading x from L2 for every tile costs more than linear.cu's larger grid.
  constexpr int64_t kMaxRows = 2 * kTileRows;
  return weight == DType::kBf16 && in_features % kVector == 0 && rows <= kMaxRows;
}

bool GemvSm90RoundsX(ConstMatrixView x, int64_t rows, int64_t in_features) {
  return rows <= kTileRows && XBytes(rows, in_features) <= kMaxXBytes && x.stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % sizeof(float4) == 0;
}

cudaError_t LaunchGemvSm90(const GemvArgs& args, int multiprocessors, cudaStream_t stream) {
  const auto launch = [&]<int kRowTiles, bool kFloatX>() {
    return args.gate ? LaunchStream<kRowTiles, kFloatX, true>(args, multiprocessors, stream)
                     : LaunchStream<kRowTiles, kFloatX, false>(args, multiprocessors, stream);
  };
  if (args.x_dtype == DType::kF32) return launch.template operator()<1, true>();
  if (args.rows <= kTileRows) return launch.template operator()<1, false>();
  return launch.template operator()<2, false>();
}

}  // namespace lserve
