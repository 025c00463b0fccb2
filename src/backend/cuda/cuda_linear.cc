// Linear on the GPU: weights as stored; few rows by our own kernel at memory speed, many by cuBLAS.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/cuda_status.h"
#include "backend/cuda/matrix_views.h"
#include "base/check.h"
#include "base/strings.h"

namespace lserve {
namespace {

// Bytes of scratch for a product of `rows` rows. kBf16: x rounded to bf16. kF16: the weight as
// float, since x keeps its precision beside it (ops.h); no tensor-core path has both.
size_t ScratchBytes(DType dtype, int64_t out_features, int64_t in_features, int64_t rows) {
  switch (dtype) {
    case DType::kBf16:
      return static_cast<size_t>(rows * in_features) * sizeof(uint16_t);
    case DType::kF16:
      return rows > MaxGemvRows(dtype, in_features)
                 ? static_cast<size_t>(out_features * in_features) * sizeof(float)
                 : 0;
    default:
      return 0;
  }
}

}  // namespace

Result<LinearWeight> CudaBackend::PackLinear(std::span<const WeightPart> parts,
                                             int64_t in_features,
                                             std::span<const float> bias,
                                             WeightFormat format) {
  if (format != WeightFormat::kAsStored) {
    return Status(Code::kUnsupported,
                  "--quantization int8 or int4: this version quantises weights on the CPU only, "
                  "expected none with --device cuda; leave it out (the KV cache can be int8 or "
                  "int4: --kv-cache-dtype)");
  }
  LinearWeight weight;
  weight.dtype = parts.front().dtype;
  weight.in_features = in_features;
  for (const WeightPart& part : parts) {
    LS_CHECK(part.dtype == weight.dtype);
    weight.out_features += part.rows;
  }
  if (weight.dtype != DType::kBf16 && weight.dtype != DType::kF16 && weight.dtype != DType::kF32) {
    return Status(Code::kUnsupported,
                  StrCat("weights of dtype ", Name(weight.dtype), ", expected bf16, f16 or f32"));
  }
  const int64_t element_bytes = BitsOf(weight.dtype) / 8;
  weight.data =
      LS_TRY(Allocate(static_cast<size_t>(weight.out_features * in_features * element_bytes)));
  std::byte* to = weight.data.as<std::byte>();
  for (const WeightPart& part : parts) {
    const size_t bytes = static_cast<size_t>(part.rows * in_features * element_bytes);
    LS_TRY(CopyToDevice(to, part.data, bytes));
    to += bytes;
  }
  if (!bias.empty()) {
    LS_CHECK_EQ(bias.size(), static_cast<size_t>(weight.out_features));
    weight.bias = LS_TRY(Allocate(bias.size_bytes()));
    LS_TRY(CopyToDevice(weight.bias.data.get(), bias.data(), bias.size_bytes()));
  }
  return weight;
}

size_t CudaBackend::LinearScratchBytes(const LinearWeight& weight, int64_t rows) const {
  return ScratchBytes(weight.dtype, weight.out_features, weight.in_features, rows);
}

Status CudaBackend::Linear(const LinearParams& params) {
  LS_CHECK_EQ(params.x.cols, params.weight->in_features);
  LS_CHECK_EQ(params.y.cols, params.weight->out_features);
  if (params.x.rows == 0) return Status();
  const LinearWeight& w = *params.weight;
  if (StreamsWeight(params)) return StreamWeight({.norm = {}, .linear = params, .gate = {}});
  if (params.x.rows <= MaxGemvRows(w.dtype, w.in_features)) return MultiplyRows(params);
  return MultiplyMatrix(params);
}

bool CudaBackend::StreamsWeight(const LinearParams& params) const {
  return kernels_ == CudaKernels::kSm90 &&
         HasSm90Gemv(params.weight->dtype, params.x.rows, params.weight->in_features);
}

Status CudaBackend::FusedLinear(const FusedLinearParams& params) {
  if (params.linear.x.rows == 0) return Status();
  if (!StreamsWeight(params.linear)) return Backend::FusedLinear(params);
  if (params.norm) LS_CHECK_EQ(params.norm->groups, 1);
  return StreamWeight(params);
}

// The norm joins the product where that reads float x, and else the rounding of x.
Status CudaBackend::StreamWeight(const FusedLinearParams& params) {
  const LinearParams& linear = params.linear;
  const LinearWeight& w = *linear.weight;
  const ConstMatrixView x = View(params.norm ? params.norm->x : linear.x);
  const MatrixView y = View(params.gate ? params.gate->y : linear.y);
  const int64_t rows = linear.x.rows;
  const bool rounds = !GemvSm90RoundsX(x, rows, w.in_features);
  const float* norm = params.norm ? params.norm->weight : nullptr;
  const float eps = params.norm ? params.norm->eps : 0;
  GemvArgs args = {.x = x.data,
                   .x_dtype = DType::kF32,
                   .x_stride = x.stride,
                   .weight = w.data.data.get(),
                   .dtype = w.dtype,
                   .bias = w.bias.as<float>(),
                   .rows = static_cast<int>(rows),
                   .in_features = w.in_features,
                   .out_features = w.out_features,
                   .y = y,
                   .accumulate = linear.accumulate,
                   .norm = rounds ? nullptr : norm,
                   .eps = eps,
                   .gate = params.gate.has_value()};
  uint16_t* rounded = nullptr;
  if (rounds) {
    rounded = reinterpret_cast<uint16_t*>(
        LS_TRY(linear_scratch_.Get(LinearScratchBytes(w, rows), stream_)));
    args.x = rounded;
    args.x_dtype = DType::kBf16;
    args.x_stride = w.in_features;
  }
  if (Noted(x.data, x.stride, args.x, args.weight, rows, y.data, y.stride, args.accumulate, norm,
            eps, args.gate)) {
    return Status();
  }
  if (rounds && norm != nullptr) {
    LS_CUDA(
        LaunchRmsNormToBf16(x, norm, eps, rows, static_cast<int>(w.in_features), rounded, stream_));
  } else if (rounds) {
    LS_CUDA(LaunchRoundToBf16(x, rows, w.in_features, rounded, stream_));
  }
  LS_CUDA(LaunchGemvSm90(args, gpu_.num_multiprocessors, stream_));
  return Status();
}

Status CudaBackend::MultiplyRows(const LinearParams& params) {
  const LinearWeight& w = *params.weight;
  GemvArgs args = {.x = params.x.data,
                   .x_dtype = DType::kF32,
                   .x_stride = params.x.stride,
                   .weight = w.data.data.get(),
                   .dtype = w.dtype,
                   .bias = w.bias.as<float>(),
                   .rows = static_cast<int>(params.x.rows),
                   .in_features = w.in_features,
                   .out_features = w.out_features,
                   .y = {static_cast<float*>(params.y.data), params.y.stride},
                   .accumulate = params.accumulate};
  const ConstMatrixView x = {static_cast<const float*>(params.x.data), params.x.stride};
  const bool rounds = w.dtype == DType::kBf16 && !GemvRoundsX(x, params.x.rows, w.in_features);
  std::byte* rounded = nullptr;
  if (rounds) {
    rounded = LS_TRY(linear_scratch_.Get(LinearScratchBytes(w, params.x.rows), stream_));
    args.x = rounded;
    args.x_dtype = DType::kBf16;
    args.x_stride = w.in_features;
  }
  if (Noted(x.data, x.stride, args.x, args.weight, args.rows, args.y.data, args.y.stride,
            args.accumulate)) {
    return Status();
  }
  if (rounds) {
    LS_CUDA(LaunchRoundToBf16(x, params.x.rows, w.in_features, reinterpret_cast<uint16_t*>(rounded),
                              stream_));
  }
  LS_CUDA(LaunchGemv(args, stream_));
  return Status();
}

// cuBLAS is column-major: y^T = W x^T, with W's rows and x's rows as columns.
Status CudaBackend::MultiplyMatrix(const LinearParams& params) {
  const LinearWeight& w = *params.weight;
  const int m = static_cast<int>(w.out_features), n = static_cast<int>(params.x.rows);
  const int k = static_cast<int>(w.in_features);
  const float one = 1.0f, beta = params.accumulate ? 1.0f : 0.0f;
  float* y = static_cast<float*>(params.y.data);
  const int y_stride = static_cast<int>(params.y.stride);
  std::byte* scratch = LS_TRY(linear_scratch_.Get(LinearScratchBytes(w, params.x.rows), stream_));
  if (Noted(params.x.data, params.x.stride, scratch, w.data.data.get(), n, y, y_stride,
            params.accumulate)) {
    return Status();
  }
  if (w.dtype == DType::kBf16) {
    LS_CUDA(LaunchRoundToBf16({static_cast<const float*>(params.x.data), params.x.stride},
                              params.x.rows, w.in_features, reinterpret_cast<uint16_t*>(scratch),
                              stream_));
    LS_CUBLAS(cublasGemmEx(cublas_, CUBLAS_OP_T, CUBLAS_OP_N, m, n, k, &one, w.data.data.get(),
                           CUDA_R_16BF, k, scratch, CUDA_R_16BF, k, &beta, y, CUDA_R_32F, y_stride,
                           CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  } else {
    const void* weight = w.data.data.get();
    if (w.dtype == DType::kF16) {
      LS_CUDA(LaunchWidenF16(weight, w.out_features * w.in_features,
                             reinterpret_cast<float*>(scratch), stream_));
      weight = scratch;
    }
    LS_CUBLAS(cublasGemmEx(cublas_, CUBLAS_OP_T, CUBLAS_OP_N, m, n, k, &one, weight, CUDA_R_32F, k,
                           params.x.data, CUDA_R_32F, static_cast<int>(params.x.stride), &beta, y,
                           CUDA_R_32F, y_stride, CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_GEMM_DEFAULT));
  }
  if (w.bias.data != nullptr) {
    LS_CUDA(LaunchAddBias({y, params.y.stride}, params.y.rows, w.out_features, w.bias.as<float>(),
                          stream_));
  }
  return Status();
}

}  // namespace lserve
