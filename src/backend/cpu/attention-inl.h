// The attention kernels, compiled once per instruction set by attention_<isa>.cc, which sets
// LS_BF16_DOT. Everything here is in an unnamed namespace and nothing of std:: is instantiated:
// code compiled with AVX-512 must never be what the linker picks for the rest of the program.
#include <hwy/highway.h>
#include <math.h>
#include <stdint.h>

#include "backend/cpu/attention_kernels.h"
#include "kv/page.h"

#if LS_BF16_DOT
#include <immintrin.h>
#endif

// Loops over register tiles must unroll, or the tile is no longer in registers.
#if defined(__clang__)
#define LS_UNROLL _Pragma("unroll")
#else
#define LS_UNROLL _Pragma("GCC unroll 16")
#endif

namespace lserve {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D32 = hn::ScalableTag<float>;
using DI32 = hn::RebindToSigned<D32>;
using DU32 = hn::RebindToUnsigned<D32>;
using VecF = hn::Vec<D32>;
using VecU = hn::Vec<DU32>;
constexpr D32 kF;
constexpr DI32 kI;
constexpr DU32 kU;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(kF));
constexpr int kKeyVectors = kPageTokens / kLanes;  // vectors that hold one float per key

HWY_INLINE uint32_t BitsOf(float x) {
  uint32_t bits = 0;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}

