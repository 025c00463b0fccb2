#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <new>
#include <thread>
#include <vector>

namespace lserve {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, EveryItemRunsOnce) {
  ThreadPool pool(GetParam());
  for (const int64_t n : {0, 1, 2, 3, 64, 1000}) {
    std::vector<std::atomic<int>> hits(static_cast<size_t>(n));
    pool.Run(n, [&](int64_t item, int thread) {
      EXPECT_GE(thread, 0);
      EXPECT_LT(thread, pool.num_threads());
      hits[static_cast<size_t>(item)]++;
    });
    for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1);
  }
}

TEST_P(ThreadPoolTest, ManyShortLoopsAndSleepsBetween) {
  ThreadPool pool(GetParam());
  int64_t total = 0;
  for (int loop = 0; loop < 2000; ++loop) {
    std::atomic<int64_t> sum = 0;
    pool.Run(7, [&](int64_t item, int) { sum += item; });
    total += sum;
    if (loop % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  EXPECT_EQ(total, 2000 * 21);
}

TEST_P(ThreadPoolTest, AnExceptionOfAnItemIsTheCallers) {
  ThreadPool pool(GetParam());
  for (int loop = 0; loop < 20; ++loop) {
    EXPECT_THROW(pool.Run(100,
                          [](int64_t item, int) {
                            if (item % 50 == 13) throw std::bad_alloc();
                          }),
                 std::bad_alloc);
    std::atomic<int64_t> sum = 0;
    pool.Run(7, [&](int64_t item, int) { sum += item; });
    EXPECT_EQ(sum, 21);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 8));

}  // namespace
}  // namespace lserve
