#include "backend/cpu/cpu_isa.h"

#include <cpuid.h>

#include <cstdint>

#include "base/strings.h"

namespace lserve {
namespace {

struct CpuidRegisters {
  uint32_t eax = 0;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
};

// Zeros for a leaf that the processor does not have.
CpuidRegisters Cpuid(uint32_t leaf, uint32_t subleaf) {
  CpuidRegisters r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

// The register state that the operating system saves on a context switch (XCR0).
uint64_t SavedState() {
  uint32_t low = 0;
  uint32_t high = 0;
  // "xgetbv" as an instruction, since the intrinsic needs a compiler flag.
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

bool HasAll(uint64_t value, uint64_t bits) {
  return (value & bits) == bits;
}

// Intel SDM Vol. 2 CPUID; the sets mirror the compiler flags in CMakeLists.txt.
constexpr uint32_t kLeaf1Ecx = bit_FMA | bit_OSXSAVE | bit_AVX | bit_F16C;
constexpr uint32_t kLeaf7EbxAvx2 = bit_AVX2 | bit_BMI | bit_BMI2;
constexpr uint32_t kLeaf7EbxAvx512 =
    bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL;
// VBMI: of the processors with bf16, only Cooper Lake lacks it, and runs the AVX-512 path.
constexpr uint32_t kLeaf7EcxBf16 = bit_AVX512VNNI | bit_AVX512VBMI;
constexpr uint32_t kLeaf7Sub1EaxBf16 = bit_AVX512BF16;
constexpr uint64_t kSavedAvx = 0x6;      // XMM, YMM
constexpr uint64_t kSavedAvx512 = 0xe6;  // and opmask, upper ZMM, ZMM16-31

CpuIsa Detect() {
  const CpuidRegisters leaf1 = Cpuid(1, 0);
  if (!HasAll(leaf1.ecx, kLeaf1Ecx)) return CpuIsa::kGeneric;
  const uint64_t saved = SavedState();
  const CpuidRegisters leaf7 = Cpuid(7, 0);
  if (!HasAll(saved, kSavedAvx) || !HasAll(leaf7.ebx, kLeaf7EbxAvx2)) return CpuIsa::kGeneric;
  if (!HasAll(saved, kSavedAvx512) || !HasAll(leaf7.ebx, kLeaf7EbxAvx512)) return CpuIsa::kAvx2;
  const bool has_bf16 =
      leaf7.eax >= 1 && HasAll(Cpuid(7, 1).eax, kLeaf7Sub1EaxBf16);  // eax: the last subleaf
  if (!has_bf16 || !HasAll(leaf7.ecx, kLeaf7EcxBf16)) return CpuIsa::kAvx512;
  return CpuIsa::kAvx512Bf16;
}

}  // namespace

CpuIsa BestCpuIsa() {
  static const CpuIsa best = Detect();
  return best;
}

const char* Name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kGeneric:
      return "generic";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx512Bf16:
      return "avx512bf16";
  }
  return "";
}

Result<CpuIsa> ChooseCpuIsa(const std::string& name) {
  const CpuIsa best = BestCpuIsa();
  if (name == "auto") return best;
  for (const CpuIsa isa : kAllCpuIsas) {
    if (name != Name(isa)) continue;
    if (isa <= best) return isa;
    return Status(Code::kUnsupported, StrCat("--cpu-isa ", name, ": this processor has at most ",
                                             Name(best), "; use that or auto"));
  }
  return Status(Code::kInvalidArgument,
                StrCat("--cpu-isa ", name, ": expected auto, generic, avx2, avx512 or avx512bf16"));
}

}  // namespace lserve