HWY_INLINE float FloatOf(uint32_t bits) {
  float x = 0;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

// ToBf16() of half.h, which must not be instantiated here.
HWY_INLINE uint32_t RoundToBf16(float x) {
  const uint32_t bits = BitsOf(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// A pair of bf16 in a 32-bit lane: the even element is the lower half.
HWY_INLINE VecF EvenOf(VecU pair) {
  return hn::BitCast(kF, hn::ShiftLeft<16>(pair));
}
HWY_INLINE VecF OddOf(VecU pair) {
  return hn::BitCast(kF, hn::And(pair, hn::Set(kU, 0xffff0000u)));
}
HWY_INLINE VecU LoadPairs(const uint16_t* p) {
  return hn::LoadU(kU, reinterpret_cast<const uint32_t*>(p));
}

// ---- The register tile: c[i][n] += sum over p of a[i][2p] b[p][n][0] + a[i][2p+1] b[p][n][1].
// Both products of attention are this: scores (p: pairs of dimensions, n: keys) and outputs
// (p: pairs of keys, n: dimensions). Every c[i][n] is one chain over p, so a row's result does not
// depend on the tile that it is in.

#if LS_BF16_DOT
using Left = uint32_t;  // a pair of bf16
constexpr int kLeftPerPair = 1;
constexpr int kTileRows = 6;  // 6 x 4 accumulators, 4 right operands; the left ones are broadcast
constexpr int kTileVectors = 4;

template <int kRows, int kVectors>
HWY_INLINE void AddProducts(const Left* a,
                            int64_t a_stride,
                            const uint16_t* b,
                            VecF (&c)[kRows][kVectors]) {
  __m512bh right[kVectors];
  LS_UNROLL for (int j = 0; j < kVectors; ++j) {
    right[j] = (__m512bh)_mm512_loadu_si512(b + j * 2 * kLanes);
  }
  LS_UNROLL for (int i = 0; i < kRows; ++i) {
    const __m512bh left = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[i * a_stride]));
    LS_UNROLL for (int j = 0; j < kVectors; ++j) {
      c[i][j].raw = _mm512_dpbf16_ps(c[i][j].raw, right[j], left);
    }
  }
}
#else
using Left = float;
constexpr int kLeftPerPair = 2;
constexpr int kTileRows = kLanes == 16 ? 6 : 4;
constexpr int kTileVectors = kLanes == 16 ? 4 : 2;

template <int kRows, int kVectors>
HWY_INLINE void AddProducts(const Left* a,
                            int64_t a_stride,
                            const uint16_t* b,
                            VecF (&c)[kRows][kVectors]) {
  LS_UNROLL for (int j = 0; j < kVectors; ++j) {
    const VecU pair = LoadPairs(b + j * 2 * kLanes);
    const VecF even = EvenOf(pair);
    const VecF odd = OddOf(pair);
    LS_UNROLL for (int i = 0; i < kRows; ++i) {
      c[i][j] = hn::MulAdd(even, hn::Set(kF, a[i * a_stride]), c[i][j]);
      c[i][j] = hn::MulAdd(odd, hn::Set(kF, a[i * a_stride + 1]), c[i][j]);
    }
  }
}
#endif
constexpr int kQueryElementBytes = static_cast<int>(sizeof(Left)) * kLeftPerPair / 2;

enum class Start { kZero, kAccumulate };

// c[kRows][kVectors vectors] from `num_pairs` steps.
template <int kRows, int kVectors, Start kStart>
HWY_INLINE void Tile(int num_pairs,
                     const Left* a,
                     int64_t a_stride,
                     const uint16_t* b,
                     int64_t b_stride,
                     float* c,
                     int64_t c_stride) {
  VecF acc[kRows][kVectors];
  LS_UNROLL for (int i = 0; i < kRows; ++i) {
    LS_UNROLL for (int j = 0; j < kVectors; ++j) {
      acc[i][j] =
          kStart == Start::kZero ? hn::Zero(kF) : hn::LoadU(kF, c + i * c_stride + j * kLanes);
    }
  }
  for (int p = 0; p < num_pairs; ++p) {
    AddProducts<kRows, kVectors>(a + p * kLeftPerPair, a_stride, b + p * b_stride, acc);
  }
  LS_UNROLL for (int i = 0; i < kRows; ++i) {
    LS_UNROLL for (int j = 0; j < kVectors; ++j) {
      hn::StoreU(acc[i][j], kF, c + i * c_stride + j * kLanes);
    }
  }
}

// ---- Softmax

// 2^x for x <= 0, 1 exactly at 0. With bf16 weights (relative step 2^-8) the relative error of
// 3.5e-6 of a polynomial of degree 4 is nothing; with float weights it has degree 5 and 1.9e-7.
HWY_INLINE VecF Exp2(VecF x) {
#if LS_BF16_DOT
  const VecF n = hn::Round(x);
  const VecF f = hn::Sub(x, n);
  VecF p = hn::MulAdd(f, hn::Set(kF, 0.00966636852f), hn::Set(kF, 0.0559219758f));
  p = hn::MulAdd(p, f, hn::Set(kF, 0.24022349f));
  p = hn::MulAdd(p, f, hn::Set(kF, 0.693121045f));
  p = hn::MulAdd(p, f, hn::Set(kF, 1.0f));
  return VecF{_mm512_scalef_ps(p.raw, n.raw)};
#else
  // Below 2^-126 the exponent would wrap; such a weight is nothing beside the maximum's 1.
  x = hn::Max(x, hn::Set(kF, -126.0f));
  const VecF n = hn::Round(x);
  const VecF f = hn::Sub(x, n);
  VecF p = hn::MulAdd(f, hn::Set(kF, 0.0013326649f), hn::Set(kF, 0.00966636852f));
  p = hn::MulAdd(p, f, hn::Set(kF, 0.0555055181f));
  p = hn::MulAdd(p, f, hn::Set(kF, 0.24022349f));
  p = hn::MulAdd(p, f, hn::Set(kF, 0.693147074f));
  p = hn::MulAdd(p, f, hn::Set(kF, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::ConvertTo(kI, n));
  return hn::BitCast(kF, hn::Add(hn::BitCast(kI, p), exponent));
#endif
}

HWY_INLINE hn::Mask<D32> VisibleLanes(uint64_t visible, int vector) {
  const uint64_t bits = visible >> (vector * kLanes);
  uint8_t bytes[8];
  __builtin_memcpy(bytes, &bits, sizeof(bytes));
  return hn::LoadMaskBits(kF, bytes);
}

#if LS_BF16_DOT
// The sum adds the rounded weights, so that a row of equal values gives that value.
HWY_INLINE void StoreWeights(const VecF (&w)[kKeyVectors], Left* weights, float* sum) {
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  __m512 total = _mm512_loadu_ps(sum);
  LS_UNROLL for (int j = 0; j < kKeyVectors; j += 2) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(w[j + 1].raw, w[j].raw);
    _mm512_storeu_si512(weights + j * kLanes / 2, (__m512i)rounded);
    total = _mm512_dpbf16_ps(total, rounded, ones);
  }
  _mm512_storeu_ps(sum, total);
}
#else
HWY_INLINE void StoreWeights(const VecF (&w)[kKeyVectors], Left* weights, float* sum) {
  VecF total = hn::LoadU(kF, sum);
  LS_UNROLL for (int j = 0; j < kKeyVectors; ++j) {
    hn::StoreU(w[j], kF, weights + j * kLanes);
    total = hn::Add(total, w[j]);
  }
  hn::StoreU(total, kF, sum);
}
#endif

HWY_NOINLINE void Rescale(float factor, float* out, int head_dim, float* sum) {
  const VecF f = hn::Set(kF, factor);
  for (int i = 0; i < kSumLanes; i += kLanes)
    hn::StoreU(hn::Mul(f, hn::LoadU(kF, sum + i)), kF, sum + i);
  for (int i = 0; i < head_dim; i += kLanes)
    hn::StoreU(hn::Mul(f, hn::LoadU(kF, out + i)), kF, out + i);
}

constexpr uint64_t kAllVisible = ~uint64_t{0};

// Scores of one row over a page -> weights relative to the running maximum. The maximum rises a
// few times per row at first and then almost never: what a rise costs stays behind a branch.
template <bool kMasked>
HWY_INLINE void SoftmaxRow(const float* scores,
                           uint64_t visible,
                           float scale,
                           int head_dim,
                           float* max,
                           float* sum,
                           float* out,
                           Left* weights) {
  VecF s[kKeyVectors];
  VecF top = hn::Set(kF, -HUGE_VALF);
  LS_UNROLL for (int j = 0; j < kKeyVectors; ++j) {
    s[j] = hn::LoadU(kF, scores + j * kLanes);
    // Select, not add: an unwritten key may be any bit pattern.
    if (kMasked) s[j] = hn::IfThenElse(VisibleLanes(visible, j), s[j], hn::Set(kF, -HUGE_VALF));
    top = hn::Max(top, s[j]);
  }
  if (HWY_UNLIKELY(!hn::AllFalse(kF, hn::Gt(top, hn::Set(kF, *max))))) {
    const float risen = hn::GetLane(hn::MaxOfLanes(kF, top));
    if (*max > -HUGE_VALF) Rescale(exp2f((*max - risen) * scale), out, head_dim, sum);
    *max = risen;
  }
  const VecF factor = hn::Set(kF, scale);
  const VecF offset = hn::Set(kF, -*max * scale);
  LS_UNROLL for (int j = 0; j < kKeyVectors; ++j) {
    s[j] = Exp2(hn::MulAdd(s[j], factor, offset));
    if (kMasked) s[j] = hn::IfThenElseZero(VisibleLanes(visible, j), s[j]);
  }
  StoreWeights(s, weights, sum);
}

// ---- One page for kRows rows: scores, weights, outputs; scores and weights stay in the L1 cache.

template <int kRows, int kVectors>
HWY_INLINE void AddValues(const AttendArgs& args, const Left* weights, int dim, float* out) {
  Tile<kRows, kVectors, Start::kAccumulate>(
      kPageTokens / 2, weights, kPageTokens / 2 * kLeftPerPair, args.page.values + 2 * dim,
      2 * args.head_dim, out + dim, args.head_dim);
}

template <int kRows>
HWY_INLINE void AddAllValues(const AttendArgs& args, const Left* weights, float* out) {
  const int full = args.head_dim / (kTileVectors * kLanes) * (kTileVectors * kLanes);
  int dim = 0;
  for (; dim < full; dim += kTileVectors * kLanes)
    AddValues<kRows, kTileVectors>(args, weights, dim, out);
  for (; dim < args.head_dim; dim += kLanes) AddValues<kRows, 1>(args, weights, dim, out);
}

template <int kRows, bool kMasked>
HWY_NOINLINE void AttendRows(const AttendArgs& args, int row) {
  alignas(64) float scores[kRows * kPageTokens];
  alignas(64) Left weights[kRows * kPageTokens / 2 * kLeftPerPair];
  const int left_per_row = args.head_dim / 2 * kLeftPerPair;
  const Left* q = static_cast<const Left*>(args.q) + static_cast<int64_t>(row) * left_per_row;
  for (int j = 0; j < kPageTokens; j += kTileVectors * kLanes) {
    Tile<kRows, kTileVectors, Start::kZero>(args.head_dim / 2, q, left_per_row,
                                            args.page.keys + 2 * j, 2 * kPageTokens, scores + j,
                                            kPageTokens);
  }
  float* out = args.state.out + static_cast<int64_t>(row) * args.head_dim;
  for (int i = 0; i < kRows; ++i) {
    SoftmaxRow<kMasked>(scores + i * kPageTokens, kMasked ? args.visible[row + i] : kAllVisible,
                        args.scale, args.head_dim, args.state.max + row + i,
                        args.state.sum + static_cast<int64_t>(row + i) * kSumLanes,
                        out + static_cast<int64_t>(i) * args.head_dim,
                        weights + i * (kPageTokens / 2 * kLeftPerPair));
  }
  AddAllValues<kRows>(args, weights, out);
}

template <bool kMasked>
void AttendAll(const AttendArgs& args) {
  int row = 0;
  for (; row + kTileRows <= args.num_rows; row += kTileRows)
    AttendRows<kTileRows, kMasked>(args, row);
  switch (args.num_rows - row) {
    case 1:
      return AttendRows<1, kMasked>(args, row);
    case 2:
      return AttendRows<2, kMasked>(args, row);
    case 3:
      return AttendRows<3, kMasked>(args, row);
    case 4:
      return AttendRows<4, kMasked>(args, row);
    case 5:
      return AttendRows<5, kMasked>(args, row);
    default:
      return;
  }
}

void AttendPage(const AttendArgs& args) {
  args.visible == nullptr ? AttendAll<false>(args) : AttendAll<true>(args);
}

void PackQueries(const float* q, int64_t count, void* packed) {
#if LS_BF16_DOT
  uint16_t* to = static_cast<uint16_t*>(packed);
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint16_t>(RoundToBf16(q[i]));
#else
  float* to = static_cast<float*>(packed);
  for (int64_t i = 0; i < count; ++i) to[i] = FloatOf(RoundToBf16(q[i]) << 16);
#endif
}

// ---- Dequantisation, pair by pair: the codes of a pair lie together, as do its bf16 values.

// Rounds finite floats to bf16, which stay in the upper half of the lane; the lower half is
// rubbish.
HWY_INLINE VecU RoundUpperHalf(VecF x) {
  const VecU bits = hn::BitCast(kU, x);
  const VecU odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(kU, 1));
  return hn::Add(bits, hn::Add(odd, hn::Set(kU, 0x7fff)));
}

