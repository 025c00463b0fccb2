// The kernels of linear_kernels.h, written once over Highway's vectors and compiled once per
// instruction set: linear_<isa>.cc includes this file after defining LS_ISA, the namespace that
// keeps the copies apart. Only raw pointers, no std:: (see linear_kernels.h).
#include <hwy/highway.h>

#include "backend/cpu/linear_kernels.h"

namespace lserve {
namespace LS_ISA {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::Rebind<uint32_t, F32>;
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

template <int kRows, int kVecs>
HWY_INLINE void StoreResult(const LinearTile& t, int col, const Vec (&acc)[kRows][kVecs]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const int c = col + v * kLanes;
      if (t.partial_out != nullptr) {
        hn::StoreU(acc[r][v], F32(), t.partial_out + r * kPanelCols + c);
      } else if (c + kLanes <= t.cols) {
        StoreVector(t, Whole(), acc[r][v], r, c);
      } else if (c < t.cols) {
        StoreVector(t, Front{t.cols - c}, acc[r][v], r, c);
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

template <class Panel, int kRows>
void FloatTile(const LinearTile& t) {
  constexpr int kVecs = VecsOf(kRows);
  for (int col = 0; col < kPanelCols; col += kVecs * kLanes) {
    Vec acc[kRows][kVecs];
    LoadPartial<kRows, kVecs>(t, col, acc);
    const char* w = static_cast<const char*>(t.panel);
    const float* x = static_cast<const float*>(t.x);
    const int64_t x_stride = t.x_stride / 4;
    for (int64_t s = 0; s < t.steps; ++s) {
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

template <int kRows>
void TileOfRows(WeightKind kind, const LinearTile& t) {
  switch (kind) {
    case WeightKind::kBf16:
#if defined(__AVX512BF16__)
      return Bf16DotTile<kRows>(t);
#else
      return FloatTile<PanelBf16, kRows>(t);
#endif
    case WeightKind::kF16:
      return FloatTile<PanelF16, kRows>(t);
    case WeightKind::kF32:
      return FloatTile<PanelF32, kRows>(t);
  }
}

void Tile(WeightKind kind, const LinearTile& t) {
  static_assert(kMaxTileRows == 6);
  switch (t.rows) {
    case 1:
      return TileOfRows<1>(kind, t);
    case 2:
      return TileOfRows<2>(kind, t);
    case 3:
      return TileOfRows<3>(kind, t);
    case 4:
      return TileOfRows<4>(kind, t);
    case 5:
      return TileOfRows<5>(kind, t);
    default:
      return TileOfRows<6>(kind, t);
  }
}

// ---- x -----------------------------------------------------------------------------------------

// To the nearest bf16, ties to even, as a float; NaN stays NaN (base/half.h ToBf16).
HWY_INLINE Vec RoundToBf16(Vec x) {
  const auto bits = hn::BitCast(U32(), x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(U32(), 1));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(U32(), 0x7fffu)), odd);
  const auto quiet = hn::Or(bits, hn::Set(U32(), 0x400000u));
  const auto nan = hn::RebindMask(U32(), hn::IsNaN(x));
  const auto upper = hn::And(hn::IfThenElse(nan, quiet, rounded), hn::Set(U32(), 0xffff0000u));
  return hn::BitCast(F32(), upper);
}

void ConvertX(WeightKind kind, const float* x, int64_t k, void* out) {
  if (kind != WeightKind::kBf16) {
    __builtin_memcpy(out, x, static_cast<size_t>(k) * sizeof(float));
    return;
  }
  const int64_t padded = (k + 1) / 2 * 2;
#if defined(__AVX512BF16__)
  uint16_t* to = static_cast<uint16_t*>(out);
  int64_t i = 0;
  for (; i + 32 <= k; i += 32) {
    const __m512bh pair = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i));
    _mm512_storeu_si512(to + i, reinterpret_cast<__m512i>(pair));
  }
  for (; i < padded; i += 16) {
    const int64_t have = k - i < 16 ? k - i : 16;
    const int64_t want = padded - i < 16 ? padded - i : 16;
    const __m512 v = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << have) - 1u), x + i);
    _mm256_mask_storeu_epi16(to + i, static_cast<__mmask16>((1u << want) - 1u),
                             reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
  }
#else
  float* to = static_cast<float*>(out);
  ForVectors(k, [&](int64_t i, auto part) { Store(part, RoundToBf16(Load(part, x + i)), to + i); });
  if (padded > k) to[k] = 0;
#endif
}

// ---- elementwise -------------------------------------------------------------------------------

void WidenBf16s(const uint16_t* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
    __builtin_memcpy(out + i, &bits, sizeof(bits));
  }
}

