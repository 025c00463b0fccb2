// FaultyBackend: a backend whose memory runs out when a test says so: for an allocation, for an op
// that needs scratch, or for a granule of the KV cache.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "bench/metered_backend.h"

namespace lserve {

// Calls that fail: from the `first`-th on, counted from 1, `count` of them. Any thread may arm it.
class Fault {
 public:
  static constexpr int64_t kForEver = int64_t{1} << 40;

  void Arm(int64_t first, int64_t count) {
    first_ = 0;
    calls_ = 0;
    count_ = count;
    first_ = first;
  }
  void Disarm() { Arm(0, 0); }
  int64_t calls() const { return calls_; }  // since then
  Status Pass() {
    const int64_t call = ++calls_;
    const bool strikes = first_ > 0 && call >= first_ && call < first_ + count_;
    return strikes ? Status(Code::kOutOfMemory, "the test's device has no memory") : Status();
  }

 private:
  std::atomic<int64_t> first_ = 0, count_ = 0, calls_ = 0;
};

struct Faults {
  Fault allocations, ops, pages;
};

class FaultyBackend final : public MeteredBackend {
 public:
  // `faults` must outlive it.
  FaultyBackend(std::unique_ptr<Backend> inner, Faults* faults)
      : MeteredBackend(std::move(inner), &meter_), faults_(faults) {}

  Result<Buffer> Allocate(size_t bytes) override {
    LS_TRY(faults_->allocations.Pass());
    return MeteredBackend::Allocate(bytes);
  }
  Result<std::unique_ptr<KvStore>> MakeKvStore(const KvLayout& layout,
                                               const PageId (&max_pages)[kNumWays]) override {
    std::unique_ptr<KvStore> inner = LS_TRY(MeteredBackend::MakeKvStore(layout, max_pages));
    return std::unique_ptr<KvStore>(std::make_unique<Store>(std::move(inner), &faults_->pages));
  }
  Status Linear(const LinearParams& params) override {
    LS_TRY(faults_->ops.Pass());
    return MeteredBackend::Linear(params);
  }
  Status AppendKv(const AppendKvParams& params) override {
    LS_TRY(faults_->ops.Pass());
    AppendKvParams own = params;
    own.store = Inner(params.store);
    return MeteredBackend::AppendKv(own);
  }
  Status SelectPages(const SelectPagesParams& params) override {
    LS_TRY(faults_->ops.Pass());
    SelectPagesParams own = params;
    own.store = Inner(params.store);
    return MeteredBackend::SelectPages(own);
  }
  Status SelectTiles(const SelectTilesParams& params) override {
    LS_TRY(faults_->ops.Pass());
    SelectTilesParams own = params;
    own.store = Inner(params.store);
    return MeteredBackend::SelectTiles(own);
  }
  Status PrefillAttention(const AttentionParams& params) override {
    LS_TRY(faults_->ops.Pass());
    AttentionParams own = params;
    own.store = Inner(params.store);
    return MeteredBackend::PrefillAttention(own);
  }
  Status DecodeAttention(const AttentionParams& params) override {
    LS_TRY(faults_->ops.Pass());
    AttentionParams own = params;
    own.store = Inner(params.store);
    return MeteredBackend::DecodeAttention(own);
  }

 private:
  class Store final : public KvStore {
   public:
    Store(std::unique_ptr<KvStore> inner, Fault* fault)
        : KvStore(inner->layout()), inner_(std::move(inner)), fault_(fault) {}
    KvStore* inner() const { return inner_.get(); }

    Status Commit(Way way, PageId first, int count) override {
      LS_TRY(fault_->Pass());
      return inner_->Commit(way, first, count);
    }
    void Decommit(Way way, PageId first, int count) override {
      inner_->Decommit(way, first, count);
    }
    void CopyPage(Way way, PageId from, PageId to, int num_tokens) override {
      inner_->CopyPage(way, from, to, num_tokens);
    }
    Status ReadPage(Way way, PageId page, std::span<std::byte> bytes) const override {
      return inner_->ReadPage(way, page, bytes);
    }
    Status WritePage(Way way, PageId page, std::span<const std::byte> bytes) override {
      return inner_->WritePage(way, page, bytes);
    }

   private:
    std::unique_ptr<KvStore> inner_;
    Fault* fault_;
  };

  static KvStore* Inner(KvStore* store) { return static_cast<Store*>(store)->inner(); }
  static const KvStore* Inner(const KvStore* store) {
    return static_cast<const Store*>(store)->inner();
  }

  OpMeter meter_;
  Faults* faults_;
};

}  // namespace lserve
