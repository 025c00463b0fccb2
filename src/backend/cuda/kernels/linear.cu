// Products of few rows: y = x W^T, each weight read once.
//
//   Bytes: the weight's, out * in * 2 for bf16; FLOPs 2 * rows * out * in: 1 to 32 per byte, so the
//   bound is memory. bf16 (SkinnyKernel): out features are the 16 rows of a tensor-core tile and
//   the rows of x its 8 columns, so that 8 rows cost the arithmetic of one. The order of the summed
//   axis is free: lane (r, j) = (lane / 4, lane % 4) loads elements 32 c + 8 j .. + 7 of rows r and
//   r + 8 in 16-byte vectors straight into fragments, as decode_attention.cu does. A block owns 16
//   out features; its warps take turns along K, kDepth elements each (1 KB of a row for the
//   block), keep the next turn's loads in flight, and are summed in their order. That order
//   depends on `in` only, so a row's result does not depend on the batch. The first loads are under
//   way before the kernel that makes x ends.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/launch.cuh"
#include "backend/cuda/kernels/mma.cuh"
#include "backend/cuda/kernels/numbers.cuh"
#include "backend/cuda/kernels/sums.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = kGemvSlices;
constexpr int kThreads = kWarp * kWarpsPerBlock;
constexpr int kChunk = 32;                // of K: what the vectors of four lanes cover
constexpr int kChunks = kTurnChunks;      // a warp's turn
constexpr int kDepth = kChunk * kChunks;  // in elements of K
constexpr int kTileOuts = 16;
constexpr int kTileRows = 8;

// Eight elements of x, rounded to bf16.
__device__ uint4 LoadX(const uint16_t* x) {
  return *reinterpret_cast<const uint4*>(x);
}
__device__ uint4 LoadX(const float* x) {
  const float4 a = reinterpret_cast<const float4*>(x)[0];
  const float4 b = reinterpret_cast<const float4*>(x)[1];
  return {PackBf16(a.x, a.y), PackBf16(a.z, a.w), PackBf16(b.x, b.y), PackBf16(b.z, b.w)};
}

// One turn of a warp: kChunks vectors of two rows of each tile.
template <int kOutTiles>
struct Weights {
  uint4 vectors[kOutTiles][2][kChunks];
};

// `rows`: the lane's rows of W, from its first element on; `k`: of the turn; `limit`: elements of K
// that are left from the lane's first one on.
template <int kOutTiles>
__device__ void LoadWeights(const uint16_t* const (&rows)[kOutTiles][2],
                            int k,
                            int limit,
                            Weights<kOutTiles>* weights) {
#pragma unroll
  for (int tile = 0; tile < kOutTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int at = k + c * kChunk;
        weights->vectors[tile][half][c] =
            at < limit ? __ldcs(reinterpret_cast<const uint4*>(rows[tile][half] + at)) : uint4{};
      }
    }
  }
}

// Sums the warps' tiles in their order and stores `kTileRows` rows of y.
template <int kOutTiles, int kRowTiles>
__device__ void StoreTiles(const GemvArgs& args, const float (&sums)[kOutTiles][kRowTiles][4]) {
  constexpr int kOuts = kTileOuts * kOutTiles;
  __shared__ float shared[kWarpsPerBlock][kTileRows][kOuts + 1];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, r = lane / 4, j = lane % 4;
  const int64_t first_out = int64_t{blockIdx.x} * kOuts;
#pragma unroll
  for (int rows = 0; rows < kRowTiles; ++rows) {
    if (rows > 0) __syncthreads();
#pragma unroll
    for (int tile = 0; tile < kOutTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        shared[warp][2 * j + e % 2][tile * kTileOuts + r + e / 2 * 8] = sums[tile][rows][e];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTileRows * kOuts; i += kThreads) {
      const int row = rows * kTileRows + i / kOuts;
      const int64_t out = first_out + i % kOuts;
      if (row >= args.rows || out >= args.out_features) continue;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarpsPerBlock; ++w) sum += shared[w][i / kOuts][i % kOuts];
      if (args.bias != nullptr) sum += args.bias[out];
      float* y = args.y.data + row * args.y.stride + out;
      *y = args.accumulate ? *y + sum : sum;
    }
  }
}

