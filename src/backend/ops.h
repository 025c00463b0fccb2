// The parameters of every op, shared by all backends and by their tests; the scalar reference
// backend is their meaning. Matrices are row-major views; all pointers are the backend's memory.
//
// Numerics that every backend keeps (ADR 0004): matrices between ops are float; a Linear with a
// 16-bit brain-float weight rounds its input to bf16 (nearest even) and accumulates in float;
// attention rounds queries to bf16, reads K/V as stored (quantised K/V is dequantised to bf16),
// and may round the softmax weights, relative to the running maximum, to bf16. A Linear with a
// quantised weight (ADR 0011) rounds its input to bf16 too, multiplies it by the integer codes,
// which bf16 holds exactly, and sums each quantization group in float before its scale joins in;
// or, if the weight asks for it (ADR 0021), quantises its input too and sums a group in integers.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "attention/page_plan.h"
#include "backend/buffer.h"
#include "backend/logit_edits.h"
#include "backend/token_draw.h"
#include "kv/kv_layout.h"
#include "kv/page.h"
#include "tensor/matrix.h"

namespace lserve {

class KvStore;

// out[i] = table[indices[i]], converted to float.
struct GatherRowsParams {
  ConstMatrix table;                 // [n, cols], kBf16, kF16 or kF32
  std::span<const int32_t> indices;  // [num_rows], each in [0, n)
  Matrix out;                        // [num_rows, cols], kF32
};

// y = x / sqrt(mean(x^2) + eps) * weight, over each of `groups` equal slices of a row (1: the whole
// row; the number of heads: per head, as Qwen3 does with q and k). x and y may be the same matrix.
struct RmsNormParams {
  ConstMatrix x;                  // [rows, groups * n], kF32
  const float* weight = nullptr;  // [n]
  float eps = 0;
  int groups = 1;
  Matrix y;  // as x
};

// One matrix of a checkpoint, as it lies in the file: [rows = out features, cols = in features].
struct WeightPart {
  const void* data = nullptr;
  DType dtype = DType::kBf16;
  int64_t rows = 0;
};

// What PackLinear makes of the parts' elements: keeps them, or quantises groups of kWeightGroup
// neighbours of a row (backend/weight_quant.h). kW8A8: the codes of kInt8, for a Linear that
// quantises its input as well.
enum class WeightFormat : uint8_t { kAsStored, kInt8, kInt4, kW8A8 };

// The weight of a Linear, in the backend's own layout (made by Backend::PackLinear from one or more
// parts stacked by rows). `dtype` and `quantizes_input` decide how Linear rounds its input.
struct LinearWeight {
  DType dtype = DType::kBf16;  // kBf16, kF16, kF32; kInt8, kInt4: quantised
  int64_t out_features = 0;
  int64_t in_features = 0;
  int quantization_group = 0;    // in features per scale, the last group may be smaller; 0: none
  bool quantizes_input = false;  // kInt8 only: x becomes int8 codes in groups of the same size
  Buffer data;
  Buffer scales;  // unless the layout keeps them inside `data`
  Buffer zeros;   // likewise: what code 0 of kInt4 stands for
  Buffer bias;    // [out_features] float, or empty
};

// y = x W^T + bias, or y += with `accumulate`. Row r of y depends on row r of x only, bit for bit,
// whatever the number of rows. A quantised weight: with x rounded to bf16 and the groups g in the
// order of K, y = sum over g of scale_g (sum of x q) + min_g (sum of x), sums in float.
struct LinearParams {
  ConstMatrix x;  // [rows, in_features], kF32
  const LinearWeight* weight = nullptr;
  Matrix y;  // [rows, out_features], kF32
  bool accumulate = false;
};

// y[:, i] = silu(x[:, i]) * x[:, n + i], silu(a) = a / (1 + exp(-a)).
struct SiluMulParams {
  ConstMatrix x;  // [rows, 2 n], kF32: gate, then up
  Matrix y;       // [rows, n], kF32
};

// A Linear with its neighbours in a layer: a norm of whole rows before it, whose y is its x, and a
// gate behind it, whose x is its y. What lies between them need not be written.
struct FusedLinearParams {
  std::optional<RmsNormParams> norm;
  LinearParams linear;
  std::optional<SiluMulParams> gate;
};

// out[r] = the token that draws[r] takes of row r (backend/token_draw.h) once edits[r] has changed
// the row (backend/logit_edits.h), the same on every backend; -1 if it holds a NaN then. All but
// `x` is host memory; `out` is written when the op returns.
struct PickTokensParams {
  Matrix x;  // [rows, cols], kF32: logits; changed by the edits
  std::span<const TokenDraw> draws;
  std::span<const LogitEdits> edits = {};  // of every row, or empty: none
  std::span<int32_t> out;
};

// Rotates the first `num_heads` heads of every row in place ("rotate half" pairing: element i with
// i + head_dim / 2), by the angles of its row.
struct RopeParams {
  Matrix x;  // [rows, >= num_heads * head_dim], kF32
  int num_heads = 0;
  int head_dim = 0;
  ConstMatrix cos;  // [rows, head_dim / 2], kF32, scaled by the attention factor
  ConstMatrix sin;  // as cos
};

// What an op sees of one sequence's cache: logical page index -> physical page, per way. A page
// that was trimmed away is kNoPage and never visited.
struct SequencePages {
  std::span<const PageId> pages[kNumWays];

