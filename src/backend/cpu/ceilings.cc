#include "backend/cpu/ceilings.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "base/check.h"
#include "base/clock.h"

namespace lserve {
namespace {

// A ceiling is the best of many loops, each shorter than a scheduler's time slice; the gauge is
// long enough to meet the neighbours.
constexpr double kLoopSeconds = 0.002;
constexpr int kLoops = 40;
constexpr double kGaugeSeconds = 0.020;
// Items per thread: a core that is lost for a moment costs an item, not the loop.
constexpr int kItemsPerThread = 16;
// Eight times the largest last-level cache that we have met on a machine of this kind.
constexpr int64_t kReadBytes = int64_t{256} << 20;
constexpr int64_t kReadLoopBytes = int64_t{32} << 20;
constexpr int64_t kReadItemBytes = int64_t{1} << 20;

// Processor time of this thread.
double ThreadSeconds() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

}  // namespace

const CeilingKernels& GetCeilingKernels(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kGeneric:
      break;
    case CpuIsa::kAvx2:
      return kCeilingsAvx2;
    case CpuIsa::kAvx512:
      return kCeilingsAvx512;
    case CpuIsa::kAvx512Bf16:
      return kCeilingsAvx512Bf16;
  }
  return kCeilingsGeneric;
}

CeilingMeter::CeilingMeter(CpuIsa isa, int num_threads)
    : isa_(isa), kernels_(GetCeilingKernels(isa)), pool_(num_threads) {
  LS_CHECK(isa <= BestCpuIsa()) << Name(isa);
}

template <class Sink>
CeilingMeter::LoopRate CeilingMeter::Rate(void (*loop)(int64_t, Sink*),
                                          double work_per_step,
                                          double seconds) {
  if (loop == nullptr) return {};
  // How many steps an item of the right length has, from a short loop on this thread.
  constexpr int64_t kProbeSteps = 5000;
  Sink probe = 0;
  loop(kProbeSteps, &probe);  // wakes the wide units
  const double probe_begin = ThreadSeconds();
  loop(kProbeSteps, &probe);
  const double probe_seconds = std::max(ThreadSeconds() - probe_begin, 1e-9);
  const double item_seconds = seconds / kItemsPerThread;
  const int64_t steps =
      std::max<int64_t>(1, static_cast<int64_t>(item_seconds / probe_seconds * kProbeSteps));
  const int64_t items = int64_t{kItemsPerThread} * num_threads();
  struct alignas(64) Slot {
    Sink sink = 0;
    double thread_seconds = 0;
  };
  std::vector<Slot> slots(static_cast<size_t>(num_threads()));
  const Stopwatch watch;
  pool_.Run(items, [&](int64_t, int thread) {
    Slot& slot = slots[static_cast<size_t>(thread)];
    const double begin = ThreadSeconds();
    loop(steps, &slot.sink);
    slot.thread_seconds += ThreadSeconds() - begin;
  });
  const double work = static_cast<double>(items * steps) * work_per_step;
  double thread_seconds = 1e-9;
  for (const Slot& slot : slots) thread_seconds += slot.thread_seconds;
  return {.wall = work / watch.seconds(), .processor = work / thread_seconds * num_threads()};
}

double CeilingMeter::ReadRate() {
  // Huge pages where the system gives them, as the weights have (cpu_backend.cc).
  constexpr size_t kHugePage = size_t{2} << 20;
  const std::unique_ptr<char, decltype(&std::free)> memory(
      static_cast<char*>(std::aligned_alloc(kHugePage, kReadBytes)), &std::free);
  if (memory == nullptr) return 0;
  static_cast<void>(madvise(memory.get(), kReadBytes, MADV_HUGEPAGE));
  const int64_t items = kReadBytes / kReadItemBytes;
  pool_.Run(items, [&](int64_t item, int) {
    std::memset(memory.get() + item * kReadItemBytes, 1, static_cast<size_t>(kReadItemBytes));
  });
  // Windows that have been read 256 MiB ago are in no cache.
  const int64_t loop_items = kReadLoopBytes / kReadItemBytes;
  double best = 0;
  for (int64_t i = 0; i < kLoops; ++i) {
    const char* const window = memory.get() + i * kReadLoopBytes % kReadBytes;
    std::vector<uint64_t> sums(static_cast<size_t>(num_threads()) * 64);
    const Stopwatch watch;
    pool_.Run(loop_items, [&](int64_t item, int thread) {
      sums[static_cast<size_t>(thread) * 64] +=
          kernels_.read(window + item * kReadItemBytes, kReadItemBytes);
    });
    best = std::max(best, static_cast<double>(kReadLoopBytes) / watch.seconds());
  }
  return best;
}

CpuCeilings CeilingMeter::Measure() {
  CpuCeilings ceilings;
  for (int i = 0; i < kLoops; ++i) {
    ceilings.f32_flop_s = std::max(
        ceilings.f32_flop_s, Rate(kernels_.f32_fma, kernels_.f32_flop, kLoopSeconds).processor);
    ceilings.bf16_flop_s = std::max(
        ceilings.bf16_flop_s, Rate(kernels_.bf16_dot, kernels_.bf16_flop, kLoopSeconds).processor);
    ceilings.int8_op_s = std::max(
        ceilings.int8_op_s, Rate(kernels_.int8_dot, kernels_.int8_op, kLoopSeconds).processor);
  }
  ceilings.read_bytes_s = ReadRate();
  return ceilings;
}

double CeilingMeter::Gauge() {
  return kernels_.bf16_dot != nullptr
             ? Rate(kernels_.bf16_dot, kernels_.bf16_flop, kGaugeSeconds).wall
             : Rate(kernels_.f32_fma, kernels_.f32_flop, kGaugeSeconds).wall;
}

}  // namespace lserve