template <int kOutTiles, int kRowTiles, class X>
__global__ void __launch_bounds__(kThreads, kRowTiles <= 2 ? 4 : 3) SkinnyKernel(GemvArgs args) {
  LetNextStart();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, r = lane / 4, j = lane % 4;
  const int64_t first_out = int64_t{blockIdx.x} * kTileOuts * kOutTiles;
  const int in = static_cast<int>(args.in_features), limit = in - j * kVector;
  const uint16_t* rows[kOutTiles][2];
#pragma unroll
  for (int tile = 0; tile < kOutTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Rows past the end are computed from the last one and not stored.
      const int64_t out = min(first_out + tile * kTileOuts + half * 8 + r, args.out_features - 1);
      rows[tile][half] =
          static_cast<const uint16_t*>(args.weight) + out * args.in_features + j * kVector;
    }
  }
  Weights<kOutTiles> weights;
  LoadWeights(rows, warp * kDepth, limit, &weights);
  WaitForPrevious();

  const X* x = static_cast<const X*>(args.x) + r * args.x_stride + j * kVector;
  float sums[kOutTiles][kRowTiles][4] = {};
  for (int k = warp * kDepth; k < in; k += kWarpsPerBlock * kDepth) {
    Weights<kOutTiles> next;
    LoadWeights(rows, k + kWarpsPerBlock * kDepth, limit, &next);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int at = k + c * kChunk;
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        uint4 b = {};
        if (t * kTileRows + r < args.rows && at < limit) {
          b = LoadX(x + t * kTileRows * args.x_stride + at);
        }
#pragma unroll
        for (int tile = 0; tile < kOutTiles; ++tile) {
          const uint4 &low = weights.vectors[tile][0][c], &high = weights.vectors[tile][1][c];
          Mma(sums[tile][t], low.x, high.x, low.y, high.y, b.x, b.y);
          Mma(sums[tile][t], low.z, high.z, low.w, high.w, b.z, b.w);
        }
      }
    }
    weights = next;
  }
  StoreTiles<kOutTiles, kRowTiles>(args, sums);
}

__device__ float WarpSum(float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  }
  return x;
}

template <int kRows>
__device__ void StoreRow(const GemvArgs& args, int64_t out, const float (&sums)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float sum = WarpSum(sums[r]) + (args.bias != nullptr ? args.bias[out] : 0.0f);
    if (threadIdx.x % kWarp != 0) continue;
    float* y = args.y.data + r * args.y.stride + out;
    *y = args.accumulate ? *y + sum : sum;
  }
}

// Any width; for types and shapes that are rare.
template <int kRows, class W, class X>
__global__ void __launch_bounds__(kThreads) GemvPlainKernel(GemvArgs args) {
  WaitForPrevious();
  const int64_t out = int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.x / kWarp;
  if (out >= args.out_features) return;
  const W* w = static_cast<const W*>(args.weight) + out * args.in_features;
  float sums[kRows] = {};
  for (int64_t i = threadIdx.x % kWarp; i < args.in_features; i += kWarp) {
    const float weight = ToFloat(w[i]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sums[r] =
          fmaf(weight, ToFloat(static_cast<const X*>(args.x)[r * args.x_stride + i]), sums[r]);
    }
  }
  StoreRow(args, out, sums);
}

template <int kRows>
cudaError_t LaunchPlain(const GemvArgs& args, cudaStream_t stream) {
  const unsigned blocks =
      static_cast<unsigned>((args.out_features + kWarpsPerBlock - 1) / kWarpsPerBlock);
  switch (args.dtype) {
    case DType::kBf16:
      return LaunchChained(GemvPlainKernel<kRows, __nv_bfloat16, __nv_bfloat16>, dim3(blocks),
                           kThreads, 0, stream, args);
    case DType::kF16:
      return LaunchChained(GemvPlainKernel<kRows, __half, float>, dim3(blocks), kThreads, 0, stream,
                           args);
    default:
      return LaunchChained(GemvPlainKernel<kRows, float, float>, dim3(blocks), kThreads, 0, stream,
                           args);
  }
}

