// CpuKvStore: host pages whose head parts lie the way the attention kernels want them (KvPart).
// Written by AppendKv, read by attention and selection; knows nothing of threads or plans.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/attention_kernels.h"
#include "backend/host_kv_store.h"
#include "backend/kv_quant.h"

namespace lserve {

// One head's part of a page. K/V record: key codes, value codes, and for quantised types the f16
// scales and minima of the 64 keys, then of the 64 values. Keys are pairs of dimensions
// [head_dim / 2][64][2], values pairs of tokens [32][head_dim][2] (PageTile); a pair of 4-bit codes
// is a byte, the even element in its lower half.
//
// Statistics record: maxima, then minima of the stored (dequantised) keys, in bf16, exact; each
// [head_dim / 2][4 logical pages][2]. A logical page that no token has reached equals the page's
// first one as it was at some time, so a page's bound is that of its written keys.
struct KvPart {
  DType dtype = DType::kBf16;  // kBf16, kInt8 or kInt4
  int head_dim = 0;            // as stored: a multiple of 16, what the kernels compute on
  int width = 0;               // the model's head_dim, <= head_dim

  // Vectors are stored as wide as the kernels need them. What is added to a key meets zeros of the
  // query, what is added to a value is not written out; it repeats the first element, so that it
  // changes no minimum or maximum.
  static KvPart Of(DType dtype, int width) { return {dtype, (width + 15) / 16 * 16, width}; }

  size_t codes_bytes() const {
    return static_cast<size_t>(kPageTokens) * static_cast<size_t>(head_dim) *
           static_cast<size_t>(BitsOf(dtype)) / 8;
  }
  KvHeadBytes bytes() const;
  // [64] each: scales, minima of keys, scales, minima of values.
  uint16_t* affine(std::byte* kv) const {
    return reinterpret_cast<uint16_t*>(kv + 2 * codes_bytes());
  }
  QuantizedPage Quantized(const std::byte* kv) const;
  // Element d of a token's key as attention reads it. Slow.
  Bf16 Key(const std::byte* kv, int token, int d) const;
};

class CpuKvStore final : public HostKvStore {
 public:
  CpuKvStore(const KvLayout& layout, const PageId (&max_pages)[kNumWays])
      : HostKvStore(layout, max_pages), part_(KvPart::Of(layout.dtype, layout.head_dim)) {}

  const KvPart& part() const { return part_; }

 protected:
  void RebuildStats(const std::byte* kv, std::byte* stats, int num_tokens) const override;

 private:
  KvPart part_;
};

// Tokens for one head's part of a page.
struct AppendTokens {
  int first_token = 0;       // in the page
  int num_tokens = 0;        // first_token + num_tokens <= 64
  const float* k = nullptr;  // rows of KvPart::width
  int64_t k_stride = 0;      // floats from token to token
  const float* v = nullptr;
  int64_t v_stride = 0;
};

// `stats` may be null: a head without statistics. The page's first token makes the rest of the page
// harmless: a recycled page may hold any bits, and a weight of zero times NaN is NaN.
void AppendToPart(const AttentionKernels& kernels,
                  const KvPart& part,
                  std::byte* kv,
                  std::byte* stats,
                  const AppendTokens& tokens);

}  // namespace lserve
