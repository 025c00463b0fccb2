// The kernels of linear_kernels.h, written once over Highway's vectors and compiled once per
// instruction set: linear_<isa>.cc includes this file after defining LS_ISA, the namespace that
// keeps the copies apart. Only raw pointers, no std:: (see linear_kernels.h).
#include "backend/cpu/linear_quantized-inl.h"

namespace lserve {
namespace LS_ISA {

// ---- dispatch ----------------------------------------------------------------------------------

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
    case WeightKind::kInt8:
    case WeightKind::kInt4:
    case WeightKind::kW8A8:
      break;  // QuantizedTile
  }
}

// Calls f(Rows<n>()) for the number of rows of a tile.
template <int kRows>
struct Rows {
  static constexpr int kCount = kRows;
};
template <class F>
HWY_INLINE void SwitchOnRows(int rows, F f) {
  static_assert(kMaxTileRows == 6);
  switch (rows) {
    case 1:
      return f(Rows<1>());
    case 2:
      return f(Rows<2>());
    case 3:
      return f(Rows<3>());
    case 4:
      return f(Rows<4>());
    case 5:
      return f(Rows<5>());
    default:
      return f(Rows<6>());
  }
}

void Tile(WeightKind kind, const LinearTile& t) {
  SwitchOnRows(t.rows, [&](auto rows) { TileOfRows<decltype(rows)::kCount>(kind, t); });
}

void QuantizedTile(WeightKind kind, const LinearTile& t) {
  SwitchOnRows(t.rows, [&](auto rows) { QuantizedTileOfRows<decltype(rows)::kCount>(kind, t); });
}

#if defined(__AVX512BF16__)
void QuadsTile(const LinearTile& t) {
  SwitchOnRows(t.rows, [&](auto rows) { QuadsTileOfRows<decltype(rows)::kCount, false>(t); });
}
#endif

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
  if (kind == WeightKind::kF16 || kind == WeightKind::kF32) {
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

// Codes [i, i + kLanes) of a row, as the tiles of kW8A8 read them.
template <class Part>
HWY_INLINE void StoreCodes(Part part, hn::Vec<I32> code, int64_t i, void* codes) {
#if defined(__AVX512BF16__)
  const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(code.raw, _mm512_set1_epi32(128)));
  const __mmask16 mask = static_cast<__mmask16>((1u << NumLanes(part)) - 1u);
  _mm_mask_storeu_epi8(static_cast<uint8_t*>(codes) + i, mask, bytes);
#else
  Store(part, hn::ConvertTo(F32(), code), static_cast<float*>(codes) + i);
#endif
}

// The arithmetic of QuantizeInputGroup, operation by operation.
void QuantizeX(const float* x, int64_t k, void* codes, float* scales) {
  constexpr int64_t kGroup = kGroupSteps * 2;
  constexpr int32_t kInfinity = 0x7f800000;
  for (int64_t first = 0; first < k; first += kGroup) {
    const int64_t count = k - first < kGroup ? k - first : kGroup;
    // Magnitudes compare like their bits; infinities and NaN are above every number.
    auto most = hn::Zero(I32());
    ForVectors(count, [&](int64_t i, auto part) {
      const auto bits = hn::BitCast(I32(), Load(part, x + first + i));
      most = hn::Max(most, hn::And(bits, hn::Set(I32(), 0x7fffffff)));
    });
    const int32_t largest_bits = hn::GetLane(hn::MaxOfLanes(I32(), most));
    float largest;
    __builtin_memcpy(&largest, &largest_bits, sizeof(largest));
    const bool is_zero = largest < 0x1p-100f;
    const bool is_finite = largest_bits < kInfinity;
    *scales++ = !is_finite ? __builtin_nanf("") : is_zero ? 0.0f : largest / 127.0f;
    const Vec inverse = hn::Set(F32(), is_zero || !is_finite ? 0.0f : 127.0f / largest);
    ForVectors(count, [&](int64_t i, auto part) {
      const Vec value = Load(part, x + first + i);
      // 0 times an infinity is no number, and has no nearest integer.
      const auto code = is_finite ? hn::NearestInt(hn::Mul(value, inverse)) : hn::Zero(I32());
      StoreCodes(part, code, first + i, codes);
    });
  }
#if defined(__AVX512BF16__)
  for (int64_t i = k; i % 4 != 0; ++i) static_cast<uint8_t*>(codes)[i] = 128;
#else
  if (k % 2 != 0) static_cast<float*>(codes)[k] = 0;
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
constexpr int kCodeBytes = 1;
#else
constexpr int kBf16XBytes = 4;
constexpr int kCodeBytes = 4;
#endif

extern const LinearKernels kLinearKernels;
constinit const LinearKernels kLinearKernels = {
    .single_pass = kLanes == 16,
    .has_quads = kCodeBytes == 1,
    .x_bytes = {kBf16XBytes, 4, 4, kBf16XBytes, kBf16XBytes, kCodeBytes},
    .convert_x = &ConvertX,
    .tile = &Tile,
    .quantize_x = &QuantizeX,
    .quantized_tile = &QuantizedTile,
    .expand = &Expand,
#if defined(__AVX512BF16__)
    .quads_tile = &QuadsTile,
    .expand_quads = &ExpandQuads,
#else
    .quads_tile = nullptr,
    .expand_quads = nullptr,
#endif
    .sum_groups = &SumGroups,
    .widen_bf16 = &WidenBf16s,
    .widen_f16 = &WidenF16s,
    .rms_norm = &RmsNorm,
    .silu_mul = &SiluMul,
    .rope = &Rope,
};

}  // namespace LS_ISA
}  // namespace lserve
