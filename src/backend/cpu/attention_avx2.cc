// Attention kernels for AVX2 with FMA.
#define LS_BF16_DOT 0
#include "backend/cpu/tile_estimate-inl.h"

namespace lserve {

const AttentionKernels kAttentionAvx2 = kKernels;

}  // namespace lserve
