// Attention kernels for a compiler's choice of portable instructions.
#define LS_BF16_DOT 0
// Four emulated lanes. Highway refuses them to GCC before 12.3, which gets wide multiplications for
// their upper half wrong (GCC bug 106322); there is none here.
// NOLINTBEGIN(readability-identifier-naming): Highway's own switches.
#define HWY_BROKEN_EMU128 0
#define HWY_COMPILE_ONLY_EMU128
// NOLINTEND(readability-identifier-naming)
#include "backend/cpu/tile_estimate-inl.h"

namespace lserve {

const AttentionKernels kAttentionGeneric = kKernels;

}  // namespace lserve
