#include "backend/weight_quant.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "base/strings.h"

namespace lserve {
namespace {

constexpr float kSmallestScale = 0x1p-120f;

// The nearest bf16 that is not on the other side of x: away from zero, or towards it.
Bf16 AwayFromZero(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return Bf16{static_cast<uint16_t>((bits >> 16) + ((bits & 0xffffu) != 0 ? 1 : 0))};
}
Bf16 Down(float x) {
  return x < 0 ? AwayFromZero(x) : Bf16{static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16)};
}

// A vector of every x86-64 and ARM: GCC 12 leaves the loop below scalar when it is spelled out.
using Floats = float __attribute__((vector_size(16)));
constexpr int kLanes = 4;
constexpr int kChains = 4;  // hide the latency of a comparison and a choice

Floats LoadFloats(const float* from) {
  Floats v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

struct Range {
  float low = 0;
  float high = 0;
  bool finite = true;
};

// Of kWeightGroup values.
Range RangeOf(const float* w) {
  Floats low[kChains], high[kChains], zero[kChains] = {};
  for (int c = 0; c < kChains; ++c) low[c] = high[c] = LoadFloats(w + int64_t{c} * kLanes);
  for (int k = 0; k < kWeightGroup; k += kChains * kLanes) {
    for (int c = 0; c < kChains; ++c) {
      const Floats v = LoadFloats(w + k + int64_t{c} * kLanes);
      low[c] = v < low[c] ? v : low[c];
      high[c] = v > high[c] ? v : high[c];
      zero[c] += v * 0.0f;  // NaN for NaN and infinity
    }
  }
  Range range{low[0][0], high[0][0], true};
  for (int c = 0; c < kChains; ++c) {
    for (int i = 0; i < kLanes; ++i) {
      range.low = low[c][i] < range.low ? low[c][i] : range.low;
      range.high = high[c][i] > range.high ? high[c][i] : range.high;
      range.finite &= zero[c][i] == 0.0f;
    }
  }
  return range;
}

}  // namespace

bool QuantizeWeightGroup(
    WeightFormat format, const float* w, int count, WeightScale* scale, uint8_t* codes) {
  LS_DCHECK(count > 0 && count <= kWeightGroup);
  float padded[kWeightGroup];
  if (count < kWeightGroup) {
    std::copy_n(w, count, padded);
    std::fill(padded + count, padded + kWeightGroup, w[count - 1]);
    w = padded;
  }
  const Range range = RangeOf(w);
  *scale = {};
  float step = 0;
  float min = 0;
  if (format != WeightFormat::kInt4) {
    LS_DCHECK(format != WeightFormat::kAsStored);
    step = std::fmax(-range.low, range.high) / 127.0f;
  } else {
    scale->min = Down(range.low);
    min = ToFloat(scale->min);
    step = (range.high - min) / 15.0f;
  }
  if (step < kSmallestScale) step = 0;
  scale->scale = AwayFromZero(step);
  step = ToFloat(scale->scale);
  if (!range.finite || !std::isfinite(step) || !std::isfinite(min)) return false;
  const float inverse = step == 0 ? 0.0f : 1.0f / step;
  // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits.
  constexpr float kRound = 0x1.8p23f;
  const auto quantize = [&](int end, uint8_t* to) {
    for (int i = 0; i < end; ++i) {
      to[i] = static_cast<uint8_t>(std::bit_cast<uint32_t>((w[i] - min) * inverse + kRound));
    }
  };
  // The compiler makes vectors of a loop with a known end.
  if (count == kWeightGroup) {
    quantize(kWeightGroup, codes);
  } else {
    quantize(count, codes);
  }
  return true;
}

float QuantizeInputGroup(const float* x, int count, int8_t* codes) {
  LS_DCHECK(count > 0 && count <= kWeightGroup);
  uint32_t largest_bits = 0;  // magnitudes compare like their bits
  for (int i = 0; i < count; ++i) {
    largest_bits = std::max(largest_bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  }
  const float largest = std::bit_cast<float>(largest_bits);
  std::memset(codes, 0, static_cast<size_t>(count));
  if (!std::isfinite(largest)) return std::numeric_limits<float>::quiet_NaN();
  if (largest < 0x1p-100f) return 0;
  const float inverse = 127.0f / largest;
  for (int i = 0; i < count; ++i) codes[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
  return largest / 127.0f;
}

void WidenWeights(const void* row, DType dtype, int64_t first, int count, float* out) {
  const char* bytes = static_cast<const char*>(row) + first * (BitsOf(dtype) / 8);
  const size_t size = static_cast<size_t>(count);
  if (dtype == DType::kF32) {
    std::memcpy(out, bytes, size * sizeof(float));
    return;
  }
  LS_DCHECK(count <= kWeightGroup);
  uint16_t halves[kWeightGroup];
  std::memcpy(halves, bytes, size * sizeof(uint16_t));
  if (dtype == DType::kBf16) {
    for (int i = 0; i < count; ++i) out[i] = ToFloat(Bf16{halves[i]});
  } else {
    for (int i = 0; i < count; ++i) out[i] = ToFloat(F16{halves[i]});
  }
}

Status NotFinite(int64_t row, int64_t first_column) {
  return Status(Code::kCorruptModel,
                StrCat("weight to be quantised: row ", row,
                       " has a NaN, an infinity or a value "
                       "beyond bf16 among columns ",
                       first_column, " to ", first_column + kWeightGroup - 1,
                       ", expected finite numbers; run it with --quantization none"));
}

DType QuantizedType(WeightFormat format) {
  LS_CHECK(format != WeightFormat::kAsStored);
  return format == WeightFormat::kInt4 ? DType::kInt4 : DType::kInt8;
}

}  // namespace lserve