// Code pairs -> one lane each: 8-bit codes as 16-bit words, 4-bit codes as bytes.
template <int kBits>
HWY_INLINE VecU LoadCodes(const std::byte* codes, int64_t pair) {
  if (kBits == 8) {
    const hn::Rebind<uint16_t, DU32> narrow;
    return hn::PromoteTo(kU, hn::LoadU(narrow, reinterpret_cast<const uint16_t*>(codes) + pair));
  }
  const hn::Rebind<uint8_t, DU32> narrow;
  return hn::PromoteTo(kU, hn::LoadU(narrow, reinterpret_cast<const uint8_t*>(codes) + pair));
}

struct Affine {
  VecF scale;
  VecF min;
};

// The numbers of 64 tokens as floats.
struct Affine64 {
  Affine64(const uint16_t* half_scales, const uint16_t* half_mins) {
    const hn::Rebind<hwy::float16_t, D32> half;
    for (int k = 0; k < kPageTokens; k += kLanes) {
      const auto at = [&](const uint16_t* x) {
        return hn::PromoteTo(kF, hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(x + k)));
      };
      hn::Store(at(half_scales), kF, scales + k);
      hn::Store(at(half_mins), kF, mins + k);
    }
  }
  alignas(64) float scales[kPageTokens];
  alignas(64) float mins[kPageTokens];
};

