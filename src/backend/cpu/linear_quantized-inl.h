// Register tiles of Linear over quantised weights. See linear_kernels-inl.h.
#include "backend/cpu/linear_tiles-inl.h"

namespace lserve {
namespace LS_ISA {

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

}  // namespace LS_ISA
}  // namespace lserve
