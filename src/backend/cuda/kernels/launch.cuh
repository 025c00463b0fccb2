// Launches that overlap: a kernel may start while the one before it on the stream still runs, and
// do what needs nothing of it (set up, load weights), until WaitForPrevious(). Used by every kernel
// of a decode step, whose launches would else cost as much as the small kernels themselves.
//
// Rules: a kernel launched by LaunchChained() calls WaitForPrevious() in every thread, before it
// touches anything that an earlier kernel writes and before it writes anything itself. That call
// returns when all earlier work is complete and visible, since every kernel between waited too.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace lserve {

__device__ __forceinline__ void WaitForPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// From here on the next kernel may start, as soon as every block of this one has got here.
__device__ __forceinline__ void LetNextStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// GPUs before Hopper know no such overlap and ignore the attribute.
template <class... P, class... A>
cudaError_t LaunchChained(void (*kernel)(P...),
                          dim3 grid,
                          int threads,
                          size_t shared_bytes,
                          cudaStream_t stream,
                          const A&... args) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, P(args)...);
}

}  // namespace lserve
