// Quantization of weights (ADR 0011) and of the inputs of a Linear (ADR 0021), shared by every host
// backend so that all of them hold the same codes: how one group becomes codes, a scale and a
// minimum. Where the codes lie is each backend's own business. Used by PackLinear and Linear.
#pragma once

#include <cstdint>

#include "backend/ops.h"
#include "base/half.h"
#include "base/status.h"

namespace lserve {

// In features that share a scale. The last group of a row may be smaller.
inline constexpr int kWeightGroup = 128;

constexpr int64_t NumWeightGroups(int64_t in_features) {
  return (in_features + kWeightGroup - 1) / kWeightGroup;
}

// w ~ scale * q for kInt8, q in [-127, 127]; w ~ min + scale * u for kInt4, u in [0, 15].
//
// Both numbers are bf16: the exponents of float, and half of f32's bytes (an int4 weight has 4.25
// bits per element, an int8 one 8.125). Rounding them costs no accuracy beyond a grid that is
// wider by at most 2^-7, since `scale` is rounded up, `min` down, and the codes chosen after that:
// |w - dequantised w| <= scale * (1/2 + 2^-15), where 2^-15 covers the float arithmetic of
// choosing a code: 3 roundings of 2^-24 of at most 127. A scale below 2^-120 becomes 0, whose
// inverse would not be a float: then the error is at most 127 * 2^-120.
struct WeightScale {
  Bf16 scale;
  Bf16 min;
};

// codes[0, count): two's complement for kInt8 and kW8A8. False if a value is not finite.
// REQUIRES: 0 < count <= kWeightGroup, format is not kAsStored.
bool QuantizeWeightGroup(
    WeightFormat format, const float* w, int count, WeightScale* scale, uint8_t* codes);

// x ~ scale * c, c in [-127, 127], for one group of one row of the input of a Linear: scale is
// max |x| / 127 and c the nearest integer, ties to even, to x * (127 / max |x|), each operation
// rounded to float. Every backend repeats exactly these, so that codes are equal, not near. A group
// whose max |x| is below 2^-100 is zeros; one with a NaN or an infinity has the scale NaN, which
// spoils the row as it would unquantised. Returns the scale. REQUIRES: 0 < count <= kWeightGroup
float QuantizeInputGroup(const float* x, int count, int8_t* codes);

// out[i] = element `first` + i of a row of some stored type (kBf16, kF16, kF32), i < count. The
// row's alignment may be that of a byte.
void WidenWeights(const void* row, DType dtype, int64_t first, int count, float* out);

// The error of a weight that holds a NaN or an infinity.
Status NotFinite(int64_t row, int64_t first_column);

// kInt8 or kInt4. REQUIRES: not kAsStored.
DType QuantizedType(WeightFormat format);

}  // namespace lserve
