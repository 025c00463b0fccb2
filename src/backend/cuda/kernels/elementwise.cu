// The ops between products: memory-bound, one pass each, float throughout.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/launch.cuh"
#include "backend/cuda/kernels/norm.cuh"
#include "backend/cuda/kernels/numbers.cuh"

namespace lserve {
namespace {

constexpr int kThreads = 256;
constexpr int kNormThreads = 1024;  // a row of a decode step has one block: width hides latency
constexpr int kWarp = 32;

template <class T>
__global__ void GatherRowsKernel(
    const T* table, int64_t table_stride, const int32_t* indices, int64_t cols, MatrixView out) {
  LetNextStart();
  WaitForPrevious();
  const T* from = table + indices[blockIdx.x] * table_stride;
  float* to = out.data + blockIdx.x * out.stride;
  for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) to[c] = ToFloat(from[c]);
}

// Sums `x` over the block; every thread gets the result. The order depends on the block size only.
__device__ float BlockSum(float x, float* shared) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = x;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) sum += shared[warp];
  return sum;
}

// One block per slice of a row, whose first elements wait in registers between the two passes. The
// weight, which is on its way from memory, is asked for before x is ready.
__global__ void RmsNormKernel(
    ConstMatrixView x, const float* weight, float eps, int n, MatrixView y) {
  LetNextStart();
  constexpr int kHeld = 4;
  const int step = static_cast<int>(blockDim.x);
  float weights[kHeld], values[kHeld];
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int i = h * step + static_cast<int>(threadIdx.x);
    weights[h] = i < n ? weight[i] : 0.0f;
  }
  WaitForPrevious();
  __shared__ float shared[kNormThreads / kWarp];
  const float* from = x.data + blockIdx.x * x.stride + int64_t{blockIdx.y} * n;
  float* to = y.data + blockIdx.x * y.stride + int64_t{blockIdx.y} * n;
  float squares = 0;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int i = h * step + static_cast<int>(threadIdx.x);
    values[h] = i < n ? from[i] : 0.0f;
  }
#pragma unroll
  for (int h = 0; h < kHeld; ++h) squares += values[h] * values[h];
  for (int i = kHeld * step + threadIdx.x; i < n; i += step) squares += from[i] * from[i];
  const float mean = BlockSum(squares, shared) / static_cast<float>(n);
  const float scale = 1.0f / sqrtf(mean + eps);
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int i = h * step + static_cast<int>(threadIdx.x);
    if (i < n) to[i] = values[h] * scale * weights[h];
  }
  for (int i = kHeld * step + threadIdx.x; i < n; i += step) to[i] = from[i] * scale * weight[i];
}

// One block per row, which holds its first elements between the two passes, in few registers, so
// that it starts beside a block of the product before it. `n` is a multiple of 4.
__global__ void __launch_bounds__(kNormRowThreads, 3)
    RmsNormToBf16Kernel(ConstMatrixView x, const float* weight, float eps, int n, uint16_t* y) {
  LetNextStart();
  __shared__ float shared[kNormRowThreads / kWarp];
  constexpr int kHeld = 2;
  constexpr int kStep = 4 * kNormRowThreads;
  const int first = 4 * static_cast<int>(threadIdx.x);
  const auto load = [](const float* at) {
    if (reinterpret_cast<uintptr_t>(at) % sizeof(float4) == 0) {
      return *reinterpret_cast<const float4*>(at);
    }
    return float4{at[0], at[1], at[2], at[3]};
  };
  float4 held[kHeld], weights[kHeld];
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    weights[h] = first + h * kStep < n ? load(weight + first + h * kStep) : float4{};
  }
  WaitForPrevious();
  const float* from = x.data + blockIdx.x * x.stride;
  uint16_t* to = y + int64_t{blockIdx.x} * n;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    held[h] = first + h * kStep < n ? load(from + first + h * kStep) : float4{};
  }
  float squares = 0;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) squares = AddSquares(squares, held[h]);
  for (int i = first + kHeld * kStep; i < n; i += kStep) {
    squares = AddSquares(squares, load(from + i));
  }
  const float scale = NormScale(squares, n, eps, shared, [] { __syncthreads(); });
  const auto store = [&](int i, const float4& v, const float4& by) {
    *reinterpret_cast<uint2*>(to + i) = NormalisedBf16(v, scale, by);
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    if (first + h * kStep < n) store(first + h * kStep, held[h], weights[h]);
  }
  for (int i = first + kHeld * kStep; i < n; i += kStep) {
    store(i, load(from + i), load(weight + i));
  }
}

__global__ void SiluMulKernel(ConstMatrixView x, int64_t n, MatrixView y) {
  LetNextStart();
  WaitForPrevious();
  const int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float* row = x.data + blockIdx.x * x.stride;
  y.data[blockIdx.x * y.stride + i] = Silu(row[i]) * row[n + i];
}

