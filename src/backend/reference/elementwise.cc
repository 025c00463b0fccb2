#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "backend/reference/reference_backend.h"
#include "base/check.h"
#include "base/half.h"
#include "base/strings.h"

namespace lserve {

Result<Buffer> ReferenceBackend::Allocate(size_t bytes) {
  constexpr size_t kAlignment = 64;
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* data = std::aligned_alloc(kAlignment, rounded == 0 ? kAlignment : rounded);
  if (data == nullptr) {
    return Status(Code::kOutOfMemory, StrCat("cannot allocate ", bytes, " bytes of memory"));
  }
  return Buffer{.data = std::shared_ptr<void>(data, [](void* p) { std::free(p); }), .bytes = bytes};
}

Status ReferenceBackend::CopyToDevice(void* device, const void* host, size_t bytes) {
  std::memcpy(device, host, bytes);
  return Status();
}
Status ReferenceBackend::CopyToHost(void* host, const void* device, size_t bytes) {
  std::memcpy(host, device, bytes);
  return Status();
}

Status ReferenceBackend::GatherRows(const GatherRowsParams& params) {
  for (size_t i = 0; i < params.indices.size(); ++i) {
    const int32_t index = params.indices[i];
    LS_CHECK(index >= 0 && index < params.table.rows) << "row " << index;
    float* out = params.out.row<float>(static_cast<int64_t>(i));
    for (int64_t c = 0; c < params.table.cols; ++c) {
      switch (params.table.dtype) {
        case DType::kBf16:
          out[c] = ToFloat(params.table.row<Bf16>(index)[c]);
          break;
        case DType::kF16:
          out[c] = ToFloat(params.table.row<F16>(index)[c]);
          break;
        case DType::kF32:
          out[c] = params.table.row<float>(index)[c];
          break;
        default:
          LS_CHECK(false) << Name(params.table.dtype);
      }
    }
  }
  return Status();
}

Status ReferenceBackend::RmsNorm(const RmsNormParams& params) {
  const int64_t n = params.x.cols / params.groups;
  for (int64_t r = 0; r < params.x.rows; ++r) {
    for (int64_t g = 0; g < params.groups; ++g) {
      const float* x = params.x.row<float>(r) + g * n;
      float* y = params.y.row<float>(r) + g * n;
      double squares = 0;
      for (int64_t i = 0; i < n; ++i) squares += double{x[i]} * x[i];
      const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + params.eps);
      for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[i] * scale * params.weight[i]);
    }
  }
  return Status();
}

Status ReferenceBackend::SiluMul(const SiluMulParams& params) {
  const int64_t n = params.y.cols;
  for (int64_t r = 0; r < params.x.rows; ++r) {
    const float* x = params.x.row<float>(r);
    float* y = params.y.row<float>(r);
    for (int64_t i = 0; i < n; ++i) {
      const double gate = x[i];
      y[i] = static_cast<float>(gate / (1.0 + std::exp(-gate)) * x[n + i]);
    }
  }
  return Status();
}

Status ReferenceBackend::Rope(const RopeParams& params) {
  const int64_t half = params.head_dim / 2;
  for (int64_t r = 0; r < params.x.rows; ++r) {
    const float* cos = params.cos.row<float>(r);
    const float* sin = params.sin.row<float>(r);
    for (int head = 0; head < params.num_heads; ++head) {
      float* x = params.x.row<float>(r) + int64_t{head} * params.head_dim;
      for (int64_t i = 0; i < half; ++i) {
        const double a = x[i], b = x[i + half];
        x[i] = static_cast<float>(a * cos[i] - b * sin[i]);
        x[i + half] = static_cast<float>(b * cos[i] + a * sin[i]);
      }
    }
  }
  return Status();
}

}  // namespace lserve
