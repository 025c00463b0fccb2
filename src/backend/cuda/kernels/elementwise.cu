// The ops between products: memory-bound, one pass each, float throughout.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/launch.cuh"

namespace lserve {
namespace {

constexpr int kThreads = 256;
constexpr int kNormThreads = 1024;  // a row of a decode step has one block: width hides latency
constexpr int kWarp = 32;

__device__ float ToFloat(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ float ToFloat(__half x) {
  return __half2float(x);
}
__device__ float ToFloat(float x) {
  return x;
}

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

// One block per slice of a row.
__global__ void RmsNormKernel(
    ConstMatrixView x, const float* weight, float eps, int n, MatrixView y) {
  LetNextStart();
  WaitForPrevious();
  __shared__ float shared[kNormThreads / kWarp];
  const float* from = x.data + blockIdx.x * x.stride + int64_t{blockIdx.y} * n;
  float* to = y.data + blockIdx.x * y.stride + int64_t{blockIdx.y} * n;
  float squares = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) squares += from[i] * from[i];
  const float mean = BlockSum(squares, shared) / static_cast<float>(n);
  const float scale = 1.0f / sqrtf(mean + eps);
  for (int i = threadIdx.x; i < n; i += blockDim.x) to[i] = from[i] * scale * weight[i];
}

__global__ void SiluMulKernel(ConstMatrixView x, int64_t n, MatrixView y) {
  LetNextStart();
  WaitForPrevious();
  const int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float* row = x.data + blockIdx.x * x.stride;
  const float gate = row[i];
  y.data[blockIdx.x * y.stride + i] = gate / (1.0f + expf(-gate)) * row[n + i];
}

__global__ void RopeKernel(
    MatrixView x, int num_heads, int half, ConstMatrixView cos, ConstMatrixView sin) {
  LetNextStart();
  WaitForPrevious();
  const float* c = cos.data + blockIdx.x * cos.stride;
  const float* s = sin.data + blockIdx.x * sin.stride;
  float* row = x.data + blockIdx.x * x.stride;
  for (int i = threadIdx.x; i < num_heads * half; i += blockDim.x) {
    const int d = i % half;
    float* at = row + (i / half) * 2 * half + d;
    const float a = at[0], b = at[half];
    at[0] = a * c[d] - b * s[d];
    at[half] = b * c[d] + a * s[d];
  }
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
  return LaunchChained(RopeKernel, dim3(static_cast<unsigned>(rows)),
                       BlockFor(int64_t{num_heads} * half, kNormThreads), 0, stream, x, num_heads,
                       half, cos, sin);
}

}  // namespace lserve
