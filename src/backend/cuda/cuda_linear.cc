// Linear on the GPU: weights as stored; few rows by our own kernels at memory speed, many by cuBLAS
// or, where results must not depend on the batch (ADR 0034), by a kernel of the same sums.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/cuda_status.h"
#include "backend/cuda/matrix_views.h"
#include "backend/weight_quant.h"
#include "base/check.h"
#include "base/round_up.h"
#include "base/strings.h"

namespace lserve {
namespace {

// Rows of a quantised weight that are bf16 at a time, and of a weight to be quantised that are on
// the device at a time.
constexpr int64_t kBlockBytes = int64_t{64} << 20;

// Up to here the kernels of few rows take the rows in turns and read the weight again for each.
constexpr int64_t kMaxTurnRows = 64;

bool IsQuantised(DType dtype) {
  return dtype == DType::kInt8 || dtype == DType::kInt4;
}

int64_t RowsInBlock(int64_t row_bytes) {
  return std::max<int64_t>(1, kBlockBytes / row_bytes);
}

// The block lies behind x in scratch.
size_t BlockOffset(size_t x_bytes) {
  constexpr size_t kAlignment = 256;
  return RoundUp(x_bytes, kAlignment);
}

// Whether rows of both operands are whole vectors of 16 bytes of bf16.
bool InVectors(const GemvArgs& args) {
  constexpr int64_t kVector = 8;
  return args.dtype == DType::kBf16 && args.in_features % kVector == 0;
}

QuantizedRows RowsOf(const LinearWeight& weight, int64_t first_row, int64_t rows) {
  return {.codes = weight.data.as<std::byte>(),
          .scales = weight.scales.data.get(),
          .out_features = weight.out_features,
          .in_features = weight.in_features,
          .first_row = first_row,
          .rows = rows};
}

}  // namespace

Result<LinearWeight> CudaBackend::PackLinear(std::span<const WeightPart> parts,
                                             int64_t in_features,
                                             std::span<const float> bias,
                                             WeightFormat format) {
  if (format == WeightFormat::kW8A8) {
    return Status(
        Code::kUnsupported,
        "--quantization w8a8: quantised inputs exist on the CPU only, expected none, int8 "
        "or int4 with --device cuda");
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
  if (format == WeightFormat::kAsStored) {
    const int64_t element_bytes = BitsOf(weight.dtype) / 8;
    weight.data =
        LS_TRY(Allocate(static_cast<size_t>(weight.out_features * in_features * element_bytes)));
    std::byte* to = weight.data.as<std::byte>();
    for (const WeightPart& part : parts) {
      const size_t bytes = static_cast<size_t>(part.rows * in_features * element_bytes);
      LS_TRY(CopyToDevice(to, part.data, bytes));
      to += bytes;
    }
  } else {
    LS_TRY(Quantize(parts, format, &weight));
  }
  if (!bias.empty()) {
    LS_CHECK_EQ(bias.size(), static_cast<size_t>(weight.out_features));
    weight.bias = LS_TRY(Allocate(bias.size_bytes()));
    LS_TRY(CopyToDevice(weight.bias.data.get(), bias.data(), bias.size_bytes()));
  }
  return weight;
}

// Codes and scales of `weight`, whose sizes are set, from parts that are copied block by block.
Status CudaBackend::Quantize(std::span<const WeightPart> parts,
                             WeightFormat format,
                             LinearWeight* weight) {
  static_assert(kQuantGroup == kWeightGroup);
  const bool int4 = format == WeightFormat::kInt4;
  const DType stored = weight->dtype;
  const int64_t in = weight->in_features, groups = NumWeightGroups(in);
  const int64_t scale_bytes = int4 ? sizeof(uint32_t) : sizeof(uint16_t);
  weight->dtype = QuantizedType(format);
  weight->quantization_group = kWeightGroup;
  weight->data =
      LS_TRY(Allocate(static_cast<size_t>(weight->out_features * WeightRowBytes(int4, in))));
  weight->scales =
      LS_TRY(Allocate(static_cast<size_t>(weight->out_features * groups * scale_bytes)));
  constexpr uint64_t kNone = ~uint64_t{0};
  uint64_t not_finite = kNone;
  const Buffer flag = LS_TRY(Allocate(sizeof(not_finite)));
  LS_TRY(CopyToDevice(flag.data.get(), &not_finite, sizeof(not_finite)));
  const int64_t row_bytes = in * BitsOf(stored) / 8;
  int64_t first_row = 0;
  for (const WeightPart& part : parts) {
    for (int64_t row = 0; row < part.rows;) {
      const int64_t rows = std::min(part.rows - row, RowsInBlock(row_bytes));
      const size_t bytes = static_cast<size_t>(rows * row_bytes);
      std::byte* block = LS_TRY(linear_scratch_.Get(bytes, stream_));
      LS_TRY(
          CopyToDevice(block, static_cast<const std::byte*>(part.data) + row * row_bytes, bytes));
      QuantizedRows to = RowsOf(*weight, first_row, rows);
      to.not_finite = flag.as<unsigned long long>();
      LS_CUDA(LaunchQuantizeRows(block, stored, int4, to, stream_));
      row += rows;
      first_row += rows;
    }
  }
  LS_TRY(CopyToHost(&not_finite, flag.data.get(), sizeof(not_finite)));
  if (not_finite == kNone) return Status();
  const int64_t at = static_cast<int64_t>(not_finite);
  return NotFinite(at / groups, at % groups * kWeightGroup);
}

std::string CudaBackend::format_note(WeightFormat format) const {
  if (format == WeightFormat::kAsStored || kernels_ == CudaKernels::kSm90) return {};
  return "quantised weights save memory, not time, on this GPU: they become bf16 for every "
         "product; "
         "on Hopper decode steps read them as they are";
}

// x rounded to bf16, and beside it a block of a quantised weight as bf16. kF16: the weight as
// float, since x keeps its precision beside it (ops.h); no tensor-core path has both.
size_t CudaBackend::LinearScratchBytes(const LinearWeight& weight, int64_t rows) const {
  const size_t x_bytes = static_cast<size_t>(rows * weight.in_features) * sizeof(uint16_t);
  switch (weight.dtype) {
    case DType::kBf16:
      return x_bytes;
    case DType::kInt8:
    case DType::kInt4: {
      if (StreamsWeight(weight, rows)) return x_bytes;
      const int64_t row_bytes = weight.in_features * static_cast<int64_t>(sizeof(uint16_t));
      const int64_t block = std::min(weight.out_features, RowsInBlock(row_bytes));
      return BlockOffset(x_bytes) + static_cast<size_t>(block * row_bytes);
    }
    case DType::kF16:
      return rows > MaxGemvRows(weight.dtype, weight.in_features) && !options_.batch_invariant
                 ? static_cast<size_t>(weight.out_features * weight.in_features) * sizeof(float)
                 : 0;
    default:
      return 0;
  }
}

Status CudaBackend::Linear(const LinearParams& params) {
  LS_CHECK_EQ(params.x.cols, params.weight->in_features);
  LS_CHECK_EQ(params.y.cols, params.weight->out_features);
  if (params.x.rows == 0) return Status();
  const LinearWeight& w = *params.weight;
  if (StreamsWeight(w, params.x.rows)) {
    return StreamWeight({.norm = {}, .linear = params, .gate = {}});
  }
  if (!IsQuantised(w.dtype) && params.x.rows <= MaxGemvRows(w.dtype, w.in_features)) {
    return MultiplyRows(params);
  }
  return options_.batch_invariant ? MultiplyInTurns(params) : MultiplyMatrix(params);
}

// Codes are read again for every few rows rather than made bf16 for cuBLAS: up to 64 rows, that is
// less to move.
bool CudaBackend::StreamsWeight(const LinearWeight& weight, int64_t rows) const {
  const int64_t most = IsQuantised(weight.dtype) ? kMaxTurnRows : MaxSm90GemvRows(weight.dtype);
  return kernels_ == CudaKernels::kSm90 && (rows <= most || options_.batch_invariant) &&
         HasSm90Gemv(weight.dtype, weight.in_features);
}

Status CudaBackend::FusedLinear(const FusedLinearParams& params) {
  if (params.linear.x.rows == 0) return Status();
  if (!StreamsWeight(*params.linear.weight, params.linear.x.rows)) {
    return Backend::FusedLinear(params);
  }
  if (params.norm) LS_CHECK_EQ(params.norm->groups, 1);
  return StreamWeight(params);
}

// The norm joins the product where that reads float x, and else the rounding of x. Many rows are
// multiplied in tiles, with the same bits, and their gate is an op of its own.
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
                   .scales = w.scales.data.get(),
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
  if (Noted(x.data, x.stride, args.x, args.weight, rows, y.data, y.stride, linear.y.data,
            linear.y.stride, args.accumulate, norm, eps, args.gate)) {
    return Status();
  }
  if (rounds && norm != nullptr) {
    LS_CUDA(
        LaunchRmsNormToBf16(x, norm, eps, rows, static_cast<int>(w.in_features), rounded, stream_));
  } else if (rounds) {
    LS_CUDA(LaunchRoundToBf16(x, rows, w.in_features, rounded, stream_));
  }
  if (rows > kMaxTurnRows) {
    LS_CHECK(rounds);
    args.gate = false;
    args.y = View(linear.y);
    LS_CUDA(LaunchTiles(args, SumsOf::kGemvSm90, {}, stream_));
    if (params.gate) {
      LS_CUDA(LaunchSiluMul(View(params.gate->x), rows, params.gate->y.cols, y, stream_));
    }
    return Status();
  }
  const int64_t most = MaxSm90GemvRows(w.dtype);
  for (int64_t first = 0; first < rows; first += most) {
    GemvArgs turn = args;
    turn.rows = static_cast<int>(std::min(most, rows - first));
    turn.y.data += first * y.stride;
    if (rounds) turn.x = rounded + first * w.in_features;
    LS_CHECK(rounds || first == 0);
    LS_CUDA(LaunchGemvSm90(turn, gpu_.num_multiprocessors, stream_));
  }
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

// Any number of rows with the sums of MultiplyRows(): bf16 in tiles, other types a few rows at a
// time; a quantised weight is bf16 for a while, as in MultiplyMatrix().
Status CudaBackend::MultiplyInTurns(const LinearParams& params) {
  const LinearWeight& w = *params.weight;
  const bool quantised = IsQuantised(w.dtype), rounds = quantised || w.dtype == DType::kBf16;
  const ConstMatrixView x = View(params.x);
  const MatrixView y = View(params.y);
  std::byte* scratch = LS_TRY(linear_scratch_.Get(LinearScratchBytes(w, params.x.rows), stream_));
  if (Noted(x.data, x.stride, scratch, w.data.data.get(), params.x.rows, y.data, y.stride,
            params.accumulate)) {
    return Status();
  }
  GemvArgs args = {.x = x.data,
                   .x_dtype = DType::kF32,
                   .x_stride = x.stride,
                   .weight = w.data.data.get(),
                   .dtype = quantised ? DType::kBf16 : w.dtype,
                   .bias = w.bias.as<float>(),
                   .rows = static_cast<int>(params.x.rows),
                   .in_features = w.in_features,
                   .out_features = w.out_features,
                   .y = y,
                   .accumulate = params.accumulate};
  if (rounds) {
    LS_CUDA(LaunchRoundToBf16(x, params.x.rows, w.in_features, reinterpret_cast<uint16_t*>(scratch),
                              stream_));
    args.x = scratch;
    args.x_dtype = DType::kBf16;
    args.x_stride = w.in_features;
  }
  if (!quantised) return LaunchTurns(args);
  const size_t x_bytes = static_cast<size_t>(params.x.rows * w.in_features) * sizeof(uint16_t);
  std::byte* block = scratch + BlockOffset(x_bytes);
  const int64_t block_rows = RowsInBlock(w.in_features * static_cast<int64_t>(sizeof(uint16_t)));
  for (int64_t row = 0; row < w.out_features; row += block_rows) {
    const QuantizedRows rows = RowsOf(w, row, std::min(block_rows, w.out_features - row));
    LS_CUDA(LaunchDequantizeRows(rows, w.dtype == DType::kInt4, reinterpret_cast<uint16_t*>(block),
                                 stream_));
    GemvArgs part = args;
    part.weight = block;
    part.out_features = rows.rows;
    part.y.data += row;
    if (args.bias != nullptr) part.bias += row;
    LS_TRY(LaunchTurns(part));
  }
  return Status();
}

Status CudaBackend::LaunchTurns(const GemvArgs& args) {
  const int most = MaxGemvRows(args.dtype, args.in_features);
  if (args.rows > most && InVectors(args)) {
    LS_CUDA(LaunchTiles(args, SumsOf::kGemv, {}, stream_));
    return Status();
  }
  const int64_t row_bytes = args.x_stride * BitsOf(args.x_dtype) / 8;
  for (int first = 0; first < args.rows; first += most) {
    GemvArgs turn = args;
    turn.rows = std::min(most, args.rows - first);
    turn.x = static_cast<const std::byte*>(args.x) + first * row_bytes;
    turn.y.data += first * args.y.stride;
    LS_CUDA(LaunchGemv(turn, stream_));
  }
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
  if (IsQuantised(w.dtype)) {
    LS_CUDA(LaunchRoundToBf16({static_cast<const float*>(params.x.data), params.x.stride},
                              params.x.rows, w.in_features, reinterpret_cast<uint16_t*>(scratch),
                              stream_));
    const size_t x_bytes = static_cast<size_t>(params.x.rows * w.in_features) * sizeof(uint16_t);
    std::byte* block = scratch + BlockOffset(x_bytes);
    const int64_t block_rows = RowsInBlock(w.in_features * static_cast<int64_t>(sizeof(uint16_t)));
    for (int64_t row = 0; row < w.out_features; row += block_rows) {
      const QuantizedRows rows = RowsOf(w, row, std::min(block_rows, w.out_features - row));
      LS_CUDA(LaunchDequantizeRows(rows, w.dtype == DType::kInt4,
                                   reinterpret_cast<uint16_t*>(block), stream_));
      LS_CUBLAS(cublasGemmEx(cublas_, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(rows.rows), n, k,
                             &one, block, CUDA_R_16BF, k, scratch, CUDA_R_16BF, k, &beta, y + row,
                             CUDA_R_32F, y_stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    }
  } else if (w.dtype == DType::kBf16) {
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
