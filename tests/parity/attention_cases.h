// Attention batches, the plans for them, and what the result may be off by. Used by the prefill and
// the decode suite, which have the same cases except for the number of queries.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parity/kv_harness.h"

namespace lserve::parity {

// Every sequence has `context` tokens and then `num_queries` tokens that attend.
struct AttentionCase {
  std::string name = {};
  int head_dim = 64;
  int num_kv_heads = 2;
  std::vector<uint8_t> kinds = {1, 0};
  int group = 2;
  std::vector<int64_t> contexts = {100};
  int num_queries = 1;
  int64_t sink_end = 64;
  int64_t window = 100;  // of the streaming way

  KvShape Shape(DType dtype) const {
    KvShape shape = {.dtype = dtype,
                     .head_dim = head_dim,
                     .num_kv_heads = num_kv_heads,
                     .kinds = kinds,
                     .group = group,
                     .num_tokens = {}};
    for (const int64_t n : contexts) shape.num_tokens.push_back(n + num_queries);
    return shape;
  }
  int num_rows() const { return static_cast<int>(contexts.size()) * num_queries; }
};

// Appends to `plan` the row of queries [first, first + count) of one sequence and way, visiting the
// pages that a query of it can see and no others.
inline void AddRow(
    PagePlan& plan, const AttentionCase& c, Way way, int sequence, int first, int count) {
  PlanRow row;
  row.sequence = sequence;
  row.way = way;
  row.first_query = sequence * c.num_queries + first;
  row.num_queries = count;
  row.first_position = c.contexts[static_cast<size_t>(sequence)] + first;
  row.first_run = static_cast<int>(plan.runs.size());
  const PageIdx end = NumPages(row.first_position + count);
  row.newest = {0, end};
  if (way == Way::kStreaming) {
    row.sink_end = c.sink_end;
    row.window = c.window;
    const int64_t first_key = std::max<int64_t>(0, row.first_position - c.window + 1);
    row.newest.first = static_cast<PageIdx>(first_key / kPageTokens);
    const PageIdx sink_pages = std::min(NumPages(c.sink_end), row.newest.first);
    if (sink_pages > 0) plan.runs.push_back({0, sink_pages});
    row.num_runs = sink_pages > 0 ? 1 : 0;
  }
  plan.rows.push_back(row);
}

// Rows of at most `tile` queries, cut at absolute multiples of it, for both ways.
inline PagePlan MakePlan(const AttentionCase& c, int tile = kTileTokens) {
  PagePlan plan;
  for (int s = 0; s < static_cast<int>(c.contexts.size()); ++s) {
    const int64_t position = c.contexts[static_cast<size_t>(s)];
    for (int first = 0; first < c.num_queries;) {
      const int to_edge = tile - static_cast<int>((position + first) % tile);
      const int count = std::min(to_edge, c.num_queries - first);
      for (const Way way : kWays) AddRow(plan, c, way, s, first, count);
      first += count;
    }
  }
  return plan;
}

inline std::vector<float> RandomQueries(const AttentionCase& c, float amplitude = 1.0f) {
  const int64_t cols = int64_t{c.num_kv_heads} * c.group * c.head_dim;
  return RandomFloats(4711, c.num_rows() * cols, amplitude);
}

// How far attention may be from exact arithmetic on the same stored K/V, with |q|, |k| and |v| up
// to `amplitude` each. u = 2^-24, D = head_dim, N = keys, B = bound of |score| = scale D a^2.
//
// A score is a chain of D products (at most 2 roundings each), scaled, and the maximum subtracted,
// itself such a score: 2 (2 D + 4) u B in all; when the maximum rises, what was summed before is
// rescaled, and the telescoping exponents add 2 u B and a few u per page. The exponential is within
// 4e-6. So a weight is off by a factor of 1 +- e; the result, a convex combination of rows of V,
// by e max|v_i - out| <= 2 e max|V|. The sums of N weights and of N products add 2 N u max|V|.
// Weights rounded to bf16 (and summed as rounded) add their roundoff to e.
inline double Tolerance(const AttentionCase& c, const Subject& subject, double amplitude = 1.0) {
  const double d = c.head_dim;
  const double n =
      static_cast<double>(*std::max_element(c.contexts.begin(), c.contexts.end()) + c.num_queries);
  const double bound = std::sqrt(d) * amplitude * amplitude;
  const double u = kFloatRoundoff;
  const double weight = 2 * (2 * d + 4) * u * bound + 2 * u * bound + 4 * u * n / kPageTokens +
                        4e-6 + (subject.rounds_weights ? kBf16Roundoff : 0.0);
  return (2 * weight + 2 * n * u) * amplitude;
}

// The reference's output for random tokens of seed 1 and RandomQueries(c), computed once per case
// and type, since the suites compare every other backend with it.
inline const std::vector<float>& ReferenceOutput(const AttentionCase& c, DType dtype, Op op) {
  static std::map<std::string, std::vector<float>> outputs;
  std::vector<float>& out = outputs[StrCat(c.name, " ", Name(dtype))];
  if (out.empty()) {
    const std::unique_ptr<Backend> reference = Make(Subjects().front());
    KvHarness cache(*reference, c.Shape(dtype), RandomTokens(1, c.head_dim), 6);
    cache.Fill();
    out = cache.Attend(op, RandomQueries(c), MakePlan(c));
  }
  return out;
}

// Keys are zero, so every visible key weighs exactly 1; the values are the bits of the position,
// plus an offset per head. The result is then a count over the number of visible keys, whatever the
// rounding inside: one key too many or too few anywhere shows.
inline int64_t CountedBits(int head, int64_t position) {
  return position + 97 * head;
}
inline TokenFill CountingTokens(int head_dim) {
  return [=](const TokenAt& at, float* k, float* v) {
    for (int d = 0; d < head_dim; ++d) {
      k[d] = 0;
      v[d] = static_cast<float>((CountedBits(at.head, at.position) >> d) & 1);
    }
  };
}

// What counting tokens give, from Visible() and the listed pages alone.
inline std::vector<float> ExpectedCounts(const AttentionCase& c, const PagePlan& plan) {
  const int64_t cols = int64_t{c.num_kv_heads} * c.group * c.head_dim;
  std::vector<float> expected(static_cast<size_t>(c.num_rows() * cols), KvHarness::kUntouched);
  for (const PlanRow& row : plan.rows) {
    int slot = -1;  // of the row's way, in layer 0
    for (int head = 0; head < c.num_kv_heads; ++head) {
      if ((c.kinds[static_cast<size_t>(head)] != 0) != (row.way == Way::kRetrieval)) continue;
      ++slot;
      for (int i = 0; i < row.num_queries; ++i) {
        int64_t visible = 0;
        std::vector<int64_t> counts(static_cast<size_t>(c.head_dim), 0);
        ForEachPage(plan, row, slot, [&](PageIdx page) {
          for (int64_t k = int64_t{page} * kPageTokens; k < (page + 1) * kPageTokens; ++k) {
            if (!Visible(row, row.first_position + i, k)) continue;
            ++visible;
            for (int d = 0; d < c.head_dim; ++d) {
              counts[static_cast<size_t>(d)] += (CountedBits(head, k) >> d) & 1;
            }
          }
        });
        for (int h = head * c.group; h < (head + 1) * c.group; ++h) {
          float* out = expected.data() + (row.first_query + i) * cols + h * c.head_dim;
          for (int d = 0; d < c.head_dim; ++d) {
            const double count = static_cast<double>(counts[static_cast<size_t>(d)]);
            out[d] = visible == 0 ? 0.0f : static_cast<float>(count / static_cast<double>(visible));
          }
        }
      }
    }
  }
  return expected;
}

// The counts are exact; the reciprocal, the product and the expected value are rounded once each.
inline constexpr double kCountTolerance = 3 * kFloatRoundoff;

// The lists of house style, "case list, not random luck". Contexts: nothing, one key, a page less
// or more one, a prime, many pages; windows and sinks around the page.
inline std::vector<AttentionCase> MaskCases(const Subject& subject, int num_queries) {
  std::vector<AttentionCase> cases;
  for (const int64_t window : {1, 63, 64, 65, 256}) {
    for (const int64_t sink : {0, 1, 64, 128}) {
      cases.push_back({.name = StrCat("window ", window, " sink ", sink),
                       .head_dim = subject.small_head_dim(),
                       .contexts = {0, 1, 63, 64, 65, 331},
                       .num_queries = num_queries,
                       .sink_end = sink,
                       .window = window});
    }
  }
  return cases;
}

inline std::vector<AttentionCase> ShapeCases(int num_queries) {
  std::vector<AttentionCase> cases;
  for (const int head_dim : {2, 16, 24, 32, 64, 80, 96, 100, 128, 256}) {
    cases.push_back({.name = StrCat("head_dim ", head_dim),
                     .head_dim = head_dim,
                     .contexts = {0, 131},
                     .num_queries = num_queries});
  }
  for (const int group : {1, 3, 5, 8}) {
    cases.push_back({.name = StrCat("group ", group),
                     .group = group,
                     .contexts = {65},
                     .num_queries = num_queries});
  }
  cases.push_back({.name = "all streaming", .kinds = {0, 0}, .num_queries = num_queries});
  cases.push_back({.name = "none streaming", .kinds = {1, 1}, .num_queries = num_queries});
  cases.push_back(
      {.name = "one head", .num_kv_heads = 1, .kinds = {1}, .num_queries = num_queries});
  cases.push_back({.name = "three heads",
                   .num_kv_heads = 3,
                   .kinds = {0, 1, 0},
                   .contexts = {1, 63, 64},
                   .num_queries = num_queries});
  return cases;
}

}  // namespace lserve::parity
