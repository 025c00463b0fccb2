// What kernels are told of the K/V store and of a batch: plain structs, passed by value or copied
// to the device by StepUploads. The layout of a head's part is in kernels/kv_part.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/page_plan.h"
#include "kv/page.h"

namespace lserve {

// One layer of one way, or some of its slots. The part of (page, slot) is base + page * page_stride
// + slot * bytes.
struct WayView {
  std::byte* kv = nullptr;     // page 0, slot 0 of the layer
  std::byte* stats = nullptr;  // likewise
  size_t page_stride = 0;
  size_t kv_bytes = 0;     // of one slot
  size_t stats_bytes = 0;  // of one slot
  int num_slots = 0;
  int first_slot = 0;  // of the layer's, which is slot 0 here
  int first_entry = 0;
  const int* heads = nullptr;  // [num_slots] -> KV head
};

// Where a KV head of the layer lives.
struct HeadSlotView {
  int way = 0;
  int slot = 0;
};

struct LayerView {
  WayView ways[kNumWays];
  const HeadSlotView* slots = nullptr;  // [num_kv_heads]
  int num_kv_heads = 0;
  int head_dim = 0;
  int group = 1;  // query heads per KV head
};

// The page tables of one sequence.
struct SequenceView {
  const PageId* pages[kNumWays] = {};
};

struct MatrixView {
  float* data = nullptr;
  int64_t stride = 0;
};

struct ConstMatrixView {
  const float* data = nullptr;
  int64_t stride = 0;
};

// A PagePlan on the device.
struct PlanView {
  const PlanRow* rows = nullptr;
  const PageRun* runs = nullptr;
  const SelectionTable* selections = nullptr;
  const int* order = nullptr;  // [num_rows], the longest first; for sm90's prefill way after way
  int num_rows = 0;
};

}  // namespace lserve
