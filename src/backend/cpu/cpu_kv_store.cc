#include "backend/cpu/cpu_kv_store.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "backend/cpu/cpu_backend.h"
#include "base/check.h"
#include "base/half.h"
#include "base/strings.h"

namespace lserve {
namespace {

constexpr int kMaxHeadDim = 256;

size_t RoundUp64(size_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// Element positions inside PageTile.
size_t KeyIndex(int token, int d) {
  return static_cast<size_t>((d / 2 * kPageTokens + token) * 2 + d % 2);
}

// Consecutive tokens of one logical page, rows of kMaxHeadDim.
struct Rows {
  uint16_t stored[kLogicalPageTokens][kMaxHeadDim];  // bf16, as attention reads them
  uint8_t codes[kLogicalPageTokens][kMaxHeadDim];    // if quantised
};

// The statistics of one logical page, in memory order of dimensions.
class LogicalStats {
 public:
  LogicalStats(std::byte* stats, int head_dim)
      : max_(reinterpret_cast<uint16_t*>(stats)),
        min_(max_ + int64_t{head_dim} * kLogicalPagesPerPage),
        head_dim_(head_dim) {}

  // Folds rows [first_token, first_token + count) of the page. Its first token also sets the other
  // logical pages, see KvPart.
  void Fold(const AttentionKernels& kernels, int first_token, int count, const Rows& rows) {
    const int logical_page = first_token / kLogicalPageTokens;
    int row = 0;
    if (first_token % kLogicalPageTokens == 0) {
      Set(rows.stored[row++]);
      if (first_token == 0) {
        for (int l = 1; l < kLogicalPagesPerPage; ++l) Write(l);
      }
    } else {
      Read(logical_page);
    }
    for (; row < count; ++row) kernels.fold_row(rows.stored[row], head_dim_, maxima_, minima_);
    Write(logical_page);
  }

 private:
  static int Index(int logical_page, int d) {
    return (d / 2 * kLogicalPagesPerPage + logical_page) * 2 + d % 2;
  }
  void Set(const uint16_t* row) {
    for (int d = 0; d < head_dim_; ++d) maxima_[d] = minima_[d] = ToFloat(Bf16{row[d]});
  }
  void Read(int logical_page) {
    for (int d = 0; d < head_dim_; ++d) {
      maxima_[d] = ToFloat(Bf16{max_[Index(logical_page, d)]});
      minima_[d] = ToFloat(Bf16{min_[Index(logical_page, d)]});
    }
  }
  // Exact: the extremes of bf16 numbers are such.
  void Write(int logical_page) {
    for (int d = 0; d < head_dim_; ++d) {
      max_[Index(logical_page, d)] = ToBf16(maxima_[d]).bits;
      min_[Index(logical_page, d)] = ToBf16(minima_[d]).bits;
    }
  }

  float maxima_[kMaxHeadDim];
  float minima_[kMaxHeadDim];
  uint16_t* max_;
  uint16_t* min_;
  int head_dim_;
};

enum Half { kKeys, kValues };

// Rounds or quantises one row; a quantised one leaves its scale and minimum in the record.
void Convert(const AttentionKernels& kernels,
             const KvPart& part,
             const float* x,
             Half half,
             int token,
             std::byte* kv,
             uint16_t* stored,
             uint8_t* codes) {
  float padded[kMaxHeadDim];
  if (part.width < part.head_dim) {
    std::copy_n(x, part.width, padded);
    std::fill(padded + part.width, padded + part.head_dim, x[0]);
    x = padded;
  }
  if (part.dtype == DType::kBf16) return kernels.round_row(x, part.head_dim, stored);
  const int levels = QuantLevels(part.dtype);
  float range[2];
  kernels.range_of_row(x, part.head_dim, &range[0], &range[1]);
  const QuantScale scale = ChooseQuantScale(range, 2, levels);
  uint16_t* affine = part.affine(kv) + half * 2 * kPageTokens + token;
  affine[0] = scale.scale.bits;
  affine[kPageTokens] = scale.min.bits;
  kernels.quantize_row({.x = x,
                        .head_dim = part.head_dim,
                        .levels = levels,
                        .codes = codes,
                        .stored = stored,
                        .scale = ToFloat(scale.scale),
                        .min = ToFloat(scale.min)});
}

// How elements lie in the record: a pair of them is one `Pair`, the even one in its lower half.
template <class PairType, int kElementBits>
struct Packing {
  using Pair = PairType;
  static constexpr int kBits = kElementBits;
  static Pair Make(uint32_t even, uint32_t odd) { return static_cast<Pair>(even | odd << kBits); }
  static uint32_t Even(Pair pair) { return pair & ((1u << kBits) - 1); }
  static uint32_t Odd(Pair pair) { return static_cast<uint32_t>(pair) >> kBits; }
};

// Calls f(Packing, the rows' elements as they go into the record).
template <class F>
void WithPacking(DType dtype, const Rows& rows, F&& f) {
  switch (dtype) {
    case DType::kBf16:
      return f(Packing<uint32_t, 16>(), rows.stored);
    case DType::kInt8:
      return f(Packing<uint16_t, 8>(), rows.codes);
    default:
      return f(Packing<uint8_t, 4>(), rows.codes);
  }
}

void WriteKeys(const KvPart& part, std::byte* kv, int first_token, int count, const Rows& rows) {
  WithPacking(part.dtype, rows, [&](auto packing, const auto& elements) {
    using Pack = decltype(packing);
    auto* keys = reinterpret_cast<typename Pack::Pair*>(kv) + first_token;
    for (int d = 0; d < part.head_dim; d += 2, keys += kPageTokens) {
      for (int i = 0; i < count; ++i) keys[i] = Pack::Make(elements[i][d], elements[i][d + 1]);
    }
  });
}

// A pair of values is two tokens; an odd one completes what its neighbour left.
void WriteValues(const KvPart& part, std::byte* kv, int first_token, int count, const Rows& rows) {
  WithPacking(part.dtype, rows, [&](auto packing, const auto& elements) {
    using Pack = decltype(packing);
    auto* values = reinterpret_cast<typename Pack::Pair*>(kv + part.codes_bytes());
    for (int i = 0; i < count;) {
      const int token = first_token + i;
      auto* row = values + token / 2 * part.head_dim;
      if (token % 2 == 0 && i + 1 < count) {
        for (int d = 0; d < part.head_dim; ++d) {
          row[d] = Pack::Make(elements[i][d], elements[i + 1][d]);
        }
        i += 2;
        continue;
      }
      for (int d = 0; d < part.head_dim; ++d) {
        row[d] = token % 2 == 0 ? Pack::Make(elements[i][d], Pack::Odd(row[d]))
                                : Pack::Make(Pack::Even(row[d]), elements[i][d]);
      }
      ++i;
    }
  });
}

// Unwritten keys are masked by selection, unwritten values only by a weight of zero, and zero times
// NaN is NaN. A quantised value is zero when its scale and minimum are.
void ClearValues(const KvPart& part, std::byte* kv) {
  if (part.dtype == DType::kBf16) {
    std::memset(kv + part.codes_bytes(), 0, part.codes_bytes());
  } else {
    std::memset(part.affine(kv), 0, 4 * kPageTokens * sizeof(uint16_t));
  }
}

}  // namespace

KvHeadBytes KvPart::bytes() const {
  const size_t affine_bytes = dtype == DType::kBf16 ? 0 : 4 * kPageTokens * sizeof(uint16_t);
  return {.kv = RoundUp64(2 * codes_bytes() + affine_bytes),
          .stats = RoundUp64(size_t{2} * kLogicalPagesPerPage * static_cast<size_t>(head_dim) *
                             sizeof(uint16_t))};
}

QuantizedPage KvPart::Quantized(const std::byte* kv) const {
  const uint16_t* affine = reinterpret_cast<const uint16_t*>(kv + 2 * codes_bytes());
  return {.key_codes = kv,
          .value_codes = kv + codes_bytes(),
          .key_scales = affine,
          .key_mins = affine + kPageTokens,
          .value_scales = affine + 2 * kPageTokens,
          .value_mins = affine + 3 * kPageTokens};
}

Bf16 KvPart::Key(const std::byte* kv, int token, int d) const {
  const size_t index = KeyIndex(token, d);
  if (dtype == DType::kBf16) return Bf16{reinterpret_cast<const uint16_t*>(kv)[index]};
  uint32_t code = static_cast<uint32_t>(kv[dtype == DType::kInt8 ? index : index / 2]);
  if (dtype == DType::kInt4) code = index % 2 == 0 ? code & 0xf : code >> 4;
  const QuantizedPage page = Quantized(kv);
  return Dequantize(static_cast<uint8_t>(code),
                    {F16{page.key_scales[token]}, F16{page.key_mins[token]}});
}

void CpuKvStore::RebuildStats(const std::byte* kv, std::byte* stats, int num_tokens) const {
  const AttentionKernels& kernels = GetAttentionKernels(CpuIsa::kGeneric);
  LogicalStats fold(stats, part_.head_dim);
  Rows rows;
  for (int first = 0; first < num_tokens; first += kLogicalPageTokens) {
    const int count = std::min(kLogicalPageTokens, num_tokens - first);
    for (int i = 0; i < count; ++i) {
      for (int d = 0; d < part_.head_dim; ++d) rows.stored[i][d] = part_.Key(kv, first + i, d).bits;
    }
    fold.Fold(kernels, first, count, rows);
  }
}

void AppendToPart(const AttentionKernels& kernels,
                  const KvPart& part,
                  std::byte* kv,
                  std::byte* stats,
                  const AppendTokens& tokens) {
  if (tokens.first_token == 0 && tokens.num_tokens < kPageTokens) ClearValues(part, kv);
  Rows rows;
  for (int done = 0; done < tokens.num_tokens;) {
    const int first = tokens.first_token + done;
    const int count =
        std::min(kLogicalPageTokens - first % kLogicalPageTokens, tokens.num_tokens - done);
    const auto convert = [&](Half half, const float* x, int64_t stride) {
      for (int i = 0; i < count; ++i) {
        Convert(kernels, part, x + (done + i) * stride, half, first + i, kv, rows.stored[i],
                rows.codes[i]);
      }
    };
    convert(kKeys, tokens.k, tokens.k_stride);
    WriteKeys(part, kv, first, count, rows);
    if (stats != nullptr) LogicalStats(stats, part.head_dim).Fold(kernels, first, count, rows);
    convert(kValues, tokens.v, tokens.v_stride);
    WriteValues(part, kv, first, count, rows);
    done += count;
  }
}

// int8 takes as much memory as fp8 would (ADR 0033).
bool CpuBackend::has_kv_dtype(DType dtype) const {
  return dtype == DType::kBf16 || dtype == DType::kInt8 || dtype == DType::kInt4;
}

KvHeadBytes CpuBackend::kv_head_bytes(DType dtype, int head_dim) const {
  LS_CHECK(has_kv_dtype(dtype)) << Name(dtype);
  return KvPart::Of(dtype, head_dim).bytes();
}

Result<std::unique_ptr<KvStore>> CpuBackend::MakeKvStore(const KvLayout& layout,
                                                         const PageId (&max_pages)[kNumWays]) {
  if (layout.head_dim < 1 || layout.head_dim > kMaxHeadDim) {
    return Status(Code::kUnsupported,
                  StrCat("head_dim is ", layout.head_dim, ", the cpu backend expects 1 to ",
                         kMaxHeadDim, "; try --device reference"));
  }
  auto store = std::make_unique<CpuKvStore>(layout, max_pages);
  LS_TRY(store->Reserve());
  return std::unique_ptr<KvStore>(std::move(store));
}

}  // namespace lserve
