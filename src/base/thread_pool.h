// ThreadPool: runs the items of a parallel loop on a fixed set of threads. It is no task graph
// and no executor: one loop at a time, called from one thread. Used by the CPU backend, and by
// loaders for packing.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace lserve {

// Thread safety: Run() from one thread at a time. The caller works too, so a pool of n threads
// starts n - 1. Items are handed out one by one from a shared counter: a thread that loses its
// core costs the item it holds, not its whole share. Idle workers spin briefly (a decode step has
// hundreds of short loops), then sleep.
class ThreadPool {
 public:
  // `num_threads` >= 1; 0 means one per core this process may run on. Fewer if the system has no
  // more: see num_threads().
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls f(item, thread) for every item in [0, num_items), thread in [0, num_threads()); returns
  // when all are done. Which thread takes which item is not fixed: results must not depend on it.
  // The first exception of an item (std::bad_alloc) is thrown here, when no thread is at work any
  // more; items after it may have been left out.
  template <class F>
  void Run(int64_t num_items, F&& f) {
    RunErased(num_items, &Invoke<std::remove_reference_t<F>>,
              const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  using Function = void (*)(void* context, int64_t item, int thread);
  struct State;

  template <class F>
  static void Invoke(void* context, int64_t item, int thread) {
    (*static_cast<F*>(context))(item, thread);
  }
  void RunErased(int64_t num_items, Function function, void* context);
  void WorkerLoop(int thread);

  int num_threads_;
  std::unique_ptr<State> state_;
};

// Cores that this process may run on (its affinity mask).
int NumUsableCores();

}  // namespace lserve
