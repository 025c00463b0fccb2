// AppendKv: an item is the tokens of one page of one KV head. Scalar code: it touches each number
// once, where attention touches it thousands of times.
#include <algorithm>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_kv_store.h"
#include "base/check.h"

namespace lserve {
namespace {

// Tokens [row, row + num_tokens) of the matrices, all in one page.
struct Piece {
  const SequencePages* pages;
  PageIdx page;
  int first_token;
  int num_tokens;
  int row;
};

std::vector<Piece> ListPieces(const AppendKvParams& params) {
  std::vector<Piece> pieces;
  for (const RowRange& range : params.ranges) {
    LS_CHECK_LE(int64_t{range.first_row} + range.num_rows, params.k.rows);
    for (int i = 0; i < range.num_rows;) {
      const int64_t position = range.first_position + i;
      const int first_token = static_cast<int>(position % kPageTokens);
      const int count = std::min(kPageTokens - first_token, range.num_rows - i);
      pieces.push_back({&params.sequences[static_cast<size_t>(range.sequence)],
                        static_cast<PageIdx>(position / kPageTokens), first_token, count,
                        range.first_row + i});
      i += count;
    }
  }
  return pieces;
}

}  // namespace

Status CpuBackend::AppendKv(const AppendKvParams& params) {
  const CpuKvStore& store = static_cast<const CpuKvStore&>(*params.store);
  const KvLayout& layout = store.layout();
  const int num_heads = layout.num_kv_heads;
  LS_CHECK_EQ(params.k.cols, int64_t{num_heads} * layout.head_dim);
  LS_CHECK_EQ(params.v.cols, params.k.cols);
  const std::vector<Piece> pieces = ListPieces(params);
  pool_.Run(static_cast<int64_t>(pieces.size()) * num_heads, [&](int64_t i, int /*thread*/) {
    const Piece& piece = pieces[static_cast<size_t>(i / num_heads)];
    const int head = static_cast<int>(i % num_heads);
    const HeadSlot at = layout.slots[static_cast<size_t>(params.layer * num_heads + head)];
    const PageId id = piece.pages->page(at.way, piece.page);
    LS_CHECK_GE(id, 0) << "page " << piece.page << " has no memory";
    std::byte* kv = store.kv_part(at.way, id, params.layer, at.slot);
    std::byte* stats = layout.way(at.way).head_bytes.stats == 0
                           ? nullptr
                           : store.stats_part(at.way, id, params.layer, at.slot);
    const int64_t column = int64_t{head} * layout.head_dim;
    AppendToPart(*attention_, store.part(), kv, stats,
                 {.first_token = piece.first_token,
                  .num_tokens = piece.num_tokens,
                  .k = params.k.row<float>(piece.row) + column,
                  .k_stride = params.k.stride,
                  .v = params.v.row<float>(piece.row) + column,
                  .v_stride = params.v.stride});
  });
  return Status();
}

}  // namespace lserve
