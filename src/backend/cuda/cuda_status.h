// Turns the error codes of CUDA's libraries into Status. Used by every host file of this folder.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include "base/status.h"

namespace lserve {

// kOutOfMemory for an allocation that does not fit, kDeviceLost for everything else: after another
// error the device's context gives no further answers.
Status CudaStatus(cudaError_t error, const char* call);
Status CublasStatus(cublasStatus_t error, const char* call);

}  // namespace lserve

// Returns the status of a failed CUDA call from the enclosing function.
#define LS_CUDA(call) LS_TRY(::lserve::CudaStatus((call), #call))
#define LS_CUBLAS(call) LS_TRY(::lserve::CublasStatus((call), #call))
