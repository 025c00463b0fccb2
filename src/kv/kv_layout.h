// KvLayout: which KV head of which layer lies where in a page. It knows sizes and offsets, not what
// the bytes mean: the backend owns the layout inside one head's part. Built once per model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kv/page.h"
#include "tensor/dtype.h"

namespace lserve {

// What keys and values may be stored as. A backend need not have all (Backend::has_kv_dtype).
inline constexpr DType kKvDTypes[] = {DType::kBf16, DType::kInt8, DType::kFp8, DType::kInt4};

// Bytes that 64 tokens of one KV head take, as the backend lays them out.
struct KvHeadBytes {
  size_t kv = 0;     // keys and values with their quantization scales
  size_t stats = 0;  // key statistics of the four logical pages
};

// Where a KV head lives: its way, and its slot among the heads of that way in the same layer.
struct HeadSlot {
  Way way = Way::kRetrieval;
  int slot = 0;
};

// One page of a way is two records: K/V and statistics. In each, layer after layer, slot after
// slot; a layer without heads of the kind has zero bytes.
struct WayLayout {
  std::vector<std::vector<int>> heads;  // [layer][slot] -> KV head
  std::vector<size_t> kv_offset;        // [layer], bytes into the K/V record
  std::vector<size_t> stats_offset;     // [layer], bytes into the statistics record
  std::vector<int> first_entry;         // [layer], number of (layer, slot) pairs before the layer
  int num_entries = 0;                  // (layer, slot) pairs in all
  KvHeadBytes head_bytes;               // stride from slot to slot
  size_t kv_bytes = 0;                  // of the whole K/V record
  size_t stats_bytes = 0;               // of the whole statistics record

  int num_slots(int layer) const {
    return static_cast<int>(heads[static_cast<size_t>(layer)].size());
  }
  size_t page_bytes() const { return kv_bytes + stats_bytes; }
};

struct KvLayout {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  DType dtype = DType::kBf16;  // one of kKvDTypes
  WayLayout ways[kNumWays];
  std::vector<HeadSlot> slots;  // [layer * num_kv_heads + head]

  const WayLayout& way(Way w) const { return ways[Index(w)]; }
};

// `kinds` is [num_layers * num_kv_heads], 1 = retrieval. `head_bytes` comes from the backend; the
// streaming way carries no statistics, since nothing is selected there.
KvLayout MakeKvLayout(int num_layers,
                      int num_kv_heads,
                      int head_dim,
                      DType dtype,
                      const std::vector<uint8_t>& kinds,
                      KvHeadBytes head_bytes);

}  // namespace lserve
