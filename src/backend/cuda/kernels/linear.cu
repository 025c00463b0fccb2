// Products of few rows: y = x W^T, each weight read once.
//
//   Bytes: the weight's, out * in * 2 for bf16; FLOPs 2 * rows * out * in: 1 to 8 per byte, so the
//   bound is memory. A warp owns an out feature and reads its row in 16-byte vectors, kUnroll of
//   them in flight per lane; x comes from the caches. Lanes sum apart, then by a tree of shuffles:
//   the order depends on `in` only, so a row's result does not depend on the batch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backend/cuda/kernels/kernels.h"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;
constexpr int kThreads = kWarp * kWarpsPerBlock;
constexpr int kVector = 8;  // bf16 elements in 16 bytes

__device__ float2 Widen(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

__device__ float Dot(uint4 a, uint4 b, float sum) {
  const uint32_t* pa = &a.x;
  const uint32_t* pb = &b.x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = Widen(pa[i]), y = Widen(pb[i]);
    sum = fmaf(x.x, y.x, sum);
    sum = fmaf(x.y, y.y, sum);
  }
  return sum;
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

template <int kRows>
__global__ void __launch_bounds__(kThreads) GemvBf16Kernel(GemvArgs args) {
  const int64_t out = int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.x / kWarp;
  if (out >= args.out_features) return;
  const int64_t vectors = args.in_features / kVector;
  const uint4* w = static_cast<const uint4*>(args.weight) + out * vectors;
  const uint16_t* x = static_cast<const uint16_t*>(args.x);
  float sums[kRows] = {};
  constexpr int kUnroll = 4;
  for (int64_t first = threadIdx.x % kWarp; first < vectors; first += kWarp * kUnroll) {
    uint4 weights[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = first + u * kWarp;
      weights[u] = i < vectors ? __ldcs(w + i) : uint4{};
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = first + u * kWarp;
      if (i >= vectors) break;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint4 in = reinterpret_cast<const uint4*>(x + r * args.x_stride)[i];
        sums[r] = Dot(weights[u], in, sums[r]);
      }
    }
  }
  StoreRow(args, out, sums);
}

__device__ float ToFloat(float x) {
  return x;
}
__device__ float ToFloat(__half x) {
  return __half2float(x);
}
__device__ float ToFloat(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

// Any width; for types and shapes that are rare.
template <int kRows, class W, class X>
__global__ void __launch_bounds__(kThreads) GemvPlainKernel(GemvArgs args) {
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
cudaError_t LaunchRows(const GemvArgs& args, cudaStream_t stream) {
  const unsigned blocks =
      static_cast<unsigned>((args.out_features + kWarpsPerBlock - 1) / kWarpsPerBlock);
  if (args.dtype == DType::kBf16 && args.in_features % kVector == 0) {
    GemvBf16Kernel<kRows><<<blocks, kThreads, 0, stream>>>(args);
  } else if (args.dtype == DType::kBf16) {
    GemvPlainKernel<kRows, __nv_bfloat16, __nv_bfloat16><<<blocks, kThreads, 0, stream>>>(args);
  } else if (args.dtype == DType::kF16) {
    GemvPlainKernel<kRows, __half, float><<<blocks, kThreads, 0, stream>>>(args);
  } else {
    GemvPlainKernel<kRows, float, float><<<blocks, kThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

__global__ void RoundToBf16Kernel(ConstMatrixView x, int64_t cols, __nv_bfloat16* out) {
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

cudaError_t LaunchGemv(const GemvArgs& args, cudaStream_t stream) {
  switch (args.rows) {
    case 1:
      return LaunchRows<1>(args, stream);
    case 2:
      return LaunchRows<2>(args, stream);
    case 3:
      return LaunchRows<3>(args, stream);
    case 4:
      return LaunchRows<4>(args, stream);
    case 5:
      return LaunchRows<5>(args, stream);
    case 6:
      return LaunchRows<6>(args, stream);
    case 7:
      return LaunchRows<7>(args, stream);
    case 8:
      return LaunchRows<8>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t LaunchRoundToBf16(
    ConstMatrixView x, int64_t rows, int64_t cols, uint16_t* out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>((cols + 1023) / 1024));
  RoundToBf16Kernel<<<grid, kThreads, 0, stream>>>(x, cols, reinterpret_cast<__nv_bfloat16*>(out));
  return cudaGetLastError();
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