template <int kOutTiles, int kRowTiles, class X>
cudaError_t LaunchSkinny(const GemvArgs& args, cudaStream_t stream) {
  constexpr int kOuts = kTileOuts * kOutTiles;
  const unsigned blocks = static_cast<unsigned>((args.out_features + kOuts - 1) / kOuts);
  return LaunchChained(SkinnyKernel<kOutTiles, kRowTiles, X>, dim3(blocks), kThreads, 0, stream,
                       args);
}

__global__ void RoundToBf16Kernel(ConstMatrixView x, int64_t cols, __nv_bfloat16* out) {
  LetNextStart();
  WaitForPrevious();
  const float* from = x.data + blockIdx.x * x.stride;
  __nv_bfloat16* to = out + blockIdx.x * cols;
  for (int64_t c = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; c < cols;
       c += int64_t{gridDim.y} * blockDim.x) {
    to[c] = __float2bfloat16_rn(from[c]);
  }
}

__global__ void WidenF16Kernel(const __half* values, int64_t count, float* out) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) out[i] = __half2float(values[i]);
}

__global__ void AddBiasKernel(MatrixView y, int64_t cols, const float* bias) {
  const int64_t c = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (c < cols) y.data[blockIdx.x * y.stride + c] += bias[c];
}

}  // namespace

int MaxGemvRows(DType weight, int64_t in_features) {
  return weight == DType::kBf16 && in_features % kVector == 0 ? 4 * kTileRows : 8;
}

bool GemvRoundsX(ConstMatrixView x, int64_t rows, int64_t in_features) {
  // Every block reads x: two rows of float are a quarter of the weights' bytes, from L2.
  return rows <= 2 && in_features % kVector == 0 && x.stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % sizeof(float4) == 0;
}

cudaError_t LaunchGemv(const GemvArgs& args, cudaStream_t stream) {
  if (args.rows < 1 || args.rows > MaxGemvRows(args.dtype, args.in_features)) {
    return cudaErrorInvalidValue;
  }
  if (args.dtype == DType::kBf16 && args.in_features % kVector == 0) {
    if (args.x_dtype == DType::kF32) return LaunchSkinny<1, 1, float>(args, stream);
    if (args.rows <= kTileRows) return LaunchSkinny<1, 1, uint16_t>(args, stream);
    if (args.rows <= 2 * kTileRows) return LaunchSkinny<1, 2, uint16_t>(args, stream);
    return LaunchSkinny<1, 4, uint16_t>(args, stream);
  }
  switch (args.rows) {
    case 1:
      return LaunchPlain<1>(args, stream);
    case 2:
      return LaunchPlain<2>(args, stream);
    case 3:
      return LaunchPlain<3>(args, stream);
    case 4:
      return LaunchPlain<4>(args, stream);
    case 5:
      return LaunchPlain<5>(args, stream);
    case 6:
      return LaunchPlain<6>(args, stream);
    case 7:
      return LaunchPlain<7>(args, stream);
    default:
      return LaunchPlain<8>(args, stream);
  }
}

cudaError_t LaunchRoundToBf16(
    ConstMatrixView x, int64_t rows, int64_t cols, uint16_t* out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>((cols + 1023) / 1024));
  return LaunchChained(RoundToBf16Kernel, grid, kThreads, 0, stream, x, cols,
                       reinterpret_cast<__nv_bfloat16*>(out));
}

cudaError_t LaunchWidenF16(const void* values, int64_t count, float* out, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  WidenF16Kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const __half*>(values), count, out);
  return cudaGetLastError();
}

cudaError_t LaunchAddBias(
    MatrixView y, int64_t rows, int64_t cols, const float* bias, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(rows),
                  static_cast<unsigned>((cols + kThreads - 1) / kThreads));
  AddBiasKernel<<<grid, kThreads, 0, stream>>>(y, cols, bias);
  return cudaGetLastError();
}

}  // namespace lserve
