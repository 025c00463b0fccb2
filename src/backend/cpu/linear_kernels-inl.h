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

// ---- quantised weights -------------------------------------------------------------------------

// Scales and minima of a group are bf16.
HWY_INLINE Vec LoadBf16s(const char* from) {
  const hn::Rebind<uint16_t, F32> d16;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(F32(), hn::ShiftLeft<16>(hn::PromoteTo(U32(), bits)));
}

// y = fma(min, sum of x, fma(scale, sum of x q, y)) for one group: the only order there is. If x is
// codes, their scale joins the sum first.
template <int kRows, int kVecs>
HWY_INLINE void AddGroup(
    const LinearTile& t, int64_t group, bool last, int col, const Vec (&acc)[kRows][kVecs]) {
  const char* scales = t.scales + group * t.scales_stride;
  const bool first = group == 0 && t.partial_in == nullptr;
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) {
    const int c = col + v * kLanes;
    const Vec scale = LoadBf16s(scales + c * 2);
    Vec min = hn::Zero(F32());
    if (t.x_sums != nullptr) min = LoadBf16s(scales + (kPanelCols + c) * 2);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      float* partial = t.partial_out + r * kPanelCols + c;
      Vec sum = first ? hn::Zero(F32()) : hn::LoadU(F32(), partial);
      Vec dot = acc[r][v];
      if (t.x_scales != nullptr) {
        dot = hn::Mul(dot, hn::Set(F32(), t.x_scales[r * t.x_groups_stride + group]));
      }
      sum = hn::MulAdd(scale, dot, sum);
      if (t.x_sums != nullptr) {
        sum = hn::MulAdd(min, hn::Set(F32(), t.x_sums[r * t.x_groups_stride + group]), sum);
      }
      if (last) {
        StoreInY(t, sum, r, c);
      } else {
        hn::StoreU(sum, F32(), partial);
      }
    }
  }
}

// Calls f(group, first step, steps, is the last of K) for the groups of a tile.
template <class F>
HWY_INLINE void ForGroups(const LinearTile& t, F f) {
  int64_t group = 0;
  for (int64_t step = 0; step < t.steps; step += kGroupSteps, ++group) {
    const int64_t rest = t.steps - step;
    f(group, step, rest < kGroupSteps ? rest : kGroupSteps, t.ends && rest <= kGroupSteps);
  }
}

template <class Panel, int kRows>
void FloatGroupsTile(const LinearTile& t) {
  constexpr int kVecs = VecsOf(kRows);
  for (int col = 0; col < kPanelCols; col += kVecs * kLanes) {
    ForGroups(t, [&](int64_t group, int64_t step, int64_t steps, bool last) {
      Vec acc[kRows][kVecs];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::Zero(F32());
      }
      AddFloatSteps<Panel, kRows, kVecs>(
          t, static_cast<const char*>(t.panel) + group * t.group_stride,
          static_cast<const float*>(t.x) + step * Panel::kPerStep, steps, col, acc);
      AddGroup<kRows, kVecs>(t, group, last, col, acc);
    });
  }
}

#if defined(__AVX512BF16__)
// How one step of a panel becomes 4 vectors of 16 pairs of bf16.
using Pairs = __m512bh[4];

struct DotBf16 {
  static constexpr int kStepBytes = kPanelCols * 4;
  static HWY_INLINE void Load(const char* step, Pairs& b) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      b[v] = reinterpret_cast<__m512bh>(_mm512_load_si512(step + v * 64));
    }
  }
};

// The bf16 of 0 to 127, low bytes and high bytes apart.
struct Int8Tables {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};
constexpr Int8Tables MakeInt8Tables() {
  Int8Tables tables{};
  for (unsigned magnitude = 1; magnitude < 128; ++magnitude) {
    unsigned exponent = 127, significand = magnitude << 7;  // a bit at 2^7 is the implicit one
    while (significand >= 256) significand >>= 1, ++exponent;
    const unsigned bits = (exponent << 7) | (significand & 127);
    tables.low[magnitude] = static_cast<uint8_t>(bits & 255);
    tables.high[magnitude] = static_cast<uint8_t>(bits >> 8);
  }
  return tables;
}
inline constexpr Int8Tables kInt8Tables = MakeInt8Tables();

