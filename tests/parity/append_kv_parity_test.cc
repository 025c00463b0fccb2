// AppendKv: what lies in the pages afterwards, seen through the ops that read them: a query that
// sees one key returns that key's stored value.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backend/kv_quant.h"
#include "parity/attention_cases.h"

namespace lserve::parity {
namespace {

class AppendKvParity : public testing::TestWithParam<SubjectAndType> {
 protected:
  const Subject& subject() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
};

// Queries that see their own key only: the values of all tokens, [tokens, q_cols]. The one weight
// need not be exactly 1: w * v, 1 / w and their product are rounded, 3 u in all. That is far below
// the distance of two bf16, so rounding to bf16 gives back what is stored, exactly.
std::vector<float> ReadValues(KvHarness& cache, const AttentionCase& c) {
  PagePlan plan = MakePlan(c);
  for (PlanRow& row : plan.rows) {
    row.window = 1;
    row.sink_end = 0;
  }
  std::vector<float> values = cache.Attend(Op::kPrefill, RandomQueries(c), plan);
  for (float& value : values) {
    const float stored = ToFloat(ToBf16(value));
    EXPECT_NEAR(value, stored, 4 * kFloatRoundoff * std::abs(stored));
    value = stored;
  }
  return values;
}

// Values of many magnitudes, vectors of one value, zeros, and numbers at the ends of F16.
TokenFill OddTokens(int head_dim) {
  return [=](const TokenAt& at, float* k, float* v) {
    RandomTokens(9, head_dim)(at, k, v);
    const float scales[] = {1.0f, 1e-6f, 3e3f, 0.0f, 1e-2f};
    for (int d = 0; d < head_dim; ++d) v[d] *= scales[at.position % 5];
    if (at.position % 7 == 3) std::fill_n(v, head_dim, 0.3f);
    if (at.position % 7 == 5) v[0] = at.position % 2 == 0 ? 60000.0f : -60000.0f;
  };
}

TEST_P(AppendKvParity, StoresExactlyWhatTheFormatSays) {
  const std::unique_ptr<Backend> backend = Make(subject());
  for (const int head_dim : {16, 20, 32, 80, 96, 128}) {
    if (!subject().Supports(head_dim)) continue;
    AttentionCase c = {.head_dim = head_dim, .contexts = {0, 0}, .num_queries = 131};
    KvHarness cache(*backend, c.Shape(dtype()), OddTokens(head_dim));
    cache.Fill(37);
    const std::vector<float> got = ReadValues(cache, c);
    std::vector<float> expected;
    std::vector<float> k(static_cast<size_t>(head_dim)), v(k);
    for (int s = 0; s < 2; ++s) {
      for (int64_t p = 0; p < c.num_queries; ++p) {
        for (int head = 0; head < c.num_kv_heads; ++head) {
          OddTokens(head_dim)({0, s, p, head}, k.data(), v.data());
          const std::vector<float> stored = Stored(v, dtype());
          for (int h = 0; h < c.group; ++h) {
            expected.insert(expected.end(), stored.begin(), stored.end());
          }
        }
      }
    }
    ASSERT_TRUE(Near(got, expected, 0.0, cache.shape().q_cols())) << head_dim;
  }
}

// Every code that fp8 pages may hold, of both signs, and between any two neighbours the half way
// and the floats beside it, where a conversion may go either way; times powers of two, from those
// that are stored as zeros to the largest.
TEST_P(AppendKvParity, RoundsEveryFp8CodeAndTieAsTheFormatSays) {
  if (dtype() != DType::kFp8) return;
  const std::unique_ptr<Backend> backend = Make(subject());
  std::vector<float> numbers;
  for (int code = 0; ToFloat(E4m3{static_cast<uint8_t>(code)}) < 256.0f; ++code) {
    const float low = ToFloat(E4m3{static_cast<uint8_t>(code)});
    const float tie = (low + ToFloat(E4m3{static_cast<uint8_t>(code + 1)})) / 2;
    for (const float x : {low, std::nextafter(tie, 0.0f), tie, std::nextafter(tie, 256.0f)}) {
      numbers.insert(numbers.end(), {x, -x});
    }
  }
  const AttentionCase c = {.head_dim = 32, .contexts = {0}, .num_queries = 160};
  const auto fill = [&](const TokenAt& at, float* k, float* v) {
    RandomTokens(9, c.head_dim)(at, k, v);
    const int exponents[] = {-126, -110, -30, 0, 7};
    const int64_t run = at.position / 5 * 31;  // 32 runs of 31 numbers, five times each
    for (int d = 1; d < c.head_dim; ++d) {
      const float x = numbers[static_cast<size_t>(run + d - 1) % numbers.size()];
      v[d] = std::ldexp(x, exponents[at.position % 5]);
    }
    v[0] = std::ldexp(128.0f, exponents[at.position % 5]);  // makes the scale that power of two
  };
  KvHarness cache(*backend, c.Shape(dtype()), fill);
  cache.Fill(37);
  const std::vector<float> got = ReadValues(cache, c);
  std::vector<float> expected, k(static_cast<size_t>(c.head_dim)), v(k);
  for (int64_t p = 0; p < c.num_queries; ++p) {
    for (int head = 0; head < c.num_kv_heads; ++head) {
      fill({0, 0, p, head}, k.data(), v.data());
      const std::vector<float> stored = Stored(v, dtype());
      for (int h = 0; h < c.group; ++h) {
        expected.insert(expected.end(), stored.begin(), stored.end());
      }
    }
  }
  ASSERT_TRUE(Near(got, expected, 0.0, cache.shape().q_cols()));
}

// A page that is used again forgets what it held: keys, values and statistics.
TEST_P(AppendKvParity, RecycledPagesForget) {
  const std::unique_ptr<Backend> backend = Make(subject());
  AttentionCase c = {.kinds = {1, 1}, .contexts = {600}};
  const std::vector<float> q = RandomQueries(c);
  KvHarness fresh(*backend, c.Shape(dtype()), RandomTokens(21, c.head_dim), 3);
  KvHarness used(*backend, c.Shape(dtype()), RandomTokens(20, c.head_dim, 50.0f), 4);
  used.Fill();
  used.Refill(RandomTokens(21, c.head_dim));
  fresh.Fill();
  used.Fill(5);
  const PagePlan plan = MakePlan(c);
  for (const Op op : {Op::kPrefill, Op::kDecode}) {
    EXPECT_TRUE(
        SameBits(used.Attend(op, q, plan), fresh.Attend(op, q, plan), fresh.shape().q_cols()));
  }
  const SelectRequest request = {.num_pages = 10, .budget_pages = 5, .table = {}};
  EXPECT_EQ(used.Select(q, request), fresh.Select(q, request));
}

// A copied page behaves as if only the copied tokens had been appended, and is extended apart.
TEST_P(AppendKvParity, ACopiedTailPageGrowsApart) {
  const std::unique_ptr<Backend> backend = Make(subject());
  // Two pages of sequence 0; page 0 is copied over page 1 and read there.
  AttentionCase c = {.kinds = {1, 0}, .contexts = {0}, .num_queries = 128};
  KvHarness cache(*backend, c.Shape(dtype()), RandomTokens(22, c.head_dim));
  cache.Fill();
  const int64_t cols = cache.shape().q_cols();
  const std::vector<float> before = ReadValues(cache, c);
  for (const Way way : kWays) cache.CopyPage(way, 0, 1, 20);
  const std::vector<float> copied = ReadValues(cache, c);
  for (int64_t i = 0; i < 20 * cols; ++i) {
    ASSERT_EQ(copied[static_cast<size_t>(64 * cols + i)], before[static_cast<size_t>(i)]) << i;
  }
  cache.Append(64 + 20, 44);
  const std::vector<float> after = ReadValues(cache, c);
  for (int64_t i = 0; i < 64 * cols; ++i) {
    ASSERT_EQ(after[static_cast<size_t>(i)], before[static_cast<size_t>(i)]) << "the original";
  }
  for (int64_t i = 84 * cols; i < 128 * cols; ++i) {
    ASSERT_EQ(after[static_cast<size_t>(i)], before[static_cast<size_t>(i)]) << "appended after";
  }
}

TEST_P(AppendKvParity, NotANumberAndInfinityDoNoHarmElsewhere) {
  const std::unique_ptr<Backend> backend = Make(subject());
  AttentionCase c = {.kinds = {1, 0}, .contexts = {150}};
  const int head_dim = c.head_dim;
  const TokenFill fine = RandomTokens(23, head_dim);
  const TokenFill broken = [=](const TokenAt& at, float* k, float* v) {
    fine(at, k, v);
    if (at.head == 0 && at.position == 70) {
      k[3] = v[3] = std::numeric_limits<float>::quiet_NaN();
      k[4] = v[4] = std::numeric_limits<float>::infinity();
      k[5] = v[5] = -std::numeric_limits<float>::infinity();
    }
  };
  KvHarness good(*backend, c.Shape(dtype()), fine, 2);
  KvHarness bad(*backend, c.Shape(dtype()), broken, 3);
  good.Fill();
  bad.Fill();
  const std::vector<float> q = RandomQueries(c);
  const std::vector<float> expected = good.Attend(Op::kDecode, q, MakePlan(c));
  const std::vector<float> got = bad.Attend(Op::kDecode, q, MakePlan(c));
  for (size_t i = static_cast<size_t>(c.group * head_dim); i < got.size(); ++i) {
    ASSERT_EQ(got[i], expected[i]) << "the other head";
  }
  // What the broken head selects is anybody's guess, but it is a list of the right size.
  for (const std::vector<PageRun>& list :
       bad.Select(q, {.num_pages = 3, .newest_pages = 1, .budget_pages = 2, .table = {}})) {
    EXPECT_EQ(list.front().first, 0);
    EXPECT_EQ(list.back().last, 3);
  }
}

TEST(AppendKvParityCases, PlantedErrorsAreCaught) {
  // One code more at one place is not equal.
  const std::vector<float> x = RandomFloats(1, 64);
  for (const DType dtype : {DType::kInt8, DType::kInt4}) {
    const int levels = QuantLevels(dtype);
    const QuantScale scale = ChooseQuantScale(x.data(), 64, levels);
    const uint8_t code = QuantCode(x[5], scale, levels);
    EXPECT_NE(ToFloat(Dequantize(code, scale)), ToFloat(Dequantize(code ^ 1, scale)));
  }
  const uint8_t exponent = ChooseFp8Exponent(x.data(), 64), code = Fp8Code(x[5], exponent);
  EXPECT_NE(ToFloat(DequantizeFp8(code, exponent)), ToFloat(DequantizeFp8(code ^ 1, exponent)));
}

// A type that a backend forgets would else be tested nowhere.
TEST(KvTypes, AreThoseOfTheBackend) {
  for (const Subject& subject : Subjects()) {
    for (const DType dtype : kKvDTypes) {
      EXPECT_EQ(Make(subject, 1)->has_kv_dtype(dtype), subject.HasKvType(dtype))
          << subject.name << " " << Name(dtype);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All,
                         AppendKvParity,
                         testing::ValuesIn(WithKvTypes(Subjects())),
                         SubjectTypeName);

}  // namespace
}  // namespace lserve::parity
