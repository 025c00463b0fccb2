// ReferenceKvStore: the plainest layout of a head's part of a page. K/V record: keys
// [64][head_dim], values [64][head_dim], as bf16 or as one byte per code; for quantised types then
// the scales and minima, for fp8 the exponents, of the 64 keys and of the 64 values. Statistics:
// [4 logical pages][2][head_dim] bf16, minimum then maximum.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/host_kv_store.h"
#include "backend/kv_quant.h"
#include "base/half.h"

namespace lserve {

// Accessors of one head's part.
class ReferencePart {
 public:
  enum Half : uint8_t { kKey = 0, kValue = 1 };

  ReferencePart(DType dtype, int head_dim, std::byte* kv, std::byte* stats)
      : dtype_(dtype), head_dim_(head_dim), kv_(kv), stats_(stats) {}

  static KvHeadBytes Bytes(DType dtype, int head_dim);

  // Stores one vector [head_dim], rounded or quantised.
  void Store(Half half, int token, const float* x);
  // One stored element, dequantised.
  float Load(Half half, int token, int dim) const;

  // Folds a stored key into the statistics of its logical page; the first token resets them.
  void FoldStats(int token);
  float StatsMin(int logical_page, int dim) const { return ToFloat(*Stat(logical_page, 0, dim)); }
  float StatsMax(int logical_page, int dim) const { return ToFloat(*Stat(logical_page, 1, dim)); }

 private:
  size_t Element(Half half, int token, int dim) const;
  QuantScale* Scale(Half half, int token) const;
  uint8_t* Exponent(Half half, int token) const;  // of kFp8
  Bf16* Stat(int logical_page, int which, int dim) const;

  DType dtype_;
  int head_dim_;
  std::byte* kv_;
  std::byte* stats_;  // null: a head without statistics
};

class ReferenceKvStore final : public HostKvStore {
 public:
  using HostKvStore::HostKvStore;

  ReferencePart Part(Way way, PageId page, int layer, int slot) const;

 protected:
  void RebuildStats(const std::byte* kv, std::byte* stats, int num_tokens) const override;
};

}  // namespace lserve
