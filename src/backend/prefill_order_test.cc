#include "backend/prefill_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "base/strings.h"

namespace lserve {
namespace {

// Every row, slot and head of either way, once.
TEST(PrefillOrder, NamesEveryItemOnce) {
  for (const int first_slots : {0, 1, 3, 4}) {
    for (const int second_slots : {0, 2, 5}) {
      for (const int first_rows : {0, 1, 6}) {
        for (const int slots_at_once : {1, 2, 3, 8}) {
          const PrefillOrder order = {
              {first_rows, 3}, {first_slots, second_slots}, 4, slots_at_once};
          SCOPED_TRACE(StrCat(first_slots, " + ", second_slots, " slots, ", first_rows,
                              " + 3 rows, ", slots_at_once, " slots at once"));
          std::vector<std::tuple<int, int, int, int>> expected, named;
          for (int way = 0; way < kNumWays; ++way) {
            for (int row = 0; row < order.rows[way]; ++row) {
              for (int slot = 0; slot < order.slots[way]; ++slot) {
                for (int head = 0; head < order.heads; ++head) {
                  expected.emplace_back(way, row + (way == 0 ? 0 : first_rows), slot, head);
                }
              }
            }
          }
          for (int i = 0; i < order.NumItems(); ++i) {
            const PrefillItem item = order.At(i);
            if (item.exists) named.emplace_back(item.way, item.row, item.slot, item.head);
          }
          std::sort(named.begin(), named.end());
          EXPECT_EQ(named, expected);
        }
      }
    }
  }
}

// All rows pass over a slot before the next one begins.
TEST(PrefillOrder, StaysWithTheSlotsOfASection) {
  const PrefillOrder order = {{5, 0}, {4, 0}, 2, 2};
  for (int i = 1; i < order.NumItems(); ++i) {
    const PrefillItem item = order.At(i), before = order.At(i - 1);
    EXPECT_GE(item.slot / 2, before.slot / 2);
    if (item.slot / 2 == before.slot / 2) {
      EXPECT_GE(item.row, before.row);
    }
  }
  EXPECT_EQ(order.At(19).slot, 1);
  EXPECT_EQ(order.At(20).slot, 2);
}

}  // namespace
}  // namespace lserve
