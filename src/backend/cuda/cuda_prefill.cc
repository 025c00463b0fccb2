// PrefillAttention: what the host works out for its kernels. They read bf16 pages; quantised ones
// are dequantised into a scratch first, in rounds (ADR 0036).
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
  if (uploads_.Find(&plan) != nullptr) {
    LS_CHECK(!groups.empty() || plan.rows.empty()) << "a plan of decode steps";
    return std::span<const PrefillGroup>(groups);
  }
  groups.clear();

  std::vector<int> order = LongestFirst(plan);
  if (HasSm90Prefill(layout)) {
    std::stable_partition(order.begin(), order.end(), [&](int row) {
      return plan.rows[static_cast<size_t>(row)].way == Way::kRetrieval;
    });
  }
  const bool dequantizes = layout.dtype != DType::kBf16;
  std::vector<ScratchGroup> split;
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
    if (layout.dtype != DType::kBf16) {
      LS_TRY(PrefillInRounds(layout, args, group));
      continue;
    }
    const PrefillMaps* maps = nullptr;
    if (HasSm90Prefill(layout)) maps = LS_TRY(store.Maps(params.layer));
    std::byte* counter = LS_TRY(attention_scratch_.Get(kCounterBytes, stream_));
    LS_TRY(LaunchPrefill(args, group, maps, counter));
  }
  return Status();
}

Status CudaBackend::PrefillInRounds(const KvLayout& layout,
                                    const AttentionArgs& args,
                                    const PrefillGroup& group) {
  const size_t part_bytes = PartBytes(layout.head_dim);
  int num_slots[kNumWays];
  for (int w = 0; w < kNumWays; ++w) num_slots[w] = args.layer.ways[w].num_slots;
  for (const SlotRound& round :
       SlotRounds(group.num_pages, num_slots, MostScratchParts(layout.head_dim))) {
    size_t bytes[kNumWays];
    for (int w = 0; w < kNumWays; ++w) {
      bytes[w] = static_cast<size_t>(group.num_pages[w]) * static_cast<size_t>(round.count[w]) *
                 part_bytes;
    }
    std::byte* counter =
        LS_TRY(attention_scratch_.Get(kCounterBytes + bytes[0] + bytes[1], stream_));
    std::byte* at = counter + kCounterBytes;
    DequantizePagesArgs pages = {.layer = args.layer, .dtype = args.dtype, .ways = {}};
    AttentionArgs in_scratch = args;
    in_scratch.dtype = DType::kBf16;
    PrefillMaps maps = {};
    for (int w = 0; w < kNumWays; ++w) {
      const int first = round.first[w], count = round.count[w];
      WayView& way = in_scratch.layer.ways[w];
      way.num_slots = count;
      if (bytes[w] == 0) continue;
      pages.ways[w] = {.pages = group.pages[w],
                       .num_pages = group.num_pages[w],
                       .first_slot = first,
                       .num_slots = count,
                       .to = at};
      way.kv = at;
      way.kv_bytes = part_bytes;
      way.page_stride = static_cast<size_t>(count) * part_bytes;
      way.first_slot = first;
      way.first_entry += first;
      way.heads += first;
      if (HasSm90Prefill(layout)) {
        LS_TRY(EncodeMaps(way, static_cast<size_t>(group.num_pages[w]), layout.head_dim,
                          &maps.keys[w], &maps.values[w]));
      }
      at += bytes[w];
    }
    LS_CUDA(LaunchDequantizePages(pages, stream_));
    LS_TRY(LaunchPrefill(in_scratch, group, HasSm90Prefill(layout) ? &maps : nullptr, counter));
  }
  return Status();
}

// Over bf16 pages. `maps`: for Hopper's kernel; nullptr: the other one.
Status CudaBackend::LaunchPrefill(const AttentionArgs& args,
                                  const PrefillGroup& group,
                                  const PrefillMaps* maps,
                                  std::byte* counter) {
  if (maps == nullptr) {
    LS_CUDA(LaunchPrefillAttention(args, stream_));
    return Status();
  }
  PrefillOrder order = {.heads = args.layer.group,
                        .slots_at_once = SlotsThatFitL2(args.layer, group.most_pages)};
  for (int w = 0; w < kNumWays; ++w) {
    order.rows[w] = group.rows[w];
    order.slots[w] = args.layer.ways[w].num_slots;
  }
  LS_CUDA(LaunchPrefillAttentionSm90(args, *maps, order, reinterpret_cast<int*>(counter), stream_));
  return Status();
}

}  // namespace lserve
