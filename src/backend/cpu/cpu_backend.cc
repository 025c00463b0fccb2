#include "backend/cpu/cpu_backend.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/linear_kernels.h"
#include "base/check.h"
#include "base/round_up.h"
#include "base/strings.h"

namespace lserve {

namespace {

constexpr size_t kAlignment = 64;
// From here on, 2 MiB pages: a GEMV streams a weight faster with one TLB miss per 2 MiB.
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kAddressSpace = size_t{1} << 47;

}  // namespace

CpuBackend::CpuBackend(CpuIsa isa, int num_threads)
    : isa_(isa),
      pool_(num_threads),
      linear_(&GetLinearKernels(isa)),
      attention_(&GetAttentionKernels(isa)) {
  LS_CHECK(isa <= BestCpuIsa()) << Name(isa);
}

CpuBackend::~CpuBackend() = default;

std::string CpuBackend::description() const {
  return StrCat("cpu, ", Name(isa_), ", ", pool_.num_threads(),
                pool_.num_threads() == 1 ? " thread" : " threads");
}

// The number of threads changes no bit.
std::string CpuBackend::kv_signature() const {
  return StrCat("cpu, ", Name(isa_));
}

Result<Buffer> CpuBackend::Allocate(size_t bytes) {
  if (bytes == 0) return Buffer{};
  if (bytes > kAddressSpace) {
    return Status(Code::kOutOfMemory, StrCat("allocate ", bytes, " bytes: an address space has ",
                                             kAddressSpace, "; check the size asked for"));
  }
  const size_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  const size_t capacity = RoundUp(bytes, alignment);
  void* memory = std::aligned_alloc(alignment, capacity);
  if (memory == nullptr) {
    return Status(Code::kOutOfMemory,
                  StrCat("allocate ", bytes, " bytes: the system has not that much memory free; ",
                         "use a smaller model, context or batch"));
  }
  if (alignment == kHugePage) {
    // Advice only: without huge pages everything works, slower. Not for the end, of which a huge
    // page would take more than was asked for.
    static_cast<void>(madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE));
  }
  return Buffer{std::shared_ptr<void>(memory, &std::free), bytes};
}

Status CpuBackend::CopyToDevice(void* device, const void* host, size_t bytes) {
  if (bytes > 0) std::memcpy(device, host, bytes);
  return Status();
}

Status CpuBackend::CopyToHost(void* host, const void* device, size_t bytes) {
  if (bytes > 0) std::memcpy(host, device, bytes);
  return Status();
}

}  // namespace lserve