// Looks the magnitude up: 5 instructions per 64 codes and one vector of pairs each, where
// converting by way of int32 and float takes 14.
struct DotInt8 {
  static constexpr int kStepBytes = PanelInt8::kStepBytes;
  static HWY_INLINE void Load(const char* step, Pairs& b) {
    // vpunpck takes the halves of each 128-bit lane: these are the quarters that it needs there.
    const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i codes = _mm512_permutexvar_epi64(order, _mm512_load_si512(step + half * 64));
      const __m512i magnitude = _mm512_abs_epi8(codes);
      const __m512i low = LookUp(kInt8Tables.low, magnitude);
      const __m512i unsigned_high = LookUp(kInt8Tables.high, magnitude);
      constexpr int kFirstOrBothOthers = 0xf8;
      const __m512i high =
          _mm512_ternarylogic_epi64(unsigned_high, codes, sign, kFirstOrBothOthers);
      b[2 * half] = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi8(low, high));
      b[2 * half + 1] = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi8(low, high));
    }
  }
  static HWY_INLINE __m512i LookUp(const uint8_t* table, __m512i index) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
  }
};

struct DotInt4 {
  static constexpr int kStepBytes = PanelInt4::kStepBytes;
  // 0 to 15 in bf16, twice: vpermw reads 5 bits of an index, of which the upper is a neighbour's.
  alignas(64) static constexpr uint16_t kValues[32] = {
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120,
      0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
      0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
  static HWY_INLINE void Load(const char* step, Pairs& b) {
    const __m512i words = _mm512_load_si512(step);
    const __m512i values = _mm512_load_si512(kValues);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const __m512i index = _mm512_srli_epi16(words, static_cast<unsigned>(v * 4));
      b[v] = reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(index, values));
    }
  }
};

template <class Panel, int kRows>
void DotGroupsTile(const LinearTile& t) {
  constexpr int kVecs = 4;
  // Without a hint, x is as good an address as any, as in Bf16DotTile.
  const char* prefetch = t.prefetch == nullptr ? static_cast<const char*>(t.x) : t.prefetch;
  const int64_t prefetch_step = t.prefetch_step;
  ForGroups(t, [&](int64_t group, int64_t step, int64_t steps, bool last) {
    Vec acc[kRows][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::Zero(F32());
    }
    const char* w = static_cast<const char*>(t.panel) + group * t.group_stride;
    const char* x = static_cast<const char*>(t.x) + step * 4;
    for (int64_t s = 0; s < steps; ++s) {
      _mm_prefetch(prefetch, _MM_HINT_T1);
      _mm_prefetch(prefetch + 64, _MM_HINT_T1);
      prefetch += prefetch_step;
      Pairs b;
      Panel::Load(w, b);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        int pair;
        __builtin_memcpy(&pair, x + r * t.x_stride, sizeof(pair));
        const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) acc[r][v].raw = _mm512_dpbf16_ps(acc[r][v].raw, a, b[v]);
      }
      w += Panel::kStepBytes;
      x += 4;
    }
    AddGroup<kRows, kVecs>(t, group, last, 0, acc);
  });
}

// Word 2 i + j of the result is that of column i in step j, for the lower or upper 16 of 32
// columns.
struct QuadOrder {
  alignas(64) uint16_t lower[32];
  alignas(64) uint16_t upper[32];
};
constexpr QuadOrder MakeQuadOrder() {
  QuadOrder order{};
  for (uint16_t i = 0; i < 32; ++i) {
    order.lower[i] = static_cast<uint16_t>(i / 2 + i % 2 * 32);
    order.upper[i] = static_cast<uint16_t>(order.lower[i] + 16);
  }
  return order;
}
inline constexpr QuadOrder kQuadOrder = MakeQuadOrder();

