// PrefillAttention: what the host works out for its kernels. Hopper's copies bf16 pages by TMA, as
// they lie; quantised pages are dequantised for it first, in rounds (ADR 0036).
#include <algorithm>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/cuda_kv_store.h"
#include "backend/cuda/cuda_status.h"
#include "backend/cuda/plan_pages.h"
#include "backend/prefill_rounds.h"
#include "base/check.h"

namespace lserve {
namespace {

// Of the scratch: where items are counted, before the parts.
constexpr size_t kCounterBytes = 256;

// One page of one slot as bf16.
size_t PartBytes(int head_dim) {
  return size_t{2} * kPageTokens * static_cast<size_t>(head_dim) * sizeof(uint16_t);
}

// Slots whose keys and values of one sequence, the longest, stay in the L2 cache together while
// their queries pass over them.
int SlotsThatFitL2(const LayerView& layer, PageIdx pages) {
  constexpr size_t kShare = size_t{24} << 20;  // of the 50 MiB of a Hopper
  const size_t slot_bytes = static_cast<size_t>(pages) * PartBytes(layer.head_dim);
  return static_cast<int>(std::clamp<size_t>(kShare / std::max<size_t>(slot_bytes, 1), 1,
                                             static_cast<size_t>(layer.num_kv_heads)));
}

}  // namespace

bool CudaBackend::HasSm90Prefill(const KvLayout& layout) const {
  return kernels_ == CudaKernels::kSm90 && lserve::HasSm90Prefill(layout.head_dim);
}

size_t CudaBackend::MostScratchParts(int head_dim) const {
  return options_.prefill_scratch_bytes / PartBytes(head_dim);
}

// A round holds one slot of the longest sequence or, if they fit, more.
size_t CudaBackend::PrefillScratchBytes(const KvLayout& layout,
                                        const AttentionLimits& limits) const {
  if (!HasSm90Prefill(layout)) return 0;
  if (layout.dtype == DType::kBf16) return kCounterBytes;
  const auto one = static_cast<size_t>(limits.pages);
  const size_t all =
      one * static_cast<size_t>(limits.sequences) * static_cast<size_t>(layout.num_kv_heads);
  const size_t parts = std::max(one, std::min(all, MostScratchParts(layout.head_dim)));
  return kCounterBytes + parts * PartBytes(layout.head_dim);
}

// The same for all layers of a step.
Result<std::span<const CudaBackend::PrefillGroup>> CudaBackend::PrefillGroups(
    const AttentionParams& params, const SequenceView* sequences) {
  const PagePlan& plan = *params.plan;
  const KvLayout& layout = params.store->layout();
  std::vector<PrefillGroup>& groups = prefill_groups_[&plan];
  if (uploads_.Find(&plan) != nullptr) return std::span<const PrefillGroup>(groups);
  groups.clear();

  std::vector<int> order = LongestFirst(plan);
  std::vector<ScratchGroup> split;
  if (HasSm90Prefill(layout)) {
    std::stable_partition(order.begin(), order.end(), [&](int row) {
      return plan.rows[static_cast<size_t>(row)].way == Way::kRetrieval;
    });
  }
  const bool dequantizes = HasSm90Prefill(layout) && layout.dtype != DType::kBf16;
  if (dequantizes) {
    split = GroupSequences(plan, params.sequences, order, MostScratchParts(layout.head_dim));
  } else {
    split.push_back({.rows = std::move(order), .pages = {}, .places = {}});
  }
  std::vector<int> rows;  // of one group after another
  for (const ScratchGroup& from : split) {
    PrefillGroup group = {.sequences = sequences};
    for (const int r : from.rows) {
      const PlanRow& row = plan.rows[static_cast<size_t>(r)];
      ++group.rows[Index(row.way)];
      group.most_pages = std::max(group.most_pages, row.newest.last);
    }
    rows.insert(rows.end(), from.rows.begin(), from.rows.end());
    if (dequantizes) {
      std::vector<SequenceView> views(params.sequences.size());
      for (int w = 0; w < kNumWays; ++w) {
        for (size_t s = 0; s < views.size(); ++s) {
          views[s].pages[w] = LS_TRY(uploads_.UploadAnew(std::span(from.places[w][s])));
        }
        group.num_pages[w] = static_cast<int>(from.pages[w].size());
        group.pages[w] = LS_TRY(uploads_.UploadAnew(std::span(from.pages[w])));
      }
      group.sequences = LS_TRY(uploads_.UploadAnew(std::span<const SequenceView>(views)));
    }
    groups.push_back(group);
  }
  const int* uploaded = LS_TRY(uploads_.Upload(std::span<const int>(rows), &plan));
  for (PrefillGroup& group : groups) {
    group.order = uploaded;
    uploaded += group.rows[0] + group.rows[1];
  }
  return std::span<const PrefillGroup>(groups);
}

Status CudaBackend::PrefillAttention(const AttentionParams& params) {
  LS_CHECK(!tracing_) << "prefill in RunStep";
  const auto& store = static_cast<const CudaKvStore&>(*params.store);
  const KvLayout& layout = store.layout();
  for (const PlanRow& row : params.plan->rows) {
    LS_CHECK_LE(row.num_queries, kTileTokens);
    if (HasSm90Prefill(layout)) {
      LS_CHECK_LE(row.first_position, kMaxSm90PrefillTokens - kTileTokens);
    }
  }
  AttentionArgs args = LS_TRY(MakeAttentionArgs(params));
  for (const PrefillGroup& group : LS_TRY(PrefillGroups(params, args.sequences))) {
    args.plan.order = group.order;
    args.plan.num_rows = group.rows[0] + group.rows[1];
    args.sequences = group.sequences;
    if (!HasSm90Prefill(layout)) {
      LS_CUDA(LaunchPrefillAttention(args, stream_));
      continue;
    }
    if (layout.dtype != DType::kBf16) {
      LS_TRY(PrefillInRounds(args, group));
      continue;
    }
    PrefillOrder order = {.heads = args.layer.group,
                          .slots_at_once = SlotsThatFitL2(args.layer, group.most_pages)};
    for (int w = 0; w < kNumWays; ++w) {
      order.rows[w] = group.rows[w];
      order.slots[w] = args.layer.ways[w].num_slots;
    }
    const PrefillMaps* maps = LS_TRY(store.Maps(params.layer));
    std::byte* next_item = LS_TRY(attention_scratch_.Get(kCounterBytes, stream_));
    LS_CUDA(
        LaunchPrefillAttentionSm90(args, *maps, order, reinterpret_cast<int*>(next_item), stream_));
  }
  return Status();
}

Status CudaBackend::PrefillInRounds(AttentionArgs args, const PrefillGroup& group) {
  const size_t part_bytes = PartBytes(args.layer.head_dim);
  int num_slots[kNumWays];
  for (int w = 0; w < kNumWays; ++w) num_slots[w] = args.layer.ways[w].num_slots;
  for (const SlotRound& round :
       SlotRounds(group.num_pages, num_slots, MostScratchParts(args.layer.head_dim))) {
    size_t bytes[kNumWays];
    for (int w = 0; w < kNumWays; ++w) {
      bytes[w] = static_cast<size_t>(group.num_pages[w]) * static_cast<size_t>(round.count[w]) *
                 part_bytes;
    }
    std::byte* scratch =
        LS_TRY(attention_scratch_.Get(kCounterBytes + bytes[0] + bytes[1], stream_));
    std::byte* at = scratch + kCounterBytes;
    PrefillOrder order = {.heads = args.layer.group,
                          .slots_at_once = SlotsThatFitL2(args.layer, group.most_pages)};
    PrefillMaps maps = {};
    DequantizePagesArgs pages = {.layer = args.layer, .dtype = args.dtype, .ways = {}};
    for (int w = 0; w < kNumWays; ++w) {
      order.rows[w] = group.rows[w];
      order.slots[w] = round.count[w];
      if (bytes[w] == 0) continue;
      pages.ways[w] = {.pages = group.pages[w],
                       .num_pages = group.num_pages[w],
                       .first_slot = round.first[w],
                       .num_slots = round.count[w],
                       .to = at};
      maps.first_slots[w] = round.first[w];
      LS_TRY(EncodeMaps({.kv = at,
                         .page_stride = static_cast<size_t>(round.count[w]) * part_bytes,
                         .kv_bytes = part_bytes,
                         .num_slots = round.count[w],
                         .num_pages = static_cast<size_t>(group.num_pages[w])},
                        args.layer.head_dim, w, &maps));
      at += bytes[w];
    }
    LS_CUDA(LaunchDequantizePages(pages, stream_));
    LS_CUDA(
        LaunchPrefillAttentionSm90(args, maps, order, reinterpret_cast<int*>(scratch), stream_));
  }
  return Status();
}

}  // namespace lserve