__global__ void RopeKernel(
    MatrixView x, int num_heads, int half, ConstMatrixView cos, ConstMatrixView sin) {
  LetNextStart();
  WaitForPrevious();
  const float* c = cos.data + blockIdx.x * cos.stride;
  const float* s = sin.data + blockIdx.x * sin.stride;
  float* row = x.data + blockIdx.x * x.stride;
  const int step = static_cast<int>(gridDim.y * blockDim.x);
  for (int i = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x); i < num_heads * half;
       i += step) {
    const int d = i % half;
    float* at = row + (i / half) * 2 * half + d;
    const float a = at[0], b = at[half];
    at[0] = a * c[d] - b * s[d];
    at[half] = b * c[d] + a * s[d];
  }
}

// The larger of two candidates; of equal ones the lower column. A NaN beats everything: column -1.
__device__ void Larger(float value, int column, float* best, int* best_column) {
  if (*best_column == -1) return;
  const bool better = value > *best || (value == *best && column < *best_column);
  if (column != -1 && !better) return;
  *best = value;
  *best_column = column;
}

// One block per row.
__global__ void PickLargestKernel(ConstMatrixView x, int cols, int32_t* out) {
  LetNextStart();
  WaitForPrevious();
  __shared__ float values[kNormThreads / kWarp];
  __shared__ int columns[kNormThreads / kWarp];
  const float* row = x.data + blockIdx.x * x.stride;
  float best = -INFINITY;
  int column = cols;  // none yet
#pragma unroll 8
  for (int i = threadIdx.x; i < cols; i += kNormThreads) {
    const float value = row[i];
    Larger(value, isnan(value) ? -1 : i, &best, &column);
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float value = __shfl_xor_sync(0xffffffffu, best, offset);
    Larger(value, __shfl_xor_sync(0xffffffffu, column, offset), &best, &column);
  }
  if (threadIdx.x % kWarp == 0) {
    values[threadIdx.x / kWarp] = best;
    columns[threadIdx.x / kWarp] = column;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kNormThreads / kWarp; ++warp) {
    Larger(values[warp], columns[warp], &best, &column);
  }
  out[blockIdx.x] = column;
}

// Enough threads for `n` elements, in whole warps, up to `most`.
int BlockFor(int64_t n, int most = kThreads) {
  return static_cast<int>(std::clamp<int64_t>((n + kWarp - 1) / kWarp * kWarp, kWarp, most));
}

}  // namespace

cudaError_t LaunchGatherRows(const void* table,
                             DType dtype,
                             int64_t table_stride,
                             const int32_t* indices,
                             int num_rows,
                             int64_t cols,
                             MatrixView out,
                             cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  const auto launch = [&]<class T>(const T* typed) {
    return LaunchChained(GatherRowsKernel<T>, dim3(static_cast<unsigned>(num_rows)), BlockFor(cols),
                         0, stream, typed, table_stride, indices, cols, out);
  };
  switch (dtype) {
    case DType::kBf16:
      return launch(static_cast<const __nv_bfloat16*>(table));
    case DType::kF16:
      return launch(static_cast<const __half*>(table));
    case DType::kF32:
      return launch(static_cast<const float*>(table));
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t LaunchRmsNorm(ConstMatrixView x,
                          const float* weight,
                          float eps,
                          int64_t rows,
                          int groups,
                          int n,
                          MatrixView y,
                          cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(groups));
  return LaunchChained(RmsNormKernel, grid, BlockFor(n, kNormThreads), 0, stream, x, weight, eps, n,
                       y);
}

cudaError_t LaunchRmsNormToBf16(ConstMatrixView x,
                                const float* weight,
                                float eps,
                                int64_t rows,
                                int n,
                                uint16_t* y,
                                cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  if (n % 4 != 0) return cudaErrorInvalidValue;
  return LaunchChained(RmsNormToBf16Kernel, dim3(static_cast<unsigned>(rows)), kNormRowThreads, 0,
                       stream, x, weight, eps, n, y);
}

cudaError_t LaunchPickLargest(
    ConstMatrixView x, int64_t rows, int64_t cols, int32_t* out, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return LaunchChained(PickLargestKernel, dim3(static_cast<unsigned>(rows)), kNormThreads, 0,
                       stream, x, static_cast<int>(cols), out);
}

cudaError_t LaunchSiluMul(
    ConstMatrixView x, int64_t rows, int64_t n, MatrixView y, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(rows),
                  static_cast<unsigned>((n + kThreads - 1) / kThreads));
  return LaunchChained(SiluMulKernel, grid, kThreads, 0, stream, x, n, y);
}

cudaError_t LaunchRope(MatrixView x,
                       int64_t rows,
                       int num_heads,
                       int head_dim,
                       ConstMatrixView cos,
                       ConstMatrixView sin,
                       cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const int half = head_dim / 2;
  const int pairs = num_heads * half;
  const dim3 grid(static_cast<unsigned>(rows),
                  static_cast<unsigned>((pairs + kThreads - 1) / kThreads));
  return LaunchChained(RopeKernel, grid, BlockFor(pairs), 0, stream, x, num_heads, half, cos, sin);
}

}  // namespace lserve