// Four K elements of 16 columns each, from the codes of one step or two.
using Quads = __m512i[4];
HWY_INLINE void LoadQuads(const char* step, bool has_second, Quads& b) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const char* at = step + half * 64;
    const __m512i first = _mm512_load_si512(at);
    const __m512i second =
        has_second ? _mm512_load_si512(at + PanelInt8::kStepBytes) : _mm512_setzero_si512();
    b[2 * half] = _mm512_permutex2var_epi16(first, _mm512_load_si512(kQuadOrder.lower), second);
    b[2 * half + 1] = _mm512_permutex2var_epi16(first, _mm512_load_si512(kQuadOrder.upper), second);
  }
}

// sum += the products of four unsigned bytes of a and four signed ones of b, per lane.
HWY_INLINE void AddQuads(__m512i& sum, __m512i a, __m512i b) {
  sum = _mm512_dpbusd_epi32(sum, a, b);
  // GCC 12 would keep copies of the sums in memory, at half the speed.
  __asm__("" : "+v"(sum));
}

HWY_INLINE __m512i BroadcastQuad(const char* x) {
  int quad;
  __builtin_memcpy(&quad, x, sizeof(quad));
  return _mm512_set1_epi32(quad);
}

// What x has too much: 128 for each code of a column.
HWY_INLINE __m512i QuadOffset() {
  return _mm512_set1_epi8(static_cast<char>(0x80));
}

// vpdpbusd multiplies unsigned bytes by signed ones, so x has 128 added and 128 times the sum of a
// column's codes must go: every sum begins at its negative, which leads an expanded group. kPacked:
// the codes are as PackLinear made them, and the tile finds that sum itself.
template <int kRows, bool kPacked>
void QuadsTileOfRows(const LinearTile& t) {
  constexpr int kVecs = 4;
  const char* prefetch = t.prefetch == nullptr ? static_cast<const char*>(t.x) : t.prefetch;
  const int64_t prefetch_step = 2 * t.prefetch_step;  // of two steps
  ForGroups(t, [&](int64_t group, int64_t step, int64_t steps, bool last) {
    const char* w = static_cast<const char*>(t.panel) + group * t.group_stride;
    const char* x = static_cast<const char*>(t.x) + step * 2;
    __m512i dot[kRows][kVecs];
    [[maybe_unused]] __m512i offset[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      offset[v] = kPacked ? _mm512_setzero_si512() : _mm512_load_si512(w + v * 64);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) dot[r][v] = offset[v];
    }
    if (!kPacked) w += kPanelCols * 4;
    for (int64_t s = 0; s < steps; s += 2) {
      Quads b;
      if (kPacked) {
        LoadQuads(w, s + 1 < steps, b);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) AddQuads(offset[v], QuadOffset(), b[v]);
      } else {
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          _mm_prefetch(prefetch + v * 64, _MM_HINT_T1);
          b[v] = _mm512_load_si512(w + v * 64);
        }
        prefetch += prefetch_step;
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512i a = BroadcastQuad(x + r * t.x_stride);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) AddQuads(dot[r][v], a, b[v]);
      }
      w += kPanelCols * 4;
      x += 4;
    }
    Vec acc[kRows][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        if (kPacked) dot[r][v] = _mm512_sub_epi32(dot[r][v], offset[v]);
        acc[r][v].raw = _mm512_cvtepi32_ps(dot[r][v]);
      }
    }
    AddGroup<kRows, kVecs>(t, group, last, 0, acc);
  });
}

void ExpandQuads(const void* codes, int64_t steps, void* out) {
  const char* from = static_cast<const char*>(codes);
  char* to = static_cast<char*>(out) + kPanelCols * 4;
  __m512i offset[4] = {};
  for (int64_t s = 0; s < steps; s += 2) {
    Quads b;
    LoadQuads(from, s + 1 < steps, b);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      AddQuads(offset[v], QuadOffset(), b[v]);
      _mm512_store_si512(to + v * 64, b[v]);
    }
    from += 2 * PanelInt8::kStepBytes;
    to += kPanelCols * 4;
  }
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    _mm512_store_si512(static_cast<char*>(out) + v * 64,
                       _mm512_sub_epi32(_mm512_setzero_si512(), offset[v]));
  }
}