template <int kBits>
HWY_INLINE void DequantizePairs(
    const std::byte* codes, int64_t pair, Affine even, Affine odd, uint16_t* to) {
  const VecU both = LoadCodes<kBits>(codes, pair);
  const VecU low = hn::And(both, hn::Set(kU, (1u << kBits) - 1));
  const VecU high = hn::ShiftRight<kBits>(both);
  const VecF x = hn::MulAdd(hn::ConvertTo(kF, hn::BitCast(kI, low)), even.scale, even.min);
  const VecF y = hn::MulAdd(hn::ConvertTo(kF, hn::BitCast(kI, high)), odd.scale, odd.min);
  const VecU pairs = hn::Or(hn::ShiftRight<16>(RoundUpperHalf(x)),
                            hn::And(RoundUpperHalf(y), hn::Set(kU, 0xffff0000u)));
  hn::StoreU(pairs, kU, reinterpret_cast<uint32_t*>(to + 2 * pair));
}

template <int kBits>
HWY_INLINE void Dequantize(const QuantizedPage& page,
                           int head_dim,
                           uint16_t* keys,
                           uint16_t* values) {
  const Affine64 key(page.key_scales, page.key_mins);
  const Affine64 value(page.value_scales, page.value_mins);
  // In the order of memory: in decode the codes come from there.
  for (int d = 0; d < head_dim / 2; ++d) {
    for (int k = 0; k < kPageTokens; k += kLanes) {
      const Affine affine = {hn::Load(kF, key.scales + k), hn::Load(kF, key.mins + k)};
      DequantizePairs<kBits>(page.key_codes, d * kPageTokens + k, affine, affine, keys);
    }
  }
  if (values == nullptr) return;
  for (int p = 0; p < kPageTokens / 2; ++p) {
    const Affine even = {hn::Set(kF, value.scales[2 * p]), hn::Set(kF, value.mins[2 * p])};
    const Affine odd = {hn::Set(kF, value.scales[2 * p + 1]), hn::Set(kF, value.mins[2 * p + 1])};
    for (int d = 0; d < head_dim; d += kLanes) {
      DequantizePairs<kBits>(page.value_codes, static_cast<int64_t>(p) * head_dim + d, even, odd,
                             values);
    }
  }
}

