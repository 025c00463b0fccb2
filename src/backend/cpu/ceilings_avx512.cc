// Ceilings of one instruction set; flags: CMakeLists.txt.
#include "backend/cpu/ceilings-inl.h"

namespace lserve {

const CeilingKernels kCeilingsAvx512 = {.f32_fma = F32Fma,
                                        .bf16_dot = nullptr,
                                        .int8_dot = nullptr,
                                        .f32_flop = kF32Flop,
                                        .bf16_flop = 0,
                                        .int8_op = 0,
                                        .read = ReadBytes};

}  // namespace lserve
