// Attention kernels for AVX2 with FMA.
#define LS_BF16_DOT 0
#include "backend/cpu/tile_estimate-inl.h"

namespace lserve {

const AttentionKernels kAttentionAvx2 = {
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

}  // namespace lserve