void DequantizePage(
    const QuantizedPage& page, int bits, int head_dim, uint16_t* keys, uint16_t* values) {
  bits == 8 ? Dequantize<8>(page, head_dim, keys, values)
            : Dequantize<4>(page, head_dim, keys, values);
}

// ---- Appending. head_dim is a multiple of 16, so of kLanes.

HWY_INLINE void StoreUpperHalves(VecU bits, uint16_t* to) {
  const hn::Rebind<uint16_t, DU32> narrow;
  // The saturating conversion of signed lanes: what a shift leaves is below 65536.
  hn::StoreU(hn::DemoteTo(narrow, hn::BitCast(kI, hn::ShiftRight<16>(bits))), narrow, to);
}

void RoundRow(const float* x, int head_dim, uint16_t* stored) {
  for (int d = 0; d < head_dim; d += kLanes) {
    const VecF v = hn::LoadU(kF, x + d);
    const VecU quiet = hn::Or(hn::BitCast(kU, v), hn::Set(kU, 0x00400000u));
    const auto is_nan = hn::RebindMask(kU, hn::IsNaN(v));
    StoreUpperHalves(hn::IfThenElse(is_nan, quiet, RoundUpperHalf(v)), stored + d);
  }
}

HWY_INLINE VecF ClampForQuantRow(VecF x) {
  const VecF number = hn::IfThenZeroElse(hn::IsNaN(x), x);
  return hn::Min(hn::Max(number, hn::Set(kF, -65504.0f)), hn::Set(kF, 65504.0f));
}

void RangeOfRow(const float* x, int head_dim, float* low, float* high) {
  VecF min = ClampForQuantRow(hn::LoadU(kF, x));
  VecF max = min;
  for (int d = kLanes; d < head_dim; d += kLanes) {
    const VecF v = ClampForQuantRow(hn::LoadU(kF, x + d));
    min = hn::Min(min, v);
    max = hn::Max(max, v);
  }
  *low = hn::GetLane(hn::MinOfLanes(kF, min));
  *high = hn::GetLane(hn::MaxOfLanes(kF, max));
}

void QuantizeRow(const QuantizeRowArgs& args) {
  const VecF min = hn::Set(kF, args.min);
  const VecF scale = hn::Set(kF, args.scale);
  // Dividing by 1 instead of 0 makes codes of 0 only if all values equal `min`, so also limit them.
  const VecF divisor = hn::Set(kF, args.scale == 0 ? 1.0f : args.scale);
  const VecF largest = hn::Set(kF, args.scale == 0 ? 0.0f : static_cast<float>(args.levels));
  const hn::Rebind<uint8_t, DU32> narrow;
  for (int d = 0; d < args.head_dim; d += kLanes) {
    const VecF x = hn::Sub(ClampForQuantRow(hn::LoadU(kF, args.x + d)), min);
    const VecF rounded = hn::Round(hn::Div(x, divisor));
    const VecF code = hn::Min(hn::Max(rounded, hn::Zero(kF)), largest);
    hn::StoreU(hn::DemoteTo(narrow, hn::ConvertTo(kI, code)), narrow, args.codes + d);
    StoreUpperHalves(RoundUpperHalf(hn::MulAdd(code, scale, min)), args.stored + d);
  }
}

