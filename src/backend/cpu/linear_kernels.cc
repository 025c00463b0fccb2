#include "backend/cpu/linear_kernels.h"

namespace lserve {

namespace generic {
extern const LinearKernels kLinearKernels;
}
namespace avx2 {
extern const LinearKernels kLinearKernels;
}
namespace avx512 {
extern const LinearKernels kLinearKernels;
}
namespace avx512bf16 {
extern const LinearKernels kLinearKernels;
}

const LinearKernels& GetLinearKernels(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kGeneric:
      break;
    case CpuIsa::kAvx2:
      return avx2::kLinearKernels;
    case CpuIsa::kAvx512:
      return avx512::kLinearKernels;
    case CpuIsa::kAvx512Bf16:
      return avx512bf16::kLinearKernels;
  }
  return generic::kLinearKernels;
}

}  // namespace lserve