template <class Panel>
void ExpandPanel(const char* codes, int64_t steps, char* out) {
  for (int64_t s = 0; s < steps; ++s) {
    Pairs b;
    Panel::Load(codes, b);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      _mm512_store_si512(out + v * 64, reinterpret_cast<__m512i>(b[v]));
    }
    codes += Panel::kStepBytes;
    out += DotBf16::kStepBytes;
  }
}
#else
// The floats of a small integer have their upper half only, which is the bf16.
template <class Panel>
void ExpandPanel(const char* codes, int64_t steps, char* out) {
  for (int64_t s = 0; s < steps; ++s) {
    for (int col = 0; col < kPanelCols; col += kLanes) {
      const auto even = hn::BitCast(U32(), Panel::Load(codes, col, 0));
      const auto odd = hn::BitCast(U32(), Panel::Load(codes, col, 1));
      hn::StoreU(hn::Or(hn::ShiftRight<16>(even), odd), U32(),
                 reinterpret_cast<uint32_t*>(out) + col);
    }
    codes += Panel::kStepBytes;
    out += PanelBf16::kStepBytes;
  }
}
#endif

void Expand(WeightKind kind, const void* codes, int64_t steps, void* out) {
  const char* from = static_cast<const char*>(codes);
  char* to = static_cast<char*>(out);
#if defined(__AVX512BF16__)
  return kind == WeightKind::kInt8 ? ExpandPanel<DotInt8>(from, steps, to)
                                   : ExpandPanel<DotInt4>(from, steps, to);
#else
  return kind == WeightKind::kInt4 ? ExpandPanel<PanelInt4>(from, steps, to)
                                   : ExpandPanel<PanelInt8>(from, steps, to);
#endif
}

// One group is kLanes chains and a tree of sums, whatever else there is.
void SumGroups(const void* x, int64_t k, float* sums) {
  constexpr int64_t kGroup = kGroupSteps * 2;
  for (int64_t first = 0; first < k; first += kGroup) {
    const int64_t count = k - first < kGroup ? k - first : kGroup;
    Vec sum = hn::Zero(F32());
#if defined(__AVX512BF16__)
    const uint16_t* from = static_cast<const uint16_t*>(x) + first;
    const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
    for (int64_t i = 0; i < count; i += 32) {
      const int64_t have = count - i < 32 ? count - i : 32;
      const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << have) - 1);
      const __m512i part = _mm512_maskz_loadu_epi16(mask, from + i);
      sum.raw = _mm512_dpbf16_ps(sum.raw, reinterpret_cast<__m512bh>(part), ones);
    }
#else
    const float* from = static_cast<const float*>(x) + first;
    ForVectors(count, [&](int64_t i, auto part) { sum = hn::Add(sum, Load(part, from + i)); });
#endif
    *sums++ = hn::GetLane(hn::SumOfLanes(F32(), sum));
  }
}

template <int kRows>
void QuantizedTileOfRows(WeightKind kind, const LinearTile& t) {
#if defined(__AVX512BF16__)
  if (kind == WeightKind::kInt8) return DotGroupsTile<DotInt8, kRows>(t);
  if (kind == WeightKind::kInt4) return DotGroupsTile<DotInt4, kRows>(t);
  if constexpr (kRows <= kMaxPackedQuadRows) {
    if (kind == WeightKind::kW8A8) return QuadsTileOfRows<kRows, true>(t);
  }
  return DotGroupsTile<DotBf16, kRows>(t);
#else
  if (kind == WeightKind::kInt4) return FloatGroupsTile<PanelInt4, kRows>(t);
  if (kind == WeightKind::kBf16) return FloatGroupsTile<PanelBf16, kRows>(t);
  return FloatGroupsTile<PanelInt8, kRows>(t);
#endif
}

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
