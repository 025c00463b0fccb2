// Register tiles of Linear over weights as they are stored, and the vectors that all kernels of
// this folder's linear_*-inl.h use. See linear_kernels-inl.h.
#include <hwy/highway.h>

#include "backend/cpu/linear_kernels.h"

namespace lserve {
namespace LS_ISA {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::Rebind<uint32_t, F32>;
using I32 = hn::Rebind<int32_t, F32>;
using F16 = hn::Rebind<hwy::float16_t, F32>;
using Vec = hn::Vec<F32>;

constexpr int kLanes = HWY_LANES(float);
static_assert(kPanelCols % kLanes == 0);

// ---- whole vectors and tails --------------------------------------------------------------------

// A vector that exists as a whole, or only its first `n` lanes. Two types, since a masked store is
// several times slower than a plain one on some processors with AVX2.
struct Whole {};
struct Front {
  int64_t n;
};
HWY_INLINE int64_t NumLanes(Whole) {
  return kLanes;
}
HWY_INLINE int64_t NumLanes(Front f) {
  return f.n;
}
HWY_INLINE Vec Load(Whole, const float* p) {
  return hn::LoadU(F32(), p);
}
HWY_INLINE Vec Load(Front f, const float* p) {
  return hn::MaskedLoad(hn::FirstN(F32(), static_cast<size_t>(f.n)), F32(), p);
}
HWY_INLINE void Store(Whole, Vec v, float* p) {
  hn::StoreU(v, F32(), p);
}
HWY_INLINE void Store(Front f, Vec v, float* p) {
  hn::BlendedStore(v, hn::FirstN(F32(), static_cast<size_t>(f.n)), F32(), p);
}

// Calls f(i, part) for the vectors of elements [i, i + kLanes) of n.
template <class F>
HWY_INLINE void ForVectors(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, Whole());
  if (i < n) f(i, Front{n - i});
}

// ---- weights -----------------------------------------------------------------------------------

// How one step of a panel becomes vectors of floats: kPerStep K elements per step, of which `part`
// names one; `row` is the step's first column.
struct PanelF32 {
  static constexpr int kPerStep = 1;
  static constexpr int kStepBytes = kPanelCols * 4;
  static HWY_INLINE Vec Load(const char* row, int col, int /*part*/) {
    return hn::Load(F32(), reinterpret_cast<const float*>(row) + col);
  }
};

// Exact, and infinities and NaN stay what they are.
HWY_INLINE Vec WidenF16(const uint16_t* x) {
#if HWY_TARGET == HWY_SCALAR  // whose PromoteTo takes infinity for 65536
  // A half's exponent and mantissa, read as a float, are its value times 2^-112.
  const uint32_t magnitude = static_cast<uint32_t>(*x & 0x7fff) << 13;
  const Vec scaled =
      hn::Mul(hn::BitCast(F32(), hn::Set(U32(), magnitude)), hn::Set(F32(), 0x1p112f));
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0;
  const uint32_t sign = static_cast<uint32_t>(*x & 0x8000) << 16;
  return hn::BitCast(F32(), hn::Or(hn::BitCast(U32(), scaled), hn::Set(U32(), special | sign)));
#else
  return hn::PromoteTo(F32(), hn::LoadU(F16(), reinterpret_cast<const hwy::float16_t*>(x)));
#endif
}

struct PanelF16 {
  static constexpr int kPerStep = 1;
  static constexpr int kStepBytes = kPanelCols * 2;
  static HWY_INLINE Vec Load(const char* row, int col, int /*part*/) {
    return WidenF16(reinterpret_cast<const uint16_t*>(row) + col);
  }
};

// A bf16 is the upper half of a float: the even element of a pair is shifted up, the odd one
// masked.
struct PanelBf16 {
  static constexpr int kPerStep = 2;
  static constexpr int kStepBytes = kPanelCols * 4;
  static HWY_INLINE Vec Load(const char* row, int col, int part) {
    const auto pair = hn::Load(U32(), reinterpret_cast<const uint32_t*>(row) + col);
    // The mask would occupy one of AVX2's 16 registers, which two shifts do not.
    const auto odd = kLanes == 16 ? hn::And(pair, hn::Set(U32(), 0xffff0000u))
                                  : hn::ShiftLeft<16>(hn::ShiftRight<16>(pair));
    const auto bits = part == 0 ? hn::ShiftLeft<16>(pair) : odd;
    return hn::BitCast(F32(), bits);
  }
};

// The two codes of a column are neighbouring bytes.
struct PanelInt8 {
  static constexpr int kPerStep = 2;
  static constexpr int kStepBytes = kPanelCols * 2;
  static HWY_INLINE Vec Load(const char* row, int col, int part) {
    const hn::Rebind<int16_t, F32> d16;
    const auto pairs =
        hn::PromoteTo(I32(), hn::LoadU(d16, reinterpret_cast<const int16_t*>(row) + col));
    const auto odd = hn::ShiftRight<8>(pairs);
    const auto even = hn::ShiftRight<24>(hn::ShiftLeft<24>(pairs));
    return hn::ConvertTo(F32(), part == 0 ? even : odd);
  }
};

// Bits [4 v, 4 v + 4) of 32-bit element i, and those 16 above them, are the pair of column
// 16 v + i.
struct PanelInt4 {
  static constexpr int kPerStep = 2;
  static constexpr int kStepBytes = kPanelCols;
  static HWY_INLINE Vec Load(const char* row, int col, int part) {
    const auto words = hn::LoadU(U32(), reinterpret_cast<const uint32_t*>(row) + col % 16);
    const auto shifted = hn::ShiftRightSame(words, col / 16 * 4 + part * 16);
#if defined(__AVX512F__)
    // Reads the low 4 bits of an index, so that the others need not be cleared.
    return Vec{_mm512_permutexvar_ps(shifted.raw, _mm512_load_ps(kInt4Values))};
#else
    return hn::ConvertTo(F32(), hn::BitCast(I32(), hn::And(shifted, hn::Set(U32(), 15))));
#endif
  }
#if defined(__AVX512F__)
  alignas(64) static constexpr float kInt4Values[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                        8, 9, 10, 11, 12, 13, 14, 15};
#endif
};

// ---- tiles -------------------------------------------------------------------------------------

// The accumulators of kRows x kVecs vectors, from column `col` of a tile on.
template <int kRows, int kVecs>
HWY_INLINE void LoadPartial(const LinearTile& t, int col, Vec (&acc)[kRows][kVecs]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      acc[r][v] = t.partial_in == nullptr
                      ? hn::Zero(F32())
                      : hn::LoadU(F32(), t.partial_in + r * kPanelCols + col + v * kLanes);
    }
  }
}

