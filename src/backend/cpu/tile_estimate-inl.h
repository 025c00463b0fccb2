// The kernels of SelectTiles, compiled once per instruction set after attention-inl.h, whose
// vectors they use. A logical page's 16 keys are 16 lanes of the page layout as it is stored; with
// the 16 queries of a strided row packed the same way but in reverse order, the antidiagonal sum is
// a lanewise dot product over the dimensions, and no key is moved.
#include "backend/cpu/attention-inl.h"

namespace lserve {
namespace {

constexpr int kEstimateRows = 8;  // of 16 queries: a tile of 128
constexpr int kStride = kLogicalPageTokens;
constexpr int kStrideVectors = kStride / kLanes;  // vectors per logical page and pair of dimensions
// Rows per register tile: rows x 4 accumulators, their left operands and the widened right one.
constexpr int kEstimateTileRows = kLanes == 16 ? 4 : 2;
constexpr int kLeftPerStep = kStride * kLeftPerPair;  // of one row and one pair of dimensions

// [8 rows][head_dim / 2][16 lanes]: pairs of bf16, or 16 even, then 16 odd elements in float. Lane
// l is query 15 - l of the row.
void PackStridedQueries(const StridedQueryArgs& args) {
  Left* to = static_cast<Left*>(args.packed);
  for (int row = 0; row < kEstimateRows; ++row) {
    for (int lane = 0; lane < kStride; ++lane) {
      const float* q =
          args.q + static_cast<int64_t>(row * kStride + kStride - 1 - lane) * args.q_stride;
      Left* at = to + static_cast<int64_t>(row) * (args.head_dim / 2) * kLeftPerStep + lane;
      for (int d = 0; d < args.head_dim; d += 2, at += kLeftPerStep) {
        const uint32_t even = d < args.width ? RoundToBf16(q[d]) : 0;
        const uint32_t odd = d + 1 < args.width ? RoundToBf16(q[d + 1]) : 0;
#if LS_BF16_DOT
        *at = even | (odd << 16);
#else
        at[0] = FloatOf(even << 16);
        at[kStride] = FloatOf(odd << 16);
#endif
      }
    }
  }
}

// The lane sums of four accumulators.
HWY_INLINE void StoreLaneSums(VecF a, VecF b, VecF c, VecF d, float* sums) {
  const hn::Repartition<uint64_t, D32> pairs;
  const VecF ab = hn::Add(hn::InterleaveLower(kF, a, b), hn::InterleaveUpper(kF, a, b));
  const VecF cd = hn::Add(hn::InterleaveLower(kF, c, d), hn::InterleaveUpper(kF, c, d));
  const auto ab2 = hn::BitCast(pairs, ab);
  const auto cd2 = hn::BitCast(pairs, cd);
  const VecF low = hn::BitCast(kF, hn::InterleaveLower(pairs, ab2, cd2));
  const VecF high = hn::BitCast(kF, hn::InterleaveUpper(pairs, ab2, cd2));
  alignas(64) float lanes[kLanes];  // a, b, c, d in every block of four
  hn::Store(hn::Add(low, high), kF, lanes);
  const hn::CappedTag<float, 4> four;
  auto sum = hn::Load(four, lanes);
  for (int block = 4; block < kLanes; block += 4) sum = hn::Add(sum, hn::Load(four, lanes + block));
  hn::StoreU(sum, four, sums);
}

template <int kRows>
HWY_INLINE void ScoreRows(
    const Left* q, int num_pairs, const uint16_t* keys, float* scores, int64_t stride) {
  VecF acc[kRows][kLogicalPagesPerPage];
  LS_UNROLL for (int i = 0; i < kRows; ++i) {
    LS_UNROLL for (int j = 0; j < kLogicalPagesPerPage; ++j) acc[i][j] = hn::Zero(kF);
  }
  const int64_t q_row = static_cast<int64_t>(num_pairs) * kLeftPerStep;
  for (int pair = 0; pair < num_pairs; ++pair) {
    LS_UNROLL for (int v = 0; v < kStrideVectors; ++v) {
      const Left* left = q + static_cast<int64_t>(pair) * kLeftPerStep + v * kLanes;
      LS_UNROLL for (int j = 0; j < kLogicalPagesPerPage; ++j) {
        const uint16_t* right = keys + 2 * (pair * kPageTokens + j * kStride + v * kLanes);
#if LS_BF16_DOT
        const __m512bh k = (__m512bh)_mm512_loadu_si512(right);
        LS_UNROLL for (int i = 0; i < kRows; ++i) {
          acc[i][j].raw =
              _mm512_dpbf16_ps(acc[i][j].raw, k, (__m512bh)_mm512_loadu_si512(left + i * q_row));
        }
#else
        const VecU k = LoadPairs(right);
        const VecF even = EvenOf(k);
        const VecF odd = OddOf(k);
        LS_UNROLL for (int i = 0; i < kRows; ++i) {
          acc[i][j] = hn::MulAdd(even, hn::LoadU(kF, left + i * q_row), acc[i][j]);
          acc[i][j] = hn::MulAdd(odd, hn::LoadU(kF, left + i * q_row + kStride), acc[i][j]);
        }
#endif
      }
    }
  }
  LS_UNROLL for (int i = 0; i < kRows; ++i) {
    StoreLaneSums(acc[i][0], acc[i][1], acc[i][2], acc[i][3], scores + i * stride);
  }
}

void ScoreStrided(const StridedScoreArgs& args) {
  const int num_pairs = args.head_dim / 2;
  const Left* q = static_cast<const Left*>(args.q);
  for (int page = 0; page < args.num_pages; ++page) {
    for (int row = 0; row < kEstimateRows; row += kEstimateTileRows) {
      ScoreRows<kEstimateTileRows>(
          q + static_cast<int64_t>(row) * num_pairs * kLeftPerStep, num_pairs, args.keys[page],
          args.scores + row * args.stride + page * kLogicalPagesPerPage, args.stride);
    }
  }
}

float SumTileWeights(const TileWeightArgs& args) {
  const int padded = (args.num_columns + kStride - 1) / kStride * kStride;
  float max = args.scores[0];
  for (int i = 1; i < args.num_columns; ++i) max = args.scores[i] > max ? args.scores[i] : max;
  for (int i = args.num_columns; i < padded; ++i) args.scores[i] = max;
  const VecF factor = hn::Set(kF, args.scale);
  const VecF offset = hn::Set(kF, -max * args.scale);
  for (int i = 0; i < padded; i += kLanes) {
    const VecF score = hn::LoadU(kF, args.scores + i);
    hn::StoreU(Exp2(hn::MulAdd(score, factor, offset)), kF, args.scores + i);
  }
  for (int i = args.num_columns; i < padded; ++i) args.scores[i] = 0;
  for (int tile = 0; tile * kEstimateRows < args.num_columns; ++tile) {
    const float* w = args.scores + tile * kEstimateRows;
    args.sums[tile] = ((w[0] + w[1]) + (w[2] + w[3])) + ((w[4] + w[5]) + (w[6] + w[7]));
  }
  return max;
}

// All of them, for attention_<isa>.cc to give its name.
constexpr AttentionKernels kKernels = {
    .query_element_bytes = kQueryElementBytes,
    .pack_queries = PackQueries,
    .attend_page = AttendPage,
    .dequantize_page = DequantizePage,
    .round_row = RoundRow,
    .range_of_row = RangeOfRow,
    .quantize_row = QuantizeRow,
    .fold_row = FoldRow,
    .pack_bound_query = PackBoundQuery,
    .score_pages = ScorePages,
    .pack_strided_queries = PackStridedQueries,
    .score_strided = ScoreStrided,
    .sum_tile_weights = SumTileWeights,
};

}  // namespace
}  // namespace lserve
