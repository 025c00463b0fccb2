// The loops of ceilings_kernels.h for the instruction set that the including file is compiled for.
// Raw pointers only, no std:: (see linear_kernels.h for why).
#include <immintrin.h>

#include "backend/cpu/ceilings_kernels.h"

namespace lserve {
namespace {

// An empty statement that may change the accumulator, for all the compiler knows: otherwise it
// would fold the loop.
#if defined(__AVX512F__)
using Floats = __m512;
constexpr int kLanes = 16;
inline Floats MulAdd(Floats a, Floats b, Floats c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline Floats Broadcast(float x) {
  return _mm512_set1_ps(x);
}
using Words = __m512i;
inline Words LoadWords(const void* p) {
  return _mm512_load_si512(p);
}
#elif defined(__AVX2__)
using Floats = __m256;
constexpr int kLanes = 8;
inline Floats MulAdd(Floats a, Floats b, Floats c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline Floats Broadcast(float x) {
  return _mm256_set1_ps(x);
}
using Words = __m256i;
inline Words LoadWords(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}
#else
// Without a fused instruction: a multiplication and an addition.
using Floats = __m128;
constexpr int kLanes = 4;
inline Floats MulAdd(Floats a, Floats b, Floats c) {
  return _mm_add_ps(_mm_mul_ps(a, b), c);
}
inline Floats Broadcast(float x) {
  return _mm_set1_ps(x);
}
using Words = __m128i;
inline Words LoadWords(const void* p) {
  return _mm_load_si128(static_cast<const __m128i*>(p));
}
#endif

// 24 chains hide 6 cycles of latency at two vectors of AVX-512 per cycle; the smaller register file
// of AVX2 and SSE holds 12, enough for 5 cycles.
#if defined(__AVX512F__)
constexpr int kChains = 24;
#else
constexpr int kChains = 12;
#endif

// NOLINTBEGIN(hicpp-no-assembler)
void F32Fma(int64_t steps, float* sink) {
  Floats sums[kChains];
  const Floats x = Broadcast(0.5f);
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sums[i] = Broadcast(0.0f);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) {
      sums[i] = MulAdd(sums[i], x, x);
      asm volatile("" : "+x"(sums[i]));
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) *sink += sums[i][0];
}
constexpr double kF32Flop = 2.0 * kChains * kLanes;

#if defined(__AVX512BF16__)
void Bf16Dot(int64_t steps, float* sink) {
  __m512 sums[kChains];
  const __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f80);  // 1.0
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_setzero_ps();
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) {
      sums[i] = _mm512_dpbf16_ps(sums[i], x, x);
      asm volatile("" : "+v"(sums[i]));
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) *sink += _mm512_cvtss_f32(sums[i]);
}
constexpr double kBf16Flop = 2.0 * kChains * 32;

void Int8Dot(int64_t steps, uint32_t* sink) {
  __m512i sums[kChains];
  const __m512i x = _mm512_set1_epi8(1);
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_setzero_si512();
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) {
      sums[i] = _mm512_dpbusd_epi32(sums[i], x, x);
      asm volatile("" : "+v"(sums[i]));
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) *sink += static_cast<uint32_t>(sums[i][0]);
}
constexpr double kInt8Op = 2.0 * kChains * 64;
#endif
// NOLINTEND(hicpp-no-assembler)

uint64_t ReadBytes(const void* data, int64_t bytes) {
  constexpr int64_t kWordBytes = sizeof(Words);
  constexpr int kSums = 8;
  const char* at = static_cast<const char*>(data);
  // Unsigned lanes: the sum of arbitrary words wraps.
  using Sums __attribute__((vector_size(sizeof(Words)))) = unsigned long long;
  Sums sums[kSums] = {};
  for (const char* const end = at + bytes; at < end; at += kSums * kWordBytes) {
#pragma GCC unroll 8
    for (int i = 0; i < kSums; ++i) sums[i] += (Sums)LoadWords(at + i * kWordBytes);
  }
  uint64_t total = 0;
  for (int i = 0; i < kSums; ++i) total += static_cast<uint64_t>(sums[i][0]);
  return total;
}

}  // namespace
}  // namespace lserve