// y = (y +) (sum (+ bias)), in this order everywhere.
template <class Part>
HWY_INLINE void StoreVector(const LinearTile& t, Part part, Vec sum, int row, int col) {
  float* y = t.y + row * t.y_stride + col;
  if (t.bias != nullptr) sum = hn::Add(sum, Load(part, t.bias + col));
  if (t.accumulate) sum = hn::Add(Load(part, y), sum);
  Store(part, sum, y);
}

// The columns from `col` on that exist.
HWY_INLINE void StoreInY(const LinearTile& t, Vec sum, int row, int col) {
  if (col + kLanes <= t.cols) {
    StoreVector(t, Whole(), sum, row, col);
  } else if (col < t.cols) {
    StoreVector(t, Front{t.cols - col}, sum, row, col);
  }
}

template <int kRows, int kVecs>
HWY_INLINE void StoreResult(const LinearTile& t, int col, const Vec (&acc)[kRows][kVecs]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const int c = col + v * kLanes;
      if (t.partial_out != nullptr) {
        hn::StoreU(acc[r][v], F32(), t.partial_out + r * kPanelCols + c);
      } else {
        StoreInY(t, acc[r][v], r, c);
      }
    }
  }
}

// Vectors per row of a register tile: kRows x kVecs accumulators, kVecs weights and one x in 32
// registers (AVX-512) or 16.
constexpr int VecsOf(int rows) {
  if (kLanes == 16) return 4;
  return rows == 1 ? 8 : rows == 2 ? 4 : 2;
}

