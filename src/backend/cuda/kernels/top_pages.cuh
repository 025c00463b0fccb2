// Turns a set of kept indices into ascending runs. Used by both selectors; one block of threads.
#pragma once

#include "backend/cuda/device_views.h"

namespace lserve {

// The sum of `x` over the threads before this one, and of all in `total`. Blocks of up to 1024
// threads; `shared` holds 33 ints and may be used again after the next barrier.
__device__ inline int ExclusiveSum(int x, int* shared, int* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = x;
  for (int offset = 1; offset < 32; offset *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += before;
  }
  __syncthreads();
  if (lane == 31) shared[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    const int num_warps = (blockDim.x + 31) / 32;
    const int own = lane < num_warps ? shared[lane] : 0;
    int scan = own;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int before = __shfl_up_sync(0xffffffffu, scan, offset);
      if (lane >= offset) scan += before;
    }
    if (lane < num_warps) shared[lane] = scan - own;
    if (lane == num_warps - 1) shared[32] = scan;
  }
  __syncthreads();
  *total = shared[32];
  return shared[warp] + sum - x;
}

// Writes the set bits of bitmap[0, num_words) as runs of `unit` pages per bit into entry `entry` of
// the table. All threads of the block; a barrier has made the bitmap visible.
__device__ inline void WriteRuns(const uint32_t* bitmap,
                                 int num_words,
                                 int unit,
                                 const SelectionTable& table,
                                 int entry,
                                 int* shared) {
  PageRun* runs = table.runs + int64_t{entry} * table.capacity;
  int done = 0;
  for (int first = 0; first < num_words; first += blockDim.x) {
    const int i = first + threadIdx.x;
    const uint32_t word = i < num_words ? bitmap[i] : 0;
    const uint32_t before = i > 0 && i <= num_words ? bitmap[i - 1] : 0;
    const uint32_t after = i + 1 < num_words ? bitmap[i + 1] : 0;
    uint32_t starts = word & ~(word << 1 | before >> 31);
    uint32_t ends = word & ~(word >> 1 | after << 31);
    int total = 0;
    int start = done + ExclusiveSum(__popc(starts), shared, &total);
    // Runs that began before this word and end in it or later count from the last start.
    int end = start - ((word & 1) != 0 && (starts & 1) == 0 ? 1 : 0);
    for (; starts != 0; starts &= starts - 1) {
      if (start < table.capacity) runs[start].first = (i * 32 + __ffs(starts) - 1) * unit;
      ++start;
    }
    for (; ends != 0; ends &= ends - 1) {
      if (end < table.capacity) runs[end].last = (i * 32 + __ffs(ends)) * unit;
      ++end;
    }
    done += total;
  }
  if (threadIdx.x == 0) table.num_runs[entry] = min(done, table.capacity);
}

}  // namespace lserve
