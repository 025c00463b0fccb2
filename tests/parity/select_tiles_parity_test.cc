// SelectTiles: lists of key tiles, compared exactly wherever the masses leave no doubt.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "parity/attention_cases.h"

namespace lserve::parity {
namespace {

constexpr int kRows = kTileTokens / kTileStride;
constexpr int kTilePages = kTileTokens / kPageTokens;

// The stored keys of one head of layer 0, [tokens][head_dim].
std::vector<std::vector<float>> StoredKeys(
    const KvShape& shape, const TokenFill& fill, int sequence, int kv_head, int64_t tokens) {
  std::vector<std::vector<float>> keys;
  std::vector<float> k(static_cast<size_t>(shape.head_dim)), v(k);
  for (int64_t t = 0; t < tokens; ++t) {
    fill({0, sequence, t, kv_head}, k.data(), v.data());
    keys.push_back(Stored(k, shape.dtype));
  }
  return keys;
}

// The mass of every key tile, straight from the definition in ops.h and from the tokens.
std::vector<double> Mass(const KvShape& shape,
                         const TokenFill& fill,
                         const std::vector<float>& q,
                         const TileSelectRequest& request,
                         int kv_head) {
  const int64_t tokens = request.first_position + kTileTokens;
  const auto keys = StoredKeys(shape, fill, request.sequence, kv_head, tokens);
  std::vector<double> mass(static_cast<size_t>(tokens / kTileTokens), 0.0);
  for (int h = kv_head * shape.group; h < (kv_head + 1) * shape.group; ++h) {
    for (int row = 0; row < kRows; ++row) {
      std::vector<double> scores;
      for (int64_t c = 0; c <= request.first_position / kTileStride + row; ++c) {
        double sum = 0;
        for (int s = 0; s < kTileStride; ++s) {
          const float* x = q.data() +
                           (request.first_query + row * kTileStride + s) * shape.q_cols() +
                           int64_t{h} * shape.head_dim;
          const auto& key = keys[static_cast<size_t>(c * kTileStride + kTileStride - 1 - s)];
          for (int d = 0; d < shape.head_dim; ++d) {
            sum += double{ToFloat(ToBf16(x[d]))} * double{key[static_cast<size_t>(d)]};
          }
        }
        scores.push_back(sum / std::sqrt(static_cast<double>(shape.head_dim)) / kTileStride);
      }
      const double max = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (double& s : scores) sum += s = std::exp(s - max);
      for (size_t c = 0; c < scores.size(); ++c) {
        mass[c / kRows] += scores[c] / sum / (kRows * shape.group);
      }
    }
  }
  return mass;
}

// Keys of random tiles: as far as a tile's strength, along a direction that all queries share,
// goes.
TokenFill TilesOfStrengths(uint64_t seed, int head_dim) {
  return [=](const TokenAt& at, float* k, float* v) {
    RandomTokens(seed, head_dim)(at, k, v);
    const uint64_t tile = static_cast<uint64_t>(at.position / kTileTokens);
    const float strength = Rng(seed * 977 + tile * 16 + static_cast<uint64_t>(at.head)).NextFloat();
    for (int d = 0; d < head_dim; ++d) k[d] = 0.5f * k[d] + 0.5f * strength;
  };
}

// In [0, amplitude).
std::vector<float> PositiveQueries(uint64_t seed, int64_t count, float amplitude) {
  std::vector<float> q = RandomFloats(seed, count, amplitude / 2);
  for (float& x : q) x += amplitude / 2;
  return q;
}

// A score is at most 64 chains (16 lanes, or 4 of 4 lanes) over at most 4 D products of numbers up
// to `a` and 1, 2 roundings each, and the chains are added in at most 8 steps: off by
// (8 D + 8) u times the sum of the magnitudes, 16 D a. It is scaled by 1 / (16 sqrt(D)), a float,
// and the maximum, such a score, subtracted: 2 (8 D + 12) u sqrt(D) a in all. The exponential is
// within 4e-6, and a tile's sum of 8 weights adds 8 u. A weight over its sum lies within a factor
// e^{+-2 x} of its exact value, and so does the mean over rows.
double RelativeError(int head_dim, double a) {
  const double d = head_dim;
  const double score = 2 * (8 * d + 12) * kFloatRoundoff * std::sqrt(d) * a;
  return std::expm1(2 * (score + 4e-6 + 8 * kFloatRoundoff));
}

std::vector<int> Tiles(const std::vector<PageRun>& runs) {
  std::vector<int> tiles;
  for (size_t i = 0; i < runs.size(); ++i) {
    EXPECT_EQ(runs[i].first % kTilePages, 0) << "whole tiles";
    EXPECT_EQ(runs[i].last % kTilePages, 0) << "whole tiles";
    EXPECT_LT(runs[i].first, runs[i].last);
    if (i > 0) {
      EXPECT_GT(runs[i].first, runs[i - 1].last) << "ascending, merged runs";
    }
    for (int t = runs[i].first / kTilePages; t < runs[i].last / kTilePages; ++t) tiles.push_back(t);
  }
  return tiles;
}

// Whether `runs` is what the masses demand; counts the lists that had no doubt in `exact`.
void ExpectChoice(const TileSelectRequest& request,
                  const std::vector<double>& mass,
                  const std::vector<PageRun>& runs,
                  double relative_error,
                  int* exact) {
  const std::vector<int> tiles = Tiles(runs);
  const int num_tiles = static_cast<int>(mass.size());
  const int listed = std::max(0, num_tiles - request.newest_tiles);
  const int sink = std::min(request.sink_tiles, listed);
  std::vector<int> order;
  double read = 0;
  for (int t = 0; t < num_tiles; ++t) {
    if (t >= sink && t < listed) order.push_back(t);
    if (t < sink || t >= listed) read += mass[static_cast<size_t>(t)];
  }
  const auto mass_of = [&](int t) { return mass[static_cast<size_t>(t)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return mass_of(a) > mass_of(b); });
  // All masses together are 1, so `read` is off by at most the relative error.
  bool doubt = false;
  size_t count = 0;
  const size_t most =
      std::min(order.size(), static_cast<size_t>(std::max(0, request.max_listed_tiles - sink)));
  while (true) {
    if (count == most) break;
    doubt = doubt || std::abs(read - request.threshold) <= relative_error;
    if (read >= request.threshold) break;
    read += mass_of(order[count++]);
  }
  if (count > 0 && count < order.size()) {
    doubt = doubt || mass_of(order[count - 1]) * (1 - relative_error) <=
                         mass_of(order[count]) * (1 + relative_error);
  }
  std::vector<int> expected(order.begin(), order.begin() + static_cast<int64_t>(count));
  for (int t = 0; t < sink; ++t) expected.push_back(t);
  std::sort(expected.begin(), expected.end());
  if (!doubt) {
    ++*exact;
    ASSERT_EQ(tiles, expected);
    return;
  }
  // In doubt: the sink is there, nothing that is read anyway is, and the list's own mass is right.
  double got = 0;
  for (int t = 0; t < num_tiles; ++t) got += t >= listed ? mass_of(t) : 0.0;
  for (const int t : tiles) {
    ASSERT_LT(t, listed);
    got += mass_of(t);
  }
  for (int t = 0; t < sink; ++t) ASSERT_TRUE(std::binary_search(tiles.begin(), tiles.end(), t));
  ASSERT_LE(tiles.size(), most + static_cast<size_t>(sink));
  if (tiles.size() < most + static_cast<size_t>(sink)) {
    EXPECT_GE(got, request.threshold - 2 * relative_error);
  }
}

class TileParity : public testing::TestWithParam<SubjectAndType> {
 protected:
  const Subject& subject() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  KvShape Shape(int head_dim, int group, std::vector<int64_t> num_tokens) const {
    return {.dtype = dtype(),
            .head_dim = head_dim,
            .num_kv_heads = 3,
            .kinds = {1, 0, 1},
            .group = group,
            .num_tokens = std::move(num_tokens)};
  }
};

// 20 tiles: two pieces of the cpu backend. Keys after the tile are there and must not count.
TEST_P(TileParity, KeepsTheHeaviestTiles) {
  const std::unique_ptr<Backend> backend = Make(subject());
  int exact = 0, lists = 0;
  for (const auto& [head_dim, group] : {std::pair{16, 1}, {20, 2}, {64, 2}, {80, 3}, {128, 1}}) {
    if (!subject().Supports(head_dim)) continue;
    const KvShape shape = Shape(head_dim, group, {100, 20 * 128 + 37});
    const TokenFill fill = TilesOfStrengths(40, head_dim);
    KvHarness cache(*backend, shape, fill);
    cache.Fill(200);
    const float amplitude = 2.0f;
    const std::vector<float> q = PositiveQueries(41, (kTileTokens + 3) * shape.q_cols(), amplitude);
    for (const auto& [tile, sink, newest, threshold, most] : {std::tuple{19, 1, 2, 0.6, kAllTiles},
                                                              {15, 1, 2, 0.9, kAllTiles},
                                                              {16, 2, 1, 0.5, kAllTiles},
                                                              {3, 0, 1, 0.7, kAllTiles},
                                                              {2, 1, 2, 0.99, kAllTiles},
                                                              {7, 1, 2, 0.9, 3},
                                                              {6, 2, 2, 0.9, 2}}) {
      const TileSelectRequest request = {.sequence = 1,
                                         .first_query = 3,
                                         .first_position = int64_t{tile} * kTileTokens,
                                         .sink_tiles = sink,
                                         .newest_tiles = newest,
                                         .threshold = threshold,
                                         .max_listed_tiles = most,
                                         .table = {}};
      const auto got = cache.SelectTiles(q, {request})[0];
      ASSERT_EQ(got.size(), 2u);
      for (int slot = 0; slot < 2; ++slot) {
        SCOPED_TRACE(StrCat("head_dim ", head_dim, " group ", group, " tile ", tile, " threshold ",
                            threshold, " most ", most, " slot ", slot));
        ExpectChoice(request, Mass(shape, fill, q, request, slot * 2),
                     got[static_cast<size_t>(slot)], RelativeError(head_dim, double{amplitude}),
                     &exact);
        ++lists;
      }
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GE(exact, lists * 2 / 3) << "of " << lists << " lists had no doubt";
}

// A tile whose keys answer the queries is found, wherever it lies, by each head of the group.
TEST_P(TileParity, FindsAPlantedTile) {
  const std::unique_ptr<Backend> backend = Make(subject());
  const int head_dim = 32;
  const KvShape shape = Shape(head_dim, 2, {24 * 128});
  for (const int planted : {1, 7, 15, 16, 20}) {
    const TokenFill fill = [&](const TokenAt& at, float* k, float* v) {
      RandomTokens(42, head_dim)(at, k, v);
      if (at.position / kTileTokens != planted) return;
      for (int d = 0; d < head_dim; ++d) k[d] = 1.0f;
    };
    KvHarness cache(*backend, shape, fill);
    cache.Fill();
    const std::vector<float> q(static_cast<size_t>(kTileTokens * shape.q_cols()), 1.0f);
    // Tile 1 continues the sink's run.
    const std::vector<PageRun> expected =
        planted == 1 ? std::vector<PageRun>{{0, 4}}
                     : std::vector<PageRun>{{0, 2}, {2 * planted, 2 * planted + 2}};
    const auto lists =
        cache.SelectTiles(q, {{.first_position = 23 * 128, .threshold = 0.5, .table = {}}})[0];
    for (const std::vector<PageRun>& list : lists) EXPECT_EQ(list, expected);
  }
}

// Query s of a row points along dimension s. Only the keys of the planted tile do the same in
// reverse order; in every other tile they match on the diagonal, which must not count.
TEST_P(TileParity, PairsAlongTheAntidiagonal) {
  const std::unique_ptr<Backend> backend = Make(subject());
  const int head_dim = 32;
  const int planted = 5;
  const TokenFill fill = [&](const TokenAt& at, float* k, float* v) {
    std::fill_n(k, head_dim, 0.0f);
    std::fill_n(v, head_dim, 0.0f);
    const int64_t s = at.position % kTileStride;
    k[at.position / kTileTokens == planted ? kTileStride - 1 - s : s] = 1.0f;
  };
  const KvShape shape = Shape(head_dim, 2, {10 * 128});
  KvHarness cache(*backend, shape, fill);
  cache.Fill();
  std::vector<float> q(static_cast<size_t>(kTileTokens * shape.q_cols()), 0.0f);
  for (int i = 0; i < kTileTokens; ++i) {
    for (int h = 0; h < shape.num_q_heads(); ++h) {
      q[static_cast<size_t>(i * shape.q_cols() + h * head_dim + i % kTileStride)] = 32.0f;
    }
  }
  const std::vector<PageRun> expected = {{0, 2}, {2 * planted, 2 * planted + 2}};
  const auto lists =
      cache.SelectTiles(q, {{.first_position = 9 * 128, .threshold = 0.9, .table = {}}})[0];
  for (const std::vector<PageRun>& list : lists) EXPECT_EQ(list, expected);
}

// With equal keys, row r of tile 1 spreads its weight evenly over the 8 columns of tile 0 and r + 1
// of its own: its own tile has mean((r + 1) / (r + 9)) = 0.3371. One column less would give 0.2747,
// all 8 columns 0.5.
TEST_P(TileParity, RowsSeeTheColumnsUpToTheirOwn) {
  const std::unique_ptr<Backend> backend = Make(subject());
  const KvShape shape = Shape(32, 2, {2 * 128});
  const TokenFill fill = [](const TokenAt&, float* k, float* v) {
    std::fill_n(k, 32, 0.5f);
    std::fill_n(v, 32, 0.5f);
  };
  KvHarness cache(*backend, shape, fill);
  cache.Fill();
  const std::vector<float> q = RandomFloats(45, kTileTokens * shape.q_cols());
  for (const double threshold : {0.335, 0.339}) {
    const auto lists = cache.SelectTiles(q, {{.first_position = 128,
                                              .sink_tiles = 0,
                                              .newest_tiles = 1,
                                              .threshold = threshold,
                                              .table = {}}})[0];
    for (const std::vector<PageRun>& list : lists) {
      EXPECT_EQ(list.size(), threshold < 0.337 ? 0u : 1u) << threshold;
    }
  }
}

// More tiles than one round of a warp takes, with gaps.
TEST_P(TileParity, ReadsNoMoreThanAllowed) {
  const std::unique_ptr<Backend> backend = Make(subject());
  const int head_dim = 32, own = 47;
  const KvShape shape = Shape(head_dim, 1, {(own + 1) * 128});
  const auto heavy = [](int64_t tile) { return tile % 5 != 4; };
  const TokenFill fill = [&](const TokenAt& at, float* k, float* v) {
    RandomTokens(50, head_dim)(at, k, v);
    for (int d = 0; d < head_dim; ++d) k[d] = heavy(at.position / kTileTokens) ? 1.0f : 0.0f;
  };
  KvHarness cache(*backend, shape, fill);
  cache.Fill();
  const std::vector<float> q(static_cast<size_t>(kTileTokens * shape.q_cols()), 1.0f);
  for (const int most : {1, 33, 34, kAllTiles}) {
    SCOPED_TRACE(most);
    const auto lists = cache.SelectTiles(q, {{.first_position = int64_t{own} * kTileTokens,
                                              .threshold = 0.95,
                                              .max_listed_tiles = most,
                                              .table = {}}})[0];
    // 39 tiles have all the weight, the two newest among them; 0.95 of it takes 36 of the others.
    std::vector<int> expected = {0};
    const int count = std::min(most, 36);
    for (int tile = 1; static_cast<int>(expected.size()) < count; ++tile) {
      if (heavy(tile)) expected.push_back(tile);
    }
    for (const std::vector<PageRun>& list : lists) EXPECT_EQ(Tiles(list), expected);
  }
}

// Equal keys everywhere: all earlier tiles have equal masses, and ties go to the lower tile.
TEST_P(TileParity, TiesGoToTheLowerTile) {
  const std::unique_ptr<Backend> backend = Make(subject());
  const KvShape shape = Shape(64, 3, {12 * 128});
  const TokenFill fill = [](const TokenAt& at, float* k, float* v) {
    const TokenAt same = {at.layer, 0, 0, at.head};
    RandomTokens(43, 64)(same, k, v);
  };
  KvHarness cache(*backend, shape, fill);
  cache.Fill();
  const std::vector<float> q = RandomFloats(44, kTileTokens * shape.q_cols());
  // Row r spreads its weight evenly over 88 + r + 1 columns: a tile before the last has
  // mean(8 / (89 + r)) = 0.0866, the last one 1 - 11 * 0.0866 = 0.0474. Sink and newest two read
  // 0.2206; 0.6 is reached with 5 more.
  const std::vector<PageRun> expected = {{0, 12}};
  const auto lists =
      cache.SelectTiles(q, {{.first_position = 11 * 128, .threshold = 0.6, .table = {}}})[0];
  for (const std::vector<PageRun>& list : lists) EXPECT_EQ(list, expected);
}

// The prefix rule: same lists with any chunks, threads, physical pages and company, and whatever
// follows the tile.
TEST_P(TileParity, ListsDependOnTheTileAlone) {
  const int64_t rows = 3 * kTileTokens;
  const std::vector<float> q = RandomFloats(46, rows * 3 * 2 * 32, 20.0f);
  const auto request = [&](int sequence, int row, int tile) {
    return TileSelectRequest{.sequence = sequence,
                             .first_query = row,
                             .first_position = int64_t{tile} * kTileTokens,
                             .threshold = 0.8,
                             .table = {}};
  };
  using Lists = std::vector<std::vector<PageRun>>;
  std::vector<Lists> alone;
  for (const int threads : {1, 2, 3}) {
    if (subject().is_reference() && threads > 1) continue;  // it has one thread
    const std::unique_ptr<Backend> backend = Make(subject(), threads);
    const int64_t more = threads == 1 ? 0 : 50;
    KvHarness cache(*backend, Shape(32, 2, {40 * 128 + more, 17 * 128}), RandomTokens(47, 32),
                    static_cast<uint64_t>(threads));
    cache.Fill(1000 * threads + 3);
    const std::vector<TileSelectRequest> requests = {request(0, 0, 38), request(0, 128, 39),
                                                     request(1, 256, 16)};
    if (alone.empty()) {
      for (const TileSelectRequest& r : requests) {
        alone.push_back(cache.SelectTiles(q, {r})[0]);
        EXPECT_GT(Tiles(alone.back()[0]).size(), 1u);
      }
      EXPECT_NE(alone[0][0], alone[0][1]) << "each slot has its own list";
    }
    EXPECT_EQ(cache.SelectTiles(q, requests), alone) << threads;
  }
}

// Moving the weakest kept tile's mass out of the list is beyond the tolerance.
TEST(TileParityCases, PlantedErrorsAreCaught) {
  const std::unique_ptr<Backend> backend = Make(Subjects().front());
  const KvShape shape = {.head_dim = 64, .kinds = {1, 1}, .num_tokens = {12 * 128}};
  const TokenFill fill = TilesOfStrengths(48, 64);
  KvHarness cache(*backend, shape, fill);
  cache.Fill();
  const std::vector<float> q = PositiveQueries(49, kTileTokens * shape.q_cols(), 2.0f);
  const TileSelectRequest request = {.first_position = 11 * 128, .threshold = 0.7, .table = {}};
  const std::vector<int> right = Tiles(cache.SelectTiles(q, {request})[0][0]);
  const std::vector<double> mass = Mass(shape, fill, q, request, 0);
  ASSERT_GT(right.size(), 1u);
  double weakest = 1;
  for (const int t : right) {
    if (t > 0) weakest = std::min(weakest, mass[static_cast<size_t>(t)]);
  }
  EXPECT_GT(weakest, 4 * RelativeError(64, 2.0));
}

INSTANTIATE_TEST_SUITE_P(All,
                         TileParity,
                         testing::ValuesIn(WithKvTypes(SubjectsAndModes())),
                         SubjectTypeName);

}  // namespace
}  // namespace lserve::parity
