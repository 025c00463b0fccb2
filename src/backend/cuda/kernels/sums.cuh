// In which order the terms of a product y = x W^T are summed, for the kernels that must agree bit
// for bit: those of few rows (linear.cu, linear_sm90.cu) and those of many (linear_tiles.cu). Used
// by these three.
//
//   A row of W is cut into turns of 128 bytes, which are dealt to S slices in turn: slice s has the
//   turns s, s + S, s + 2 S, ... A slice sums its turns in order, the slices are summed in order,
//   from zero. Within a turn lane (r, j) = (lane / 4, lane % 4) of a tensor-core tile has vectors
//   j and 4 + j of 16 bytes; codes become bf16, and elements 8 p .. + 7 of a vector are two
//   products of 16 elements of K (mma.cuh).
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/mma.cuh"
#include "backend/cuda/kernels/numbers.cuh"

namespace lserve {

inline constexpr int kGemvSlices = 8;   // of linear.cu, whose slices add products one by one
inline constexpr int kSm90Slices = 16;  // of linear_sm90.cu, which adds groups (SumGroup)
inline constexpr int kTurnChunks = 2;   // vectors of a lane and a row of W
inline constexpr int kTurnVectors = 8;  // of a row of W
inline constexpr int kVectorBytes = 16;
inline constexpr int kVector = 8;  // bf16 elements in 16 bytes
inline constexpr int kTurnBytes = kTurnVectors * kVectorBytes;

// How W lies in memory.
enum class Stored { kBf16, kInt8, kInt4 };

// Elements of W in 16 bytes.
template <Stored W>
inline constexpr int kElements = W == Stored::kBf16   ? 8
                                 : W == Stored::kInt8 ? 16
                                                      : 32;
// Vectors of x for one of W.
template <Stored W>
inline constexpr int kParts = kElements<W> / kVector;
// Vectors of a lane that are summed before they join the others (SumGroup): a quantization group,
// or a turn.
template <Stored W>
inline constexpr int kGroupChunks = W == Stored::kBf16 ? kTurnChunks
                                                       : kQuantGroup / (4 * kElements<W>);
template <Stored W>
inline constexpr int kTurnGroups = kTurnChunks / kGroupChunks<W>;
static_assert(kTurnGroups<Stored::kInt8> * kGroupChunks<Stored::kInt8> == kTurnChunks);
static_assert(kTurnGroups<Stored::kInt4> * kGroupChunks<Stored::kInt4> == kTurnChunks);

template <Stored W>
__device__ inline int64_t RowBytes(int64_t in_features) {
  return W == Stored::kBf16 ? in_features * static_cast<int64_t>(sizeof(uint16_t))
                            : WeightRowBytes(W == Stored::kInt4, in_features);
}

// Four codes of a word as bf16. 2^23 + code + 128 has the code in its last byte.
__device__ inline uint2 FourInt8(uint32_t word) {
  constexpr float kOffset = 0x1p23f + 128;
  const uint32_t codes = word ^ 0x80808080u;
  float values[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[i] = __uint_as_float(__byte_perm(codes, 0x4b000000u, 0x7440u + i)) - kOffset;
  }
  return {PackBf16(values[0], values[1]), PackBf16(values[2], values[3])};
}

// Codes 2 i and 2 i + 1 of a word. 0x4300 is 128, whose last bit stands for 1.
__device__ inline uint32_t TwoInt4(uint32_t word, int i) {
  const uint32_t bits = (word >> (4 * i) & 0x000f000fu) | 0x43004300u;
  const __nv_bfloat162 offset = __floats2bfloat162_rn(128, 128);
  const __nv_bfloat162 pair = __hsub2(reinterpret_cast<const __nv_bfloat162&>(bits), offset);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Elements 8 part .. + 7 of a vector of W, as bf16.
template <Stored W>
__device__ inline uint4 Expand(const uint4& vector, int part) {
  if constexpr (W == Stored::kBf16) {
    return vector;
  } else if constexpr (W == Stored::kInt8) {
    const uint2 low = FourInt8(part == 0 ? vector.x : vector.z);
    const uint2 high = FourInt8(part == 0 ? vector.y : vector.w);
    return {low.x, low.y, high.x, high.y};
  } else {
    const uint32_t word = part == 0   ? vector.x
                          : part == 1 ? vector.y
                          : part == 2 ? vector.z
                                      : vector.w;
    return {TwoInt4(word, 0), TwoInt4(word, 1), TwoInt4(word, 2), TwoInt4(word, 3)};
  }
}

// Two sums, so that no product waits for the one before.
__device__ inline void MultiplyEight(
    const uint4& low, const uint4& high, const uint4& x, float (&c)[4], float (&d)[4]) {
  Mma(c, low.x, high.x, low.y, high.y, x.x, x.y);
  Mma(d, low.z, high.z, low.w, high.w, x.z, x.w);
}

// Scale and minimum of a lane's two rows of W in one group.
struct GroupScale {
  float scale[2];
  float min[2];
};
template <Stored W>
__device__ inline GroupScale LoadScale(const GemvArgs& args, const int64_t (&outs)[2], int group) {
  GroupScale to;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t at = group * args.out_features + outs[half];
    if constexpr (W == Stored::kInt4) {
      const uint32_t bits = __ldg(static_cast<const uint32_t*>(args.scales) + at);
      to.scale[half] = __uint_as_float(bits << 16);
      to.min[half] = __uint_as_float(bits & 0xffff0000u);
    } else {
      to.scale[half] =
          __uint_as_float(uint32_t{__ldg(static_cast<const uint16_t*>(args.scales) + at)} << 16);
      to.min[half] = 0;
    }
  }
  return to;
}

// A group joins a slice's sum: c and d are its products with W (codes: before their scale), element
// e of a tensor-core tile; x_sum, for kInt4, the sum of x over the group.
template <Stored W>
__device__ inline float SumGroup(
    float sum, float c, float d, const GroupScale& by, int e, float x_sum) {
  const float group = c + d;
  if constexpr (W == Stored::kBf16) {
    return sum + group;
  } else {
    sum = fmaf(by.scale[e / 2], group, sum);
    if constexpr (W == Stored::kInt4) sum = fmaf(by.min[e / 2], x_sum, sum);
    return sum;
  }
}

}  // namespace lserve
