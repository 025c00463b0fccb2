// Ceilings of AVX-512 with bf16 and int8 dot products; flags: CMakeLists.txt.
#include "backend/cpu/ceilings-inl.h"

namespace lserve {

const CeilingKernels kCeilingsAvx512Bf16 = {.f32_fma = F32Fma,
                                            .bf16_dot = Bf16Dot,
                                            .int8_dot = Int8Dot,
                                            .f32_flop = kF32Flop,
                                            .bf16_flop = kBf16Flop,
                                            .int8_op = kInt8Op,
                                            .read = ReadBytes};

}  // namespace lserve
