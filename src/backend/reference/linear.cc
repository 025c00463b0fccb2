#include <algorithm>
#include <cstring>
#include <vector>

#include "backend/reference/reference_backend.h"
#include "backend/weight_quant.h"
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
    case DType::kInt8:
    case DType::kInt4: {  // one code per byte
      const int64_t row = index / w.in_features, group = index % w.in_features / kWeightGroup;
      const int64_t at = row * NumWeightGroups(w.in_features) + group;
      const uint8_t code = w.data.as<uint8_t>()[index];
      const double scale = ToFloat(w.scales.as<Bf16>()[at]);
      if (w.dtype == DType::kInt8) return scale * static_cast<int8_t>(code);
      return ToFloat(w.zeros.as<Bf16>()[at]) + scale * code;
    }
    default:
      LS_CHECK(false) << Name(w.dtype);
  }
  return 0;
}

// Rows of codes, a byte each, and rows of scales and minima, one per quantization group.
Status Quantize(std::span<const WeightPart> parts, WeightFormat format, LinearWeight& weight) {
  const int64_t groups = NumWeightGroups(weight.in_features);
  int64_t row = 0;
  for (const WeightPart& part : parts) {
    const int64_t row_bytes = weight.in_features * BitsOf(part.dtype) / 8;
    for (int64_t r = 0; r < part.rows; ++r, ++row) {
      const std::byte* values = static_cast<const std::byte*>(part.data) + r * row_bytes;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * kWeightGroup;
        const int count =
            static_cast<int>(std::min<int64_t>(kWeightGroup, weight.in_features - first));
        float w[kWeightGroup];
        WidenWeights(values, part.dtype, first, count, w);
        WeightScale scale;
        if (!QuantizeWeightGroup(format, w, count, &scale,
                                 weight.data.as<uint8_t>() + row * weight.in_features + first)) {
          return NotFinite(row, first);
        }
        weight.scales.as<Bf16>()[row * groups + g] = scale.scale;
        weight.zeros.as<Bf16>()[row * groups + g] = scale.min;
      }
    }
  }
  return Status();
}

// What a Linear with this weight sees of one row.
void RoundInput(const LinearWeight& w, const float* x, double* rounded) {
  if (!w.quantizes_input) {
    const bool to_bf16 = w.dtype != DType::kF16 && w.dtype != DType::kF32;
    for (int64_t i = 0; i < w.in_features; ++i) rounded[i] = to_bf16 ? ToFloat(ToBf16(x[i])) : x[i];
    return;
  }
  for (int64_t first = 0; first < w.in_features; first += kWeightGroup) {
    const int count = static_cast<int>(std::min<int64_t>(kWeightGroup, w.in_features - first));
    int8_t codes[kWeightGroup];
    const double scale = QuantizeInputGroup(x + first, count, codes);
    for (int i = 0; i < count; ++i) rounded[first + i] = scale * codes[i];
  }
}

}  // namespace

Result<LinearWeight> ReferenceBackend::PackLinear(std::span<const WeightPart> parts,
                                                  int64_t in_features,
                                                  std::span<const float> bias,
                                                  WeightFormat format) {
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
  const int64_t elements = weight.out_features * in_features;
  if (format == WeightFormat::kAsStored) {
    // [out_features, in_features], as in the file.
    const int64_t element_bytes = BitsOf(weight.dtype) / 8;
    weight.data = LS_TRY(Allocate(static_cast<size_t>(elements * element_bytes)));
    std::byte* to = weight.data.as<std::byte>();
    for (const WeightPart& part : parts) {
      const size_t part_bytes = static_cast<size_t>(part.rows * in_features * element_bytes);
      std::memcpy(to, part.data, part_bytes);
      to += part_bytes;
    }
  } else {
    const int64_t groups = weight.out_features * NumWeightGroups(in_features);
    weight.dtype = QuantizedType(format);
    weight.quantization_group = kWeightGroup;
    weight.quantizes_input = format == WeightFormat::kW8A8;
    weight.data = LS_TRY(Allocate(static_cast<size_t>(elements)));
    weight.scales = LS_TRY(Allocate(static_cast<size_t>(groups) * sizeof(Bf16)));
    weight.zeros = LS_TRY(Allocate(static_cast<size_t>(groups) * sizeof(Bf16)));
    LS_TRY(Quantize(parts, format, weight));
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
  std::vector<double> x(static_cast<size_t>(w.in_features));
  for (int64_t r = 0; r < params.x.rows; ++r) {
    RoundInput(w, params.x.row<float>(r), x.data());
    float* y = params.y.row<float>(r);
    for (int64_t o = 0; o < w.out_features; ++o) {
      double sum = w.bias.data != nullptr ? w.bias.as<float>()[o] : 0.0;
      for (int64_t i = 0; i < w.in_features; ++i) {
        sum += x[static_cast<size_t>(i)] * WeightAt(w, o * w.in_features + i);
      }
      y[o] = static_cast<float>(params.accumulate ? y[o] + sum : sum);
    }
  }
  return Status();
}

}  // namespace lserve
