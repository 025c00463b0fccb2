#include "backend/reference/reference_kv_store.h"

#include "backend/reference/reference_backend.h"
#include "base/check.h"

namespace lserve {
namespace {

size_t RoundUp64(size_t bytes) {
  return (bytes + 63) / 64 * 64;
}

}  // namespace

KvHeadBytes ReferencePart::Bytes(DType dtype, int head_dim) {
  const size_t elements = size_t{2} * kPageTokens * static_cast<size_t>(head_dim);
  const size_t scale_bytes = dtype == DType::kFp8 ? sizeof(uint8_t) : sizeof(QuantScale);
  const size_t kv = dtype == DType::kBf16 ? elements * sizeof(Bf16)
                                          : elements + size_t{2} * kPageTokens * scale_bytes;
  const size_t stats =
      size_t{2} * kLogicalPagesPerPage * static_cast<size_t>(head_dim) * sizeof(Bf16);
  return {.kv = RoundUp64(kv), .stats = RoundUp64(stats)};
}

size_t ReferencePart::Element(Half half, int token, int dim) const {
  return (size_t{half} * kPageTokens + static_cast<size_t>(token)) *
             static_cast<size_t>(head_dim_) +
         static_cast<size_t>(dim);
}

QuantScale* ReferencePart::Scale(Half half, int token) const {
  std::byte* scales = kv_ + Element(kValue, kPageTokens, 0);
  return reinterpret_cast<QuantScale*>(scales) + int64_t{half} * kPageTokens + token;
}

uint8_t* ReferencePart::Exponent(Half half, int token) const {
  std::byte* exponents = kv_ + Element(kValue, kPageTokens, 0);
  return reinterpret_cast<uint8_t*>(exponents) + int64_t{half} * kPageTokens + token;
}

Bf16* ReferencePart::Stat(int logical_page, int which, int dim) const {
  return reinterpret_cast<Bf16*>(stats_) + (int64_t{logical_page} * 2 + which) * head_dim_ + dim;
}

void ReferencePart::Store(Half half, int token, const float* x) {
  if (dtype_ == DType::kBf16) {
    for (int d = 0; d < head_dim_; ++d) {
      reinterpret_cast<Bf16*>(kv_)[Element(half, token, d)] = ToBf16(x[d]);
    }
    return;
  }
  if (dtype_ == DType::kFp8) {
    const uint8_t exponent = ChooseFp8Exponent(x, head_dim_);
    *Exponent(half, token) = exponent;
    for (int d = 0; d < head_dim_; ++d) {
      kv_[Element(half, token, d)] = std::byte{Fp8Code(x[d], exponent)};
    }
    return;
  }
  const int levels = QuantLevels(dtype_);
  const QuantScale scale = ChooseQuantScale(x, head_dim_, levels);
  *Scale(half, token) = scale;
  for (int d = 0; d < head_dim_; ++d) {
    kv_[Element(half, token, d)] = std::byte{QuantCode(x[d], scale, levels)};
  }
}

float ReferencePart::Load(Half half, int token, int dim) const {
  const size_t at = Element(half, token, dim);
  if (dtype_ == DType::kBf16) return ToFloat(reinterpret_cast<const Bf16*>(kv_)[at]);
  const uint8_t code = static_cast<uint8_t>(kv_[at]);
  if (dtype_ == DType::kFp8) return ToFloat(DequantizeFp8(code, *Exponent(half, token)));
  return ToFloat(Dequantize(code, *Scale(half, token)));
}

void ReferencePart::FoldStats(int token) {
  if (stats_ == nullptr) return;
  const int logical_page = token / kLogicalPageTokens;
  const bool reset = token % kLogicalPageTokens == 0;
  for (int d = 0; d < head_dim_; ++d) {
    const float key = Load(kKey, token, d);
    Bf16* min = Stat(logical_page, 0, d);
    Bf16* max = Stat(logical_page, 1, d);
    // Stored keys are bf16, so the bounds are exact.
    if (reset || key < ToFloat(*min)) *min = ToBf16(key);
    if (reset || key > ToFloat(*max)) *max = ToBf16(key);
  }
}

ReferencePart ReferenceKvStore::Part(Way way, PageId page, int layer, int slot) const {
  LS_CHECK_NE(page, kNoPage) << "an op visits a page that was trimmed away";
  const bool has_stats = layout().way(way).head_bytes.stats > 0;
  return ReferencePart(layout().dtype, layout().head_dim, kv_part(way, page, layer, slot),
                       has_stats ? stats_part(way, page, layer, slot) : nullptr);
}

void ReferenceKvStore::RebuildStats(const std::byte* kv, std::byte* stats, int num_tokens) const {
  ReferencePart part(layout().dtype, layout().head_dim, const_cast<std::byte*>(kv), stats);
  for (int token = 0; token < num_tokens; ++token) part.FoldStats(token);
}

KvHeadBytes ReferenceBackend::kv_head_bytes(DType dtype, int head_dim) const {
  return ReferencePart::Bytes(dtype, head_dim);
}

Result<std::unique_ptr<KvStore>> ReferenceBackend::MakeKvStore(
    const KvLayout& layout, const PageId (&max_pages)[kNumWays]) {
  auto store = std::make_unique<ReferenceKvStore>(layout, max_pages);
  LS_TRY(store->Reserve());
  return std::unique_ptr<KvStore>(std::move(store));
}

Status ReferenceBackend::AppendKv(const AppendKvParams& params) {
  const auto& store = *static_cast<ReferenceKvStore*>(params.store);
  const KvLayout& layout = store.layout();
  for (const RowRange& range : params.ranges) {
    for (int i = 0; i < range.num_rows; ++i) {
      const int64_t position = range.first_position + i;
      const PageIdx page = static_cast<PageIdx>(position / kPageTokens);
      const int token = static_cast<int>(position % kPageTokens);
      for (int head = 0; head < layout.num_kv_heads; ++head) {
        const HeadSlot slot =
            layout.slots[static_cast<size_t>(int64_t{params.layer} * layout.num_kv_heads + head)];
        const PageId id =
            params.sequences[static_cast<size_t>(range.sequence)].page(slot.way, page);
        ReferencePart part = store.Part(slot.way, id, params.layer, slot.slot);
        const int64_t column = int64_t{head} * layout.head_dim;
        part.Store(ReferencePart::kKey, token, params.k.row<float>(range.first_row + i) + column);
        part.Store(ReferencePart::kValue, token, params.v.row<float>(range.first_row + i) + column);
        part.FoldStats(token);
      }
    }
  }
  return Status();
}

}  // namespace lserve
