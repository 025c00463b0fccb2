#include "backend/cuda/cuda_status.h"

#include "base/strings.h"

namespace lserve {

Status CudaStatus(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return Status();
  if (error == cudaErrorMemoryAllocation) {
    return Status(Code::kOutOfMemory,
                  StrCat("out of GPU memory in ", call,
                         "; use a smaller model, context or batch, a smaller "
                         "--gpu-memory-utilization, or free the GPU of other programs"));
  }
  return Status(Code::kDeviceLost,
                StrCat("GPU error ", cudaGetErrorName(error), " (", cudaGetErrorString(error),
                       ") in ", call, ", expected success; start again, and check nvidia-smi and ",
                       "the system's log if it returns"));
}

Status CublasStatus(cublasStatus_t error, const char* call) {
  if (error == CUBLAS_STATUS_SUCCESS) return Status();
  return Status(error == CUBLAS_STATUS_ALLOC_FAILED ? Code::kOutOfMemory : Code::kDeviceLost,
                StrCat("cuBLAS error ", cublasGetStatusName(error), " in ", call,
                       ", expected success; check nvidia-smi for other programs on the GPU"));
}

}  // namespace lserve
