#include "backend/host_kv_store.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/strings.h"

namespace lserve {

HostKvStore::HostKvStore(KvLayout kv_layout, const PageId (&max_pages)[kNumWays])
    : KvStore(std::move(kv_layout)) {
  const size_t system_page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (const Way way : kWays) {
    const int w = Index(way);
    const size_t page_bytes = layout().way(way).page_bytes();
    // Whole system pages, so that giving one page back never touches its neighbour.
    stride_[w] = (page_bytes + system_page - 1) / system_page * system_page;
    reserved_[w] = stride_[w] * static_cast<size_t>(max_pages[w]);
  }
}

Status HostKvStore::Reserve() {
  for (const Way way : kWays) {
    const int w = Index(way);
    if (reserved_[w] == 0) continue;
    void* base = mmap(nullptr, reserved_[w], PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
      return Status(Code::kOutOfMemory,
                    StrCat("KV cache: cannot reserve ", reserved_[w] >> 20,
                           " MiB of address space: ", std::strerror(errno),
                           "; expected a size that fits the machine and its limits (ulimit -v); "
                           "lower --kv-cache-bytes"));
    }
    base_[w] = static_cast<std::byte*>(base);
  }
  return Status();
}

HostKvStore::~HostKvStore() {
  for (int w = 0; w < kNumWays; ++w) {
    if (base_[w] != nullptr) munmap(base_[w], reserved_[w]);
  }
}

Status HostKvStore::Commit(Way way, PageId first, int count) {
  const int w = Index(way);
  LS_CHECK_LE(stride_[w] * static_cast<size_t>(first + count), reserved_[w]);
  // The kernel maps pages on first touch; larger mappings save misses in the translation buffer.
  madvise(base_[w] + stride_[w] * static_cast<size_t>(first),
          stride_[w] * static_cast<size_t>(count), MADV_HUGEPAGE);
  return Status();
}

void HostKvStore::Decommit(Way way, PageId first, int count) {
  const int w = Index(way);
  const int failed = madvise(base_[w] + stride_[w] * static_cast<size_t>(first),
                             stride_[w] * static_cast<size_t>(count), MADV_DONTNEED);
  LS_CHECK_EQ(failed, 0) << std::strerror(errno);
}

void HostKvStore::CopyPage(Way way, PageId from, PageId to, int num_tokens) {
  const WayLayout& w = layout().way(way);
  for (int layer = 0; layer < layout().num_layers; ++layer) {
    for (int slot = 0; slot < w.num_slots(layer); ++slot) {
      const std::byte* kv = kv_part(way, from, layer, slot);
      std::byte* kv_copy = kv_part(way, to, layer, slot);
      std::memcpy(kv_copy, kv, w.head_bytes.kv);
      if (w.head_bytes.stats > 0) {
        RebuildStats(kv_copy, stats_part(way, to, layer, slot), num_tokens);
      }
    }
  }
}

Status HostKvStore::ReadPage(Way way, PageId page, std::span<std::byte> bytes) const {
  LS_CHECK_EQ(bytes.size(), layout().way(way).page_bytes());
  std::memcpy(bytes.data(), base_[Index(way)] + stride_[Index(way)] * static_cast<size_t>(page),
              bytes.size());
  return Status();
}

Status HostKvStore::WritePage(Way way, PageId page, std::span<const std::byte> bytes) {
  LS_CHECK_EQ(bytes.size(), layout().way(way).page_bytes());
  std::memcpy(base_[Index(way)] + stride_[Index(way)] * static_cast<size_t>(page), bytes.data(),
              bytes.size());
  return Status();
}

}  // namespace lserve
