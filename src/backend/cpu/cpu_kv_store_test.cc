#include "backend/cpu/cpu_kv_store.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "backend/cpu/attention_test_util.h"

namespace lserve {
namespace {

std::vector<CpuIsa> Isas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : kAllCpuIsas) {
    if (isa <= BestCpuIsa()) isas.push_back(isa);
  }
  return isas;
}

const CpuKvStore& StoreOf(const TestCache& cache) {
  return static_cast<const CpuKvStore&>(*cache.store);
}

class CpuKvStoreOf : public testing::TestWithParam<DType> {};

// What lies in the pages is what kv_quant.h (or ToBf16) says, for every element, and the
// dequantised tile of unwritten tokens is zero.
TEST_P(CpuKvStoreOf, StoresTheNormativeNumbers) {
  for (const CpuIsa isa : Isas()) {
    CpuBackend backend(isa, 1);
    const AttentionKernels& kernels = GetAttentionKernels(isa);
    for (const int dim : {16, 80, 128}) {
      TestCache cache(backend, {.dtype = GetParam(), .head_dim = dim, .num_tokens = {64 + 37}});
      cache.v[0][3] = 1e30f;                       // far outside the range of the scales
      std::fill_n(cache.k[0].begin(), dim, 0.3f);  // a scale of (almost) nothing
      std::fill_n(cache.v[0].begin() + 2 * dim, dim, 0.0f);
      cache.Fill(7);
      const KvPart& part = StoreOf(cache).part();
      std::vector<uint16_t> keys(static_cast<size_t>(64 * dim));
      std::vector<uint16_t> values(keys.size());
      for (int page = 0; page < 2; ++page) {
        for (int head = 0; head < 2; ++head) {
          const HeadSlot at = cache.layout.slots[static_cast<size_t>(head)];
          const std::byte* kv = StoreOf(cache).kv_part(
              at.way, cache.tables[0][static_cast<size_t>(page)], 0, at.slot);
          if (GetParam() == DType::kBf16) {
            std::memcpy(keys.data(), kv, 2 * keys.size());
            std::memcpy(values.data(), kv + part.codes_bytes(), 2 * values.size());
          } else {
            kernels.dequantize_page(part.Quantized(kv), BitsOf(GetParam()), dim, keys.data(),
                                    values.data());
          }
          for (int t = 0; t < 64; ++t) {
            const bool written = page * 64 + t < cache.shape.num_tokens[0];
            std::vector<double> k(static_cast<size_t>(dim), 0.0);
            std::vector<double> v = k;
            if (written) k = cache.Stored(cache.k[0], page * 64 + t, head);
            if (written) v = cache.Stored(cache.v[0], page * 64 + t, head);
            for (int d = 0; d < dim; ++d) {
              const uint16_t key = keys[static_cast<size_t>((d / 2 * 64 + t) * 2 + d % 2)];
              const uint16_t value = values[static_cast<size_t>((t / 2 * dim + d) * 2 + t % 2)];
              ASSERT_EQ(ToFloat(Bf16{value}), v[static_cast<size_t>(d)]) << t << " " << d;
              if (!written) continue;
              ASSERT_EQ(ToFloat(Bf16{key}), k[static_cast<size_t>(d)])
                  << Name(isa) << " " << t << " " << d;
              ASSERT_EQ(part.Key(kv, t, d).bits, key);
            }
          }
        }
      }
    }
  }
}

// Statistics are exact extremes of the stored keys, whatever the pieces in which they came.
TEST_P(CpuKvStoreOf, KeepsExactStatistics) {
  constexpr int kDim = 48;
  for (const CpuIsa isa : Isas()) {
    CpuBackend backend(isa, 2);
    for (const int chunk : {1, 5, 16, 64, 1000}) {
      TestCache cache(
          backend, {.dtype = GetParam(), .head_dim = kDim, .kinds = {0, 1}, .num_tokens = {150}});
      cache.Fill(chunk);
      for (int l = 0; l < NumPages(150) * kLogicalPagesPerPage; ++l) {
        const int begin = l * kLogicalPageTokens;
        const int end = std::min(begin + kLogicalPageTokens, 150);
        if (begin >= end) break;
        const PageId id = cache.tables[0][static_cast<size_t>(l / kLogicalPagesPerPage)];
        const auto* max =
            reinterpret_cast<const uint16_t*>(StoreOf(cache).stats_part(Way::kRetrieval, id, 0, 0));
        const uint16_t* min = max + kDim * kLogicalPagesPerPage;
        for (int d = 0; d < kDim; ++d) {
          double high = -1e300;
          double low = 1e300;
          for (int t = begin; t < end; ++t) {
            const double key = cache.Stored(cache.k[0], t, 1)[static_cast<size_t>(d)];
            high = std::max(high, key);
            low = std::min(low, key);
          }
          const int at = (d / 2 * kLogicalPagesPerPage + l % kLogicalPagesPerPage) * 2 + d % 2;
          ASSERT_EQ(ToFloat(Bf16{max[at]}), high)
              << Name(isa) << " chunk " << chunk << " logical page " << l;
          ASSERT_EQ(ToFloat(Bf16{min[at]}), low);
        }
      }
    }
  }
}

// A copy of the first tokens of a page is as if only they had been appended, then goes its own way.
TEST_P(CpuKvStoreOf, CopiesPartsOfPages) {
  const CacheShape shape = {.dtype = GetParam(), .kinds = {1, 0}, .num_tokens = {64, 64}};
  for (const int kept : {1, 16, 29, 64}) {
    CpuBackend backend(BestCpuIsa(), 1);
    TestCache cache(backend, shape);
    cache.Append(0, 0, 64);
    for (const Way way : kWays)
      cache.store->CopyPage(way, cache.tables[0][0], cache.tables[1][0], kept);
    std::copy_n(cache.k[0].begin(), kept * 128, cache.k[1].begin());
    std::copy_n(cache.v[0].begin(), kept * 128, cache.v[1].begin());
    if (kept < 64) cache.Append(1, kept, 64 - kept);

    TestCache fresh(backend, shape);
    fresh.k = cache.k;
    fresh.v = cache.v;
    fresh.Append(1, 0, 64);
    for (const Way way : kWays) {
      const KvHeadBytes bytes = cache.layout.way(way).head_bytes;
      const PageId id = cache.tables[1][0];
      EXPECT_EQ(std::memcmp(StoreOf(cache).kv_part(way, id, 0, 0),
                            StoreOf(fresh).kv_part(way, id, 0, 0), bytes.kv),
                0);
      EXPECT_EQ(std::memcmp(StoreOf(cache).stats_part(way, id, 0, 0),
                            StoreOf(fresh).stats_part(way, id, 0, 0), bytes.stats),
                0)
          << kept;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types,
                         CpuKvStoreOf,
                         testing::Values(DType::kBf16, DType::kInt8, DType::kInt4),
                         [](const auto& type) { return std::string(Name(type.param)); });

}  // namespace
}  // namespace lserve
