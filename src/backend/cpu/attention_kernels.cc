#include "backend/cpu/attention_kernels.h"

namespace lserve {

const AttentionKernels& GetAttentionKernels(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kGeneric:
      break;
    case CpuIsa::kAvx2:
      return kAttentionAvx2;
    case CpuIsa::kAvx512:
      return kAttentionAvx512;
    case CpuIsa::kAvx512Bf16:
      return kAttentionAvx512Bf16;
  }
  return kAttentionGeneric;
}

}  // namespace lserve
