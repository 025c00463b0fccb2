// The order in which a GPU takes the items of a prefill's plan: (plan row, query head). Constexpr,
// since the host counts what the device walks.
#pragma once

#include "kv/page.h"

namespace lserve {

struct PrefillItem {
  bool exists = false;  // numbers without an item are skipped
  int way = 0;
  int row = 0;   // among all rows, those of way 0 first
  int slot = 0;  // of the way
  int head = 0;  // of the slot's query heads
};

// Way after way; of a way `slots_at_once` slots after the others, so that their keys stay in a
// cache while all rows pass over them; of those row after row; of a row slot after slot, then head
// after head.
struct PrefillOrder {
  int rows[kNumWays] = {};
  int slots[kNumWays] = {};
  int heads = 1;  // query heads per slot
  int slots_at_once = 1;

  constexpr int NumItems() const { return NumItems(0) + NumItems(1); }
  // REQUIRES: 0 <= i < NumItems(). The last slots of a way may be fewer than slots_at_once.
  constexpr PrefillItem At(int i) const {
    const int way = i < NumItems(0) ? 0 : 1;
    if (way == 1) i -= NumItems(0);
    const int per_row = slots_at_once * heads, per_section = rows[way] * per_row;
    const int slot = i / per_section * slots_at_once + i % per_row / heads;
    const int row = i % per_section / per_row + (way == 0 ? 0 : rows[0]);
    return {slot < slots[way], way, row, slot, i % heads};
  }

 private:
  constexpr int NumItems(int way) const {
    const int sections = (slots[way] + slots_at_once - 1) / slots_at_once;
    return rows[way] * sections * slots_at_once * heads;
  }
};

}  // namespace lserve
