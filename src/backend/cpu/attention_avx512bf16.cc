// Attention kernels for AVX-512 with bf16 dot products.
#define LS_BF16_DOT 1
#include "backend/cpu/tile_estimate-inl.h"

namespace lserve {

const AttentionKernels kAttentionAvx512Bf16 = kKernels;

}  // namespace lserve
