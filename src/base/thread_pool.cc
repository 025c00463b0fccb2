#include "base/thread_pool.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"

namespace lserve {
namespace {

// About 20 us at 3 GHz with the pause instruction's ~40-140 cycles: longer than the gap between two
// loops of a decode step, shorter than a scheduler tick.
constexpr int kSpins = 1000;

}  // namespace

// One loop is published under `mutex` by raising `epoch`. Workers that join a loop are counted in
// `active`; the caller leaves RunErased only when no worker is inside, so `function` and `context`
// never outlive their loop.
struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable finished;
  std::atomic<uint64_t> epoch = 0;
  bool stopping = false;
  Function function = nullptr;
  void* context = nullptr;
  int64_t num_items = 0;
  std::atomic<int64_t> next_item = 0;
  std::atomic<int> active = 0;
  int sleeping = 0;
  std::exception_ptr error;  // the first of this loop
  std::vector<std::thread> threads;

  // Takes items until there are none. An exception is kept for the caller and ends the loop.
  void Work(Function run, void* with, int64_t count, int thread) {
    try {
      int64_t item = 0;
      while ((item = next_item.fetch_add(1, std::memory_order_relaxed)) < count)
        run(with, item, thread);
    } catch (...) {
      next_item.store(count, std::memory_order_relaxed);
      const std::lock_guard lock(mutex);
      if (error == nullptr) error = std::current_exception();
    }
  }
};

int NumUsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) {
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  return std::max(1, CPU_COUNT(&set));
}

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads > 0 ? num_threads : NumUsableCores()),
      state_(std::make_unique<State>()) {
  for (int t = 1; t < num_threads_; ++t) {
    try {
      state_->threads.emplace_back([this, t] { WorkerLoop(t); });
    } catch (const std::system_error&) {
      num_threads_ = t;  // the system has no more; those that started work
    }
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
    state_->epoch.fetch_add(1, std::memory_order_release);
  }
  state_->wake.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

void ThreadPool::RunErased(int64_t num_items, Function function, void* context) {
  if (num_items <= 0) return;
  if (num_threads_ == 1 || num_items == 1) {
    for (int64_t item = 0; item < num_items; ++item) function(context, item, 0);
    return;
  }
  State& s = *state_;
  bool must_wake = false;
  {
    const std::lock_guard lock(s.mutex);
    LS_CHECK_EQ(s.active.load(), 0) << "ThreadPool::Run is called from two threads";
    s.function = function;
    s.context = context;
    s.num_items = num_items;
    s.next_item.store(0, std::memory_order_relaxed);
    s.epoch.fetch_add(1, std::memory_order_release);
    must_wake = s.sleeping > 0;
  }
  if (must_wake) s.wake.notify_all();

  s.Work(function, context, num_items, 0);
  for (int spin = 0; spin < kSpins; ++spin) {
    if (s.active.load(std::memory_order_acquire) == 0) break;
    _mm_pause();
  }
  // A worker that has not joined yet must not join this loop any more: closing it under the mutex
  // makes `function == nullptr` visible before the context dies.
  std::unique_lock lock(s.mutex);
  s.finished.wait(lock, [&] { return s.active.load(std::memory_order_acquire) == 0; });
  s.function = nullptr;
  if (s.error != nullptr) std::rethrow_exception(std::exchange(s.error, nullptr));
}

void ThreadPool::WorkerLoop(int thread) {
  State& s = *state_;
  uint64_t seen = 0;
  while (true) {
    for (int spin = 0; spin < kSpins && s.epoch.load(std::memory_order_acquire) == seen; ++spin) {
      _mm_pause();
    }
    Function function = nullptr;
    void* context = nullptr;
    int64_t num_items = 0;
    {
      std::unique_lock lock(s.mutex);
      ++s.sleeping;
      s.wake.wait(lock, [&] { return s.epoch.load(std::memory_order_relaxed) != seen; });
      --s.sleeping;
      seen = s.epoch.load(std::memory_order_relaxed);
      if (s.stopping) return;
      if (s.function == nullptr) continue;  // the loop ended before this thread came
      function = s.function;
      context = s.context;
      num_items = s.num_items;
      s.active.fetch_add(1, std::memory_order_relaxed);
    }
    s.Work(function, context, num_items, thread);
    if (s.active.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      const std::lock_guard lock(s.mutex);
      s.finished.notify_one();
    }
  }
}

}  // namespace lserve
