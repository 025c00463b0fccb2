// Attention kernels for AVX-512 without bf16 dot products.
#define LS_BF16_DOT 0
#include "backend/cpu/tile_estimate-inl.h"

namespace lserve {

const AttentionKernels kAttentionAvx512 = kKernels;

}  // namespace lserve
