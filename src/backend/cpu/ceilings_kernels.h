// CeilingKernels: the register-only loops and the plain read that bound every other kernel, once
// per instruction set. They compute nothing anyone wants. Used by ceilings.cc only.
#pragma once

#include <cstdint>

#include "backend/cpu/cpu_isa.h"

namespace lserve {

struct CeilingKernels {
  // Each runs `steps` rounds over its accumulators; `sink` gets something that depends on all of
  // them. Null: the instruction set has no such instruction.
  void (*f32_fma)(int64_t steps, float* sink);
  void (*bf16_dot)(int64_t steps, float* sink);
  void (*int8_dot)(int64_t steps, uint32_t* sink);
  double f32_flop;   // of one step
  double bf16_flop;  // of one step
  double int8_op;    // of one step
  // Reads every byte once. REQUIRES: 64-byte aligned, a multiple of 512 bytes.
  uint64_t (*read)(const void* data, int64_t bytes);
};

// REQUIRES: isa <= BestCpuIsa() before any of them is called.
const CeilingKernels& GetCeilingKernels(CpuIsa isa);

extern const CeilingKernels kCeilingsGeneric;
extern const CeilingKernels kCeilingsAvx2;
extern const CeilingKernels kCeilingsAvx512;
extern const CeilingKernels kCeilingsAvx512Bf16;

}  // namespace lserve
