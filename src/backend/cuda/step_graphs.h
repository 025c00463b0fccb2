// StepGraphs: whole steps as CUDA graphs, found again by what their kernels are told. Used by
// CudaBackend::RunStep; engine thread only.
#pragma once

#include <cuda_runtime_api.h>

#include <bit>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <vector>

#include "base/status.h"

namespace lserve {

// The pointers, sizes and grids of a step's launches, in their order: all that differs between two
// steps of the same ops but for the contents of memory. Equal traces: a graph of one is the other.
class StepTrace {
 public:
  template <class... T>
  void Add(const T&... values) {
    (words_.push_back(Word(values)), ...);
  }
  void Clear() { words_.clear(); }
  bool operator==(const StepTrace& other) const { return words_ == other.words_; }

 private:
  template <class T>
  static uint64_t Word(const T& value) {
    if constexpr (std::is_pointer_v<T>) {
      return reinterpret_cast<uintptr_t>(value);
    } else if constexpr (std::is_floating_point_v<T>) {
      return std::bit_cast<uint64_t>(static_cast<double>(value));
    } else {
      return static_cast<uint64_t>(value);
    }
  }

  std::vector<uint64_t> words_;
};

class StepGraphs {
 public:
  explicit StepGraphs(cudaStream_t stream) : stream_(stream) {}
  ~StepGraphs();
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  // Queues the step that `trace` describes: replays its graph, or, the second time it is seen,
  // makes one of what `launch` queues. What is seen once (a new length, an odd batch) is queued as
  // it is: to make a graph takes longer than the step.
  Status Run(const StepTrace& trace, const std::function<Status()>& launch);

 private:
  struct Entry {
    StepTrace trace;
    cudaGraphExec_t graph = nullptr;  // null: seen once
    uint64_t last_used = 0;
  };

  Status Capture(const std::function<Status()>& launch, cudaGraphExec_t* graph);

  cudaStream_t stream_;
  std::vector<Entry> entries_;
  uint64_t clock_ = 0;
};

}  // namespace lserve
