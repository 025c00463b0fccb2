#include <cstring>

#include "backend/reference/reference_backend.h"
#include "base/check.h"
#include "base/half.h"
#include "base/strings.h"

namespace lserve {
namespace {

double WeightAt(const LinearWeight& w, int64_t index) {
  switch (w.dtype) {
    case DType::kBf16:
      return ToFloat(w.data.as<Bf16>()[index]);
    case DType::kF16:
      return ToFloat(w.data.as<F16>()[index]);
    case DType::kF32:
      return w.data.as<float>()[index];
    default:
      LS_CHECK(false) << Name(w.dtype);
  }
  return 0;
}

}  // namespace

Result<LinearWeight> ReferenceBackend::PackLinear(std::span<const WeightPart> parts,
                                                  int64_t in_features,
                                                  std::span<const float> bias) {
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
  // [out_features, in_features], as in the file.
  const size_t element_bytes = static_cast<size_t>(BitsOf(weight.dtype) / 8);
  const size_t row_bytes = static_cast<size_t>(in_features) * element_bytes;
  weight.data = LS_TRY(Allocate(row_bytes * static_cast<size_t>(weight.out_features)));
  std::byte* to = weight.data.as<std::byte>();
  for (const WeightPart& part : parts) {
    std::memcpy(to, part.data, row_bytes * static_cast<size_t>(part.rows));
    to += row_bytes * static_cast<size_t>(part.rows);
  }
  if (!bias.empty()) {
    LS_CHECK_EQ(bias.size(), static_cast<size_t>(weight.out_features));
    weight.bias = LS_TRY(Allocate(bias.size_bytes()));
    std::memcpy(weight.bias.data.get(), bias.data(), bias.size_bytes());
  }
  return weight;
}

Status ReferenceBackend::Linear(const LinearParams& params) {
  const LinearWeight& w = *params.weight;
  LS_CHECK_EQ(params.x.cols, w.in_features);
  LS_CHECK_EQ(params.y.cols, w.out_features);
  for (int64_t r = 0; r < params.x.rows; ++r) {
    const float* x = params.x.row<float>(r);
    float* y = params.y.row<float>(r);
    for (int64_t o = 0; o < w.out_features; ++o) {
      double sum = w.bias.data != nullptr ? w.bias.as<float>()[o] : 0.0;
      for (int64_t i = 0; i < w.in_features; ++i) {
        const float input = w.dtype == DType::kBf16 ? ToFloat(ToBf16(x[i])) : x[i];
        sum += double{input} * WeightAt(w, o * w.in_features + i);
      }
      y[o] = static_cast<float>(params.accumulate ? y[o] + sum : sum);
    }
  }
  return Status();
}

}  // namespace lserve
