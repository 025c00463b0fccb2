// The tensor-core and copy instructions of sm_80 that the attention kernels are made of. Fragments
// are those of PTX ISA, "mma.m16n8k16 with floating point type": with r = lane / 4, j = lane % 4,
//   A [16][16]: a0 (r, 2j) a1 (r + 8, 2j) a2 (r, 2j + 8) a3 (r + 8, 2j + 8), two columns each;
//   B [16][8]:  b0 (2j, r) b1 (2j + 8, r), two rows each;
//   C [16][8]:  c0 c1 (r, 2j), c2 c3 (r + 8, 2j).
#pragma once

#include <cstdint>

namespace lserve {

// c += a b, bf16 in, float accumulators.
__device__ inline void Mma(
    float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of bf16; lanes 8 i .. 8 i + 7 give the row addresses of matrix i.
__device__ inline void LoadMatrices(uint32_t (&m)[4], const void* shared) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

// The transpose of an 8x8 matrix of bf16 held across the warp.
__device__ inline uint32_t Transpose(uint32_t matrix) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(matrix));
  return out;
}

// 16 bytes from global to shared memory, past the registers and L1.
__device__ inline void CopyAsync(void* shared, const void* global) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
// The same, or 16 bytes of zeros.
__device__ inline void CopyAsyncIf(bool there, void* shared, const void* global) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most `kPending` of the newest groups are still under way.
template <int kPending>
__device__ inline void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 2^x to 2 ulp; 2^-inf = 0.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace lserve
