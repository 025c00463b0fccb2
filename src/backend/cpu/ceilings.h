// CeilingMeter: what this machine's cores can do at best, measured with loops that stay in
// registers and with a plain read of memory; and the speed gauge, a short such loop that shows
// whether the machine is quiet. No part of a forward pass. Used by the benches.
#pragma once

#include <memory>

#include "backend/cpu/ceilings_kernels.h"
#include "backend/cpu/cpu_isa.h"
#include "base/thread_pool.h"

namespace lserve {

// All threads together. 0: the instruction set has no such instruction.
struct CpuCeilings {
  double f32_flop_s = 0;    // fused multiply-adds
  double bf16_flop_s = 0;   // vdpbf16ps
  double int8_op_s = 0;     // vpdpbusd
  double read_bytes_s = 0;  // of memory; 0: there was no room for 256 MiB

  // What dense bf16 arithmetic is bounded by.
  double dot_flop_s() const { return bf16_flop_s > 0 ? bf16_flop_s : f32_flop_s; }
};

class CeilingMeter {
 public:
  // REQUIRES: isa <= BestCpuIsa(). `num_threads` 0: every core this process may use.
  CeilingMeter(CpuIsa isa, int num_threads);

  // The best of 40 loops of about 2 ms each. Arithmetic is counted per second of the threads' own
  // processor time: it is what the cores can do, whoever else runs on them. (Where two threads
  // share a core, that holds only while both run.) Memory is shared, so reading it is counted per
  // second of the clock. About half a second and 256 MiB in all.
  CpuCeilings Measure();

  // FLOP/s by the clock of the loop behind dot_flop_s(), once, 20 ms: below the ceiling by what
  // others take.
  double Gauge();

  CpuIsa isa() const { return isa_; }
  int num_threads() const { return pool_.num_threads(); }

 private:
  struct LoopRate {
    double wall = 0;       // per second of the clock
    double processor = 0;  // per second of processor time, times threads
  };
  template <class Sink>
  LoopRate Rate(void (*loop)(int64_t, Sink*), double work_per_step, double seconds);
  double ReadRate();

  CpuIsa isa_;
  const CeilingKernels& kernels_;
  ThreadPool pool_;
};

}  // namespace lserve