void FoldRow(const uint16_t* stored, int head_dim, float* max, float* min) {
  const hn::Rebind<uint16_t, DU32> narrow;
  for (int d = 0; d < head_dim; d += kLanes) {
    const VecF v = EvenOf(hn::PromoteTo(kU, hn::LoadU(narrow, stored + d)));
    hn::StoreU(hn::Max(v, hn::LoadU(kF, max + d)), kF, max + d);
    hn::StoreU(hn::Min(v, hn::LoadU(kF, min + d)), kF, min + d);
  }
}

// ---- Page scores. sum over d of max(q_d max_d, q_d min_d) = max(q, 0) . maxima + min(q, 0) .
// minima. Statistics are pairs of dimensions x 4 logical pages, so a lane belongs to one logical
// page; the packed query repeats each pair four times.

void PackBoundQuery(const float* q, int head_dim, void* packed) {
  const int half = 2 * head_dim * kLeftPerPair;  // elements of either sign
  Left* to = static_cast<Left*>(packed);
  for (int sign = 0; sign < 2; ++sign, to += half) {
    for (int pair = 0; pair < head_dim / 2; ++pair) {
      uint32_t bits[2];
      for (int i = 0; i < 2; ++i) {
        const float x = q[2 * pair + i];
        bits[i] = (x < 0) == (sign == 1) ? RoundToBf16(x) : 0;
      }
      for (int l = 0; l < kLogicalPagesPerPage; ++l) {
        const int at = pair * kLogicalPagesPerPage + l;
#if LS_BF16_DOT
        to[at] = bits[0] | (bits[1] << 16);
#else
        // Even elements, then odd ones.
        to[at] = FloatOf(bits[0] << 16);
        to[half / 2 + at] = FloatOf(bits[1] << 16);
#endif
      }
    }
  }
}

HWY_INLINE VecF AddBound(VecF sum, const Left* q, int64_t odd, const uint16_t* stats, int pair) {
#if LS_BF16_DOT
  (void)odd;
  return VecF{_mm512_dpbf16_ps(sum.raw, (__m512bh)_mm512_loadu_si512(stats + 2 * pair),
                               (__m512bh)_mm512_loadu_si512(q + pair))};
#else
  const VecU pairs = LoadPairs(stats + 2 * pair);
  sum = hn::MulAdd(EvenOf(pairs), hn::LoadU(kF, q + pair), sum);
  return hn::MulAdd(OddOf(pairs), hn::LoadU(kF, q + odd + pair), sum);
#endif
}

HWY_INLINE float BoundOf(const Left* q, const uint16_t* stats, int head_dim) {
  const int num_pairs = head_dim / 2 * kLogicalPagesPerPage;
  VecF from_max = hn::Zero(kF);
  VecF from_min = hn::Zero(kF);
  for (int pair = 0; pair < num_pairs; pair += kLanes) {
    from_max = AddBound(from_max, q, num_pairs, stats, pair);
    from_min =
        AddBound(from_min, q + num_pairs * kLeftPerPair, num_pairs, stats + 2 * num_pairs, pair);
  }
  alignas(64) float lanes[kLanes];
  hn::Store(hn::Add(from_max, from_min), kF, lanes);
  float best = -HUGE_VALF;
  for (int l = 0; l < kLogicalPagesPerPage; ++l) {
    float bound = lanes[l];
    for (int i = l + kLogicalPagesPerPage; i < kLanes; i += kLogicalPagesPerPage) bound += lanes[i];
    best = bound > best ? bound : best;
  }
  return best;
}

void ScorePages(const ScoreArgs& args) {
  constexpr int kAhead = 4;  // pages lie far apart: the hardware does not see the next one coming
  const int stats_bytes = args.head_dim * kLogicalPagesPerPage * 4;
  const int64_t q_stride = int64_t{32} * args.head_dim / int64_t{sizeof(Left)};
  for (int page = 0; page < args.num_pages; ++page) {
    if (page + kAhead < args.num_pages) {
      const char* next = reinterpret_cast<const char*>(args.stats[page + kAhead]);
      for (int at = 0; at < stats_bytes; at += 64) __builtin_prefetch(next + at);
    }
    for (int head = 0; head < args.num_heads; ++head) {
      args.scores[head * args.stride + page] =
          BoundOf(static_cast<const Left*>(args.q) + static_cast<int64_t>(head) * q_stride,
                  args.stats[page], args.head_dim);
    }
  }
}

}  // namespace
}  // namespace lserve