  PageId page(Way way, PageIdx idx) const { return pages[Index(way)][static_cast<size_t>(idx)]; }
};

// Stores K (after RoPE) and V of new tokens in their pages, in both ways, and folds the stored keys
// into the statistics of their logical page (which the first token of a logical page resets).
struct AppendKvParams {
  ConstMatrix k;  // [rows, num_kv_heads * head_dim], kF32
  ConstMatrix v;  // as k
  KvStore* store = nullptr;
  int layer = 0;
  std::span<const SequencePages> sequences;
  std::span<const RowRange> ranges;
};

// The most that the ops below are asked for in one step.
struct AttentionLimits {
  int num_q_heads = 0;
  int64_t rows = 0;       // of a step
  int64_t sequences = 0;  // of a step
  int64_t pages = 0;      // of one sequence and way
};

// out = softmax(scale * q K^T) V over the visible keys of the planned pages. Query head h reads KV
// head h / (num_q_heads / num_kv_heads). A query that sees no key gives zeros. A row's result
// depends on its own queries, pages and masks only, bit for bit.
struct AttentionParams {
  ConstMatrix q;  // [rows, num_q_heads * head_dim], kF32, after RoPE
  Matrix out;     // as q; only rows named by the plan are written
  int num_q_heads = 0;
  float scale = 0;
  const KvStore* store = nullptr;
  int layer = 0;
  std::span<const SequencePages> sequences;
  const PagePlan* plan = nullptr;
};

// How the attention weight of single queries is spread over pages, before it is normalised: for row
// r of the plan, query head h and logical page p, log_sums[(r * num_q_heads + h) * stride + p] =
// ln(sum of exp(scale q k) over the page's visible keys). -infinity: the row does not visit the
// page or sees none of its keys, and everywhere for the heads of another way or slot. Inputs are
// rounded as attention rounds them. Nothing that is answered depends on this op: it is for those
// who ask what attention did (engine/attention_probe.h).
struct PageLogSumsParams {
  ConstMatrix q;  // as AttentionParams
  int num_q_heads = 0;
  float scale = 0;
  const KvStore* store = nullptr;
  int layer = 0;
  std::span<const SequencePages> sequences;
  const PagePlan* plan = nullptr;  // rows of one query each
  float* log_sums = nullptr;       // [rows of the plan, num_q_heads, stride]
  int64_t stride = 0;              // pages; more than any page that is visited
};

// One sequence whose page lists are due.
struct SelectRequest {
  int sequence = 0;
  int query_row = 0;      // row of q: the newest token
  PageIdx num_pages = 0;  // pages of the sequence, the newest one included
  int sink_pages = 1;     // always kept, from page 0
  int newest_pages = 2;   // always kept, at the end
  int budget_pages = 0;   // kept in all, the forced ones included
  SelectionTable table;   // filled for every slot of the layer
};

// For every KV head of the retrieval way: score each page by the min/max bound of its logical pages
// (Quest, LServe section 3.4) for each query head of the group, softmax over the pages that are not
// forced, average over the group, keep the best, ties to the lower page; write the ascending list
// with the forced pages as runs.
struct SelectPagesParams {
  ConstMatrix q;  // as AttentionParams
  int num_q_heads = 0;
  float scale = 0;
  const KvStore* store = nullptr;
  int layer = 0;
  std::span<const SequencePages> sequences;
  std::span<const SelectRequest> requests;
};

// The stride of SelectTiles: queries and keys are folded in pieces of a logical page's length.
inline constexpr int kTileStride = kLogicalPageTokens;

// One complete tile of queries whose key tiles are to be chosen. The tiles [0, sink_tiles) and the
// `newest_tiles` up to its own are always read; those at the end are not part of the list.
struct TileSelectRequest {
  int sequence = 0;
  int first_query = 0;         // row of q: kTileTokens consecutive queries
  int64_t first_position = 0;  // a multiple of kTileTokens; their keys are appended
  int sink_tiles = 1;
  int newest_tiles = 2;
  double threshold = 1;
  int max_listed_tiles = kAllTiles;  // that the list may hold, those of the sink included
  SelectionTable table;              // filled for every slot of the layer
};

// For every KV head of the retrieval way: which key tiles a tile of queries reads (XAttention,
// arXiv 2503.16428). With stride S, row r of a query head's estimate is queries [r S, r S + S) and
// column c keys [c S, c S + S) of the sequence; their score is the mean over an antidiagonal,
// scale / S * sum over s of q[r S + s] k[c S + S - 1 - s]. Each row: softmax over the columns that
// do not begin ahead of it, summed per key tile. A tile's mass is the mean over rows and over the
// query heads of the group. The list: the sink, then the heaviest tiles, ties to the lower one,
// until the masses of what is read reach `threshold` of all or the list holds `max_listed_tiles`
// (of which the sink is never cut); ascending, as runs of pages.
struct SelectTilesParams {
  ConstMatrix q;  // as AttentionParams
  int num_q_heads = 0;
  float scale = 0;
  const KvStore* store = nullptr;
  int layer = 0;
  std::span<const SequencePages> sequences;
  std::span<const TileSelectRequest> requests;
};

}  // namespace lserve
