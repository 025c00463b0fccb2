#include "kv/kv_layout.h"

#include "base/check.h"

namespace lserve {

KvLayout MakeKvLayout(int num_layers,
                      int num_kv_heads,
                      int head_dim,
                      DType dtype,
                      const std::vector<uint8_t>& kinds,
                      KvHeadBytes head_bytes) {
  LS_CHECK_EQ(kinds.size(), static_cast<size_t>(num_layers) * static_cast<size_t>(num_kv_heads));
  KvLayout layout;
  layout.num_layers = num_layers;
  layout.num_kv_heads = num_kv_heads;
  layout.head_dim = head_dim;
  layout.dtype = dtype;
  layout.ways[Index(Way::kRetrieval)].head_bytes = head_bytes;
  layout.ways[Index(Way::kStreaming)].head_bytes = {.kv = head_bytes.kv, .stats = 0};
  for (int layer = 0; layer < num_layers; ++layer) {
    for (WayLayout& way : layout.ways) {
      way.heads.emplace_back();
      way.kv_offset.push_back(way.kv_bytes);
      way.stats_offset.push_back(way.stats_bytes);
      way.first_entry.push_back(way.num_entries);
    }
    for (int head = 0; head < num_kv_heads; ++head) {
      const bool retrieval = kinds[layout.slots.size()] != 0;
      const Way w = retrieval ? Way::kRetrieval : Way::kStreaming;
      WayLayout& way = layout.ways[Index(w)];
      layout.slots.push_back({.way = w, .slot = way.num_slots(layer)});
      way.heads.back().push_back(head);
      way.kv_bytes += way.head_bytes.kv;
      way.stats_bytes += way.head_bytes.stats;
      ++way.num_entries;
    }
  }
  return layout;
}

}  // namespace lserve