void WidenF16s(const uint16_t* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(WidenF16(x + i), F32(), out + i);
  if (i == n) return;
  uint16_t tail[kLanes] = {};
  __builtin_memcpy(tail, x + i, static_cast<size_t>(n - i) * sizeof(uint16_t));
  Store(Front{n - i}, WidenF16(tail), out + i);
}

// The sum of squares is float, in 4 * kLanes chains: its relative error is at most
// (n / (4 kLanes) + 6) 2^-24 since every term is positive; 1e-5 for n = 8192 at 16 lanes.
void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* y) {
  Vec sum[4] = {hn::Zero(F32()), hn::Zero(F32()), hn::Zero(F32()), hn::Zero(F32())};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const Vec v = hn::LoadU(F32(), x + i + c * kLanes);
      sum[c] = hn::MulAdd(v, v, sum[c]);
    }
  }
  ForVectors(n - i, [&](int64_t j, auto part) {
    const Vec v = Load(part, x + i + j);
    sum[0] = hn::MulAdd(v, v, sum[0]);
  });
  const Vec lanes = hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]));
  const float total = hn::GetLane(hn::SumOfLanes(F32(), lanes));
  const float scale = 1.0f / __builtin_sqrtf(total / static_cast<float>(n) + eps);
  ForVectors(n, [&](int64_t j, auto part) {
    const Vec v = hn::Mul(Load(part, x + j), hn::Set(F32(), scale));
    Store(part, hn::Mul(v, Load(part, weight + j)), y + j);
  });
}

// e^x for x clamped to [-87, 88]: x = n ln 2 + r, |r| <= ln 2 / 2, and the Taylor polynomial of
// degree 7 (its remainder is below 6e-9), times 2^n. Relative error below 2^-22 (three roundings of
// 2^-24 near the end of the polynomial, plus r's own); the test measures it.
HWY_INLINE Vec Exp(Vec x) {
  x = hn::Min(hn::Max(x, hn::Set(F32(), -87.0f)), hn::Set(F32(), 88.0f));
  const auto n = hn::NearestInt(hn::Mul(x, hn::Set(F32(), 1.44269504f)));
  const Vec nf = hn::ConvertTo(F32(), n);
  // ln 2 in two parts: the first has 9 trailing zero bits, so that n times it is exact.
  Vec r = hn::MulAdd(nf, hn::Set(F32(), -0.693359375f), x);
  r = hn::MulAdd(nf, hn::Set(F32(), 2.12194440e-4f), r);
  constexpr float kCoefficients[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  Vec p = hn::Set(F32(), 1.0f / 5040);
#pragma GCC unroll 8
  for (const float c : kCoefficients) p = hn::MulAdd(p, r, hn::Set(F32(), c));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(n, hn::Set(hn::RebindToSigned<F32>(), 127)));
  return hn::Mul(p, hn::BitCast(F32(), exponent));
}

// silu(a) = a / (1 + e^-a). Below a = -88 it stays at a / e^88: within 1e-36 of the truth.
void SiluMul(const float* gate, const float* up, int64_t n, float* y) {
  ForVectors(n, [&](int64_t i, auto part) {
    const Vec a = Load(part, gate + i);
    const Vec silu = hn::Div(a, hn::Add(hn::Set(F32(), 1.0f), Exp(hn::Neg(a))));
    Store(part, hn::Mul(silu, Load(part, up + i)), y + i);
  });
}

void Rope(float* x, const float* cos, const float* sin, int64_t half) {
  ForVectors(half, [&](int64_t i, auto part) {
    const Vec a = Load(part, x + i);
    const Vec b = Load(part, x + half + i);
    const Vec c = Load(part, cos + i);
    const Vec s = Load(part, sin + i);
    Store(part, hn::NegMulAdd(b, s, hn::Mul(a, c)), x + i);
    Store(part, hn::MulAdd(a, s, hn::Mul(b, c)), x + half + i);
  });
}

#if defined(__AVX512BF16__)
constexpr int kBf16XBytes = 2;
#else
constexpr int kBf16XBytes = 4;
#endif

extern const LinearKernels kLinearKernels;
constinit const LinearKernels kLinearKernels = {
    kLanes == 16, {kBf16XBytes, 4, 4}, &ConvertX, &Tile,
    &WidenBf16s,  &WidenF16s,          &RmsNorm,  &SiluMul,
    &Rope,
};

}  // namespace LS_ISA
}  // namespace lserve
