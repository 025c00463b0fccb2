// AttentionKernels: the loops of attention, page selection and K/V dequantisation that exist once
// per instruction set. They know one page and a few rows; lists, masks' geometry, threads and
// memory are the business of attention.cc, select_pages.cc and select_tiles.cc, their only users.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/cpu_isa.h"

namespace lserve {

// One page's keys and values as every kernel reads them, in bf16: keys as pairs of dimensions
// [head_dim / 2][64 keys][2], values as pairs of keys [32][head_dim][2]. One 512-bit load of either
// is the right operand of vdpbf16ps; instruction sets without it widen the halves by shift and
// mask.
struct PageTile {
  const uint16_t* keys = nullptr;
  const uint16_t* values = nullptr;
};

// Softmax state of some rows; a row is one (query, query head). Lanes of `sum` are added at the
// end.
inline constexpr int kSumLanes = 16;
struct RowState {
  float* out = nullptr;  // [num_rows, head_dim], sum of weight * value
  float* max = nullptr;  // [num_rows], of the scores before scaling; -inf: nothing seen
  float* sum = nullptr;  // [num_rows, kSumLanes], sum of weights
};

struct AttendArgs {
  int head_dim = 0;
  int num_rows = 0;
  float scale = 0;                    // times log2(e)
  const void* q = nullptr;            // [num_rows, head_dim], from pack_queries
  const uint64_t* visible = nullptr;  // [num_rows], bit k: key k is seen; null: all are. Never 0
  PageTile page;
  RowState state;
};

// The quantised K/V of one head's part of a page; codes lie in the order of PageTile.
struct QuantizedPage {
  const std::byte* key_codes = nullptr;
  const std::byte* value_codes = nullptr;
  const uint16_t* key_scales = nullptr;  // [64] f16, as are the next three
  const uint16_t* key_mins = nullptr;
  const uint16_t* value_scales = nullptr;
  const uint16_t* value_mins = nullptr;
};

struct ScoreArgs {
  int head_dim = 0;
  int num_heads = 0;
  int num_pages = 0;
  const void* q = nullptr;                 // [num_heads], from pack_bound_query
  const uint16_t* const* stats = nullptr;  // [num_pages] -> maxima, then minima, see KvPart
  float* scores = nullptr;                 // [num_heads, stride]
  int64_t stride = 0;
};

// The queries of one head's tile, 128 of them, for score_strided.
struct StridedQueryArgs {
  const float* q = nullptr;  // [128, width]
  int64_t q_stride = 0;      // floats from query to query
  int width = 0;
  int head_dim = 0;        // width and zeros
  void* packed = nullptr;  // [128 * head_dim] elements of query_element_bytes, aligned
};

// scores[r][4 p + c] = sum over s of q[16 r + s] k[15 - s] over the keys of logical page c of page
// p, for the 8 rows r of a tile.
struct StridedScoreArgs {
  int head_dim = 0;
  const void* q = nullptr;  // from pack_strided_queries
  int num_pages = 0;
  const uint16_t* const* keys = nullptr;  // [num_pages] -> PageTile::keys
  float* scores = nullptr;                // [8, stride]
  int64_t stride = 0;
};

// sums[t] = sum over the 8 columns c of tile t, of the first num_columns, of 2^(scale (score -
// max)).
struct TileWeightArgs {
  float* scores = nullptr;  // room for num_columns, rounded up to 16; overwritten
  int num_columns = 0;      // at least 1
  float scale = 0;          // times log2(e)
  float* sums = nullptr;    // [num_columns / 8, rounded up]
};

// One key or value vector of a token. `stored` is what attention will read, in bf16.
struct QuantizeRowArgs {
  const float* x = nullptr;  // [head_dim]
  int head_dim = 0;
  int levels = 0;    // largest code
  uint8_t* codes;    // [head_dim]
  uint16_t* stored;  // [head_dim]
  float scale = 0;   // of kv_quant.h, widened; scale 0 makes every code 0
  float min = 0;
};

struct AttentionKernels {
  int query_element_bytes;  // of pack_queries
  // Rounds `count` floats to bf16 and stores them as attend_page reads them.
  void (*pack_queries)(const float* q, int64_t count, void* packed);
  // Folds one page into the state of every row. A row's state depends on its own query, mask and
  // pages only, not on num_rows.
  void (*attend_page)(const AttendArgs& args);
  // 4 or 8 bits -> tile [head_dim * 64] each, equal to kv_quant.h bit for bit. Null: not wanted.
  void (*dequantize_page)(
      const QuantizedPage& page, int bits, int head_dim, uint16_t* keys, uint16_t* values);
  // The ops of AppendKv on a row of head_dim: ToBf16 of each; smallest and largest after
  // ClampForQuant; QuantCode and Dequantize of each; running maxima and minima of bf16 rows.
  void (*round_row)(const float* x, int head_dim, uint16_t* stored);
  void (*range_of_row)(const float* x, int head_dim, float* low, float* high);
  void (*quantize_row)(const QuantizeRowArgs& args);
  void (*fold_row)(const uint16_t* stored, int head_dim, float* max, float* min);
  // Rounds a query [head_dim] to bf16 and splits it by sign; takes 32 * head_dim bytes.
  void (*pack_bound_query)(const float* q, int head_dim, void* packed);
  // Largest min/max bound of q k over the logical pages of each page.
  void (*score_pages)(const ScoreArgs& args);
  // Of SelectTiles.
  void (*pack_strided_queries)(const StridedQueryArgs& args);
  void (*score_strided)(const StridedScoreArgs& args);
  float (*sum_tile_weights)(const TileWeightArgs& args);  // the maximum
};

const AttentionKernels& GetAttentionKernels(CpuIsa isa);

// attention_<isa>.cc
extern const AttentionKernels kAttentionGeneric;
extern const AttentionKernels kAttentionAvx2;
extern const AttentionKernels kAttentionAvx512;
extern const AttentionKernels kAttentionAvx512Bf16;

}  // namespace lserve