// acc += x W^T of `steps` steps, one fused multiply-add per element and K in the order of K.
template <class Panel, int kRows, int kVecs>
HWY_INLINE void AddFloatSteps(const LinearTile& t,
                              const char* w,
                              const float* x,
                              int64_t steps,
                              int col,
                              Vec (&acc)[kRows][kVecs]) {
  const int64_t x_stride = t.x_stride / 4;
  for (int64_t s = 0; s < steps; ++s) {
    // The first of several passes over the panel fetches the lines of the others too: the
    // hardware sees only every fourth line.
    if (kLanes < 16 && col == 0 && kVecs * kLanes < kPanelCols) {
#pragma GCC unroll 4
      for (int line = 0; line < Panel::kStepBytes; line += 64) {
        __builtin_prefetch(w + 16 * Panel::kStepBytes + line);
      }
    }
#pragma GCC unroll 2
    for (int part = 0; part < Panel::kPerStep; ++part) {
      // The second part loads its weights again: with 16 registers, keeping the pairs would spill
      // accumulators.
      if (kLanes < 16) __asm__ volatile("" ::: "memory");
      Vec b[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) b[v] = Panel::Load(w, col + v * kLanes, part);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec a = hn::Set(F32(), x[r * x_stride + part]);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::MulAdd(a, b[v], acc[r][v]);
      }
    }
    w += Panel::kStepBytes;
    x += Panel::kPerStep;
  }
}

template <class Panel, int kRows>
void FloatTile(const LinearTile& t) {
  constexpr int kVecs = VecsOf(kRows);
  for (int col = 0; col < kPanelCols; col += kVecs * kLanes) {
    Vec acc[kRows][kVecs];
    LoadPartial<kRows, kVecs>(t, col, acc);
    AddFloatSteps<Panel, kRows, kVecs>(t, static_cast<const char*>(t.panel),
                                       static_cast<const float*>(t.x), t.steps, col, acc);
    StoreResult<kRows, kVecs>(t, col, acc);
  }
}

#if defined(__AVX512BF16__)
// Two products per lane and instruction; x holds pairs of bf16 like the weights.
template <int kRows>
void Bf16DotTile(const LinearTile& t) {
  static_assert(kLanes == 16);
  constexpr int kVecs = 4;
  Vec acc[kRows][kVecs];
  LoadPartial<kRows, kVecs>(t, 0, acc);
  const char* w = static_cast<const char*>(t.panel);
  const char* x = static_cast<const char*>(t.x);
  // Without a hint, x is as good an address as any: always prefetching costs less than a branch.
  const char* prefetch = t.prefetch == nullptr ? x : t.prefetch;
  const int64_t prefetch_step = t.prefetch_step;
  for (int64_t s = 0; s < t.steps; ++s) {
    __m512bh b[kVecs];
    _mm_prefetch(prefetch, _MM_HINT_T1);
    _mm_prefetch(prefetch + 64, _MM_HINT_T1);
    prefetch += prefetch_step;
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      b[v] = reinterpret_cast<__m512bh>(_mm512_load_si512(w + v * 64));
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int pair;
      __builtin_memcpy(&pair, x + r * t.x_stride, sizeof(pair));
      const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) acc[r][v].raw = _mm512_dpbf16_ps(acc[r][v].raw, a, b[v]);
    }
    w += PanelBf16::kStepBytes;
    x += 4;
  }
  StoreResult<kRows, kVecs>(t, 0, acc);
}
#endif

}  // namespace LS_ISA
}  // namespace lserve
