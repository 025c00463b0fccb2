// Backend: the ops a Llama-family forward pass needs, on one device. Coarse on purpose: a virtual
// call is nanoseconds before an op of microseconds. Implementations: reference (normative), cpu,
// cuda. Made by backend/registry.h; used by the model and the engine, from the engine's thread
// only.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "backend/kv_store.h"
#include "backend/ops.h"
#include "base/status.h"

namespace lserve {

struct DeviceMemory {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
};

class Backend {
 public:
  Backend() = default;
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  // "reference", "cpu", "cuda".
  virtual std::string name() const = 0;
  // For people: instruction set, threads.
  virtual std::string description() const = 0;

  // Memory, 64-byte aligned, content unspecified.
  virtual Result<Buffer> Allocate(size_t bytes) = 0;
  virtual Status CopyToDevice(void* device, const void* host, size_t bytes) = 0;
  // Waits until every op before it is done.
  virtual Status CopyToHost(void* host, const void* device, size_t bytes) = 0;

  // The device's own memory, in bytes; nothing where ops use the system's.
  virtual std::optional<DeviceMemory> Memory() const { return std::nullopt; }
  // What SelectPages has taken so far in all, by the device's own clock, where ops may return
  // before they have run, so that a clock around them says nothing; else nothing.
  virtual std::optional<double> selector_seconds() const { return std::nullopt; }

  // From here to the next call, the host arrays that ops are given (sequences, ranges, plans,
  // requests) keep their addresses and contents, so that a device copies each of them once and not
  // for every layer. Without any call, each op's arrays are its own.
  virtual void BeginStep() {}

  // Runs `ops`, which calls ops of this backend and reads nothing that they compute, after
  // BeginStep(). Whoever runs the same ops step after step, with other contents of the host arrays,
  // calls them here: a device may then replay what it has queued before instead of queueing it
  // again. `ops` may be called more than once and must make the same calls each time. Not for
  // SelectTiles and PrefillAttention, whose work differs in every step.
  virtual Status RunStep(const std::function<Status()>& ops) { return ops(); }

  // Makes constant host bytes (a mapped tensor) readable by ops. Host backends share them, so
  // `bytes` must outlive the buffer.
  virtual Result<Buffer> ImportConstant(std::span<const std::byte> bytes);

  // KV cache: which of kKvDTypes there are kernels for, the size of one head's part of a page, and
  // the pages themselves.
  virtual bool has_kv_dtype(DType /*dtype*/) const { return true; }
  virtual KvHeadBytes kv_head_bytes(DType dtype, int head_dim) const = 0;
  virtual Result<std::unique_ptr<KvStore>> MakeKvStore(const KvLayout& layout,
                                                       const PageId (&max_pages)[kNumWays]) = 0;

  // Names what the bits of stored keys and values follow from beside the model and its inputs: how
  // this backend computes, and how it lays out pages. What carries another name is not to be mixed.
  virtual std::string kv_signature() const { return description(); }

  // Stacks `parts` by rows ([rows, in_features] each, of one dtype) into a weight. `bias` has one
  // float per out feature, or none. A weight to be quantised must be finite.
  virtual Result<LinearWeight> PackLinear(std::span<const WeightPart> parts,
                                          int64_t in_features,
                                          std::span<const float> bias,
                                          WeightFormat format) = 0;

  // For a cache of quantised weights on disk. The name of the layout of LinearWeight::data, which
  // changes whenever the layout does and holds everything but the bias; empty: none to keep.
  virtual std::string packed_layout() const { return {}; }
  // A weight around the bytes of an earlier PackLinear's `data`, of any origin: they are checked
  // for their size, and no content can do harm. They must outlive the weight.
  virtual Result<LinearWeight> ImportLinear(WeightFormat format,
                                            int64_t out_features,
                                            int64_t in_features,
                                            std::span<const std::byte> data,
                                            std::span<const float> bias);

  // What whoever asks for `format` should hear about this backend, for a log; "": nothing.
  virtual std::string format_note(WeightFormat /*format*/) const { return {}; }

  // Memory that Linear takes for `weight` beside its parameters, at most `rows` rows at a time.
  virtual size_t LinearScratchBytes(const LinearWeight& weight, int64_t rows) const;

  // The same for attention and the choice of pages and tiles, of which one runs at a time.
  virtual size_t AttentionScratchBytes(const KvLayout& /*layout*/,
                                       const AttentionLimits& /*limits*/) const {
    return 0;
  }

  virtual Status GatherRows(const GatherRowsParams& params) = 0;
  virtual Status RmsNorm(const RmsNormParams& params) = 0;
  virtual Status Linear(const LinearParams& params) = 0;
  virtual Status SiluMul(const SiluMulParams& params) = 0;
  // Computes as the ops on their own do. The default calls them.
  virtual Status FusedLinear(const FusedLinearParams& params);
  virtual Status Rope(const RopeParams& params) = 0;
  // Waits until every op before it is done. The default is for backends whose memory is the host's.
  virtual Status PickTokens(const PickTokensParams& params);
  virtual Status AppendKv(const AppendKvParams& params) = 0;
  virtual Status SelectPages(const SelectPagesParams& params) = 0;
  virtual Status SelectTiles(const SelectTilesParams& params) = 0;
  // Rows with up to kTileTokens queries each.
  virtual Status PrefillAttention(const AttentionParams& params) = 0;
  // Rows with few queries (one, or more with speculation) and many pages.
  virtual Status DecodeAttention(const AttentionParams& params) = 0;
  // Optional: without it a backend computes all answers, but nothing can be said about how.
  virtual Status PageLogSums(const PageLogSumsParams& params);
};

inline Result<Buffer> Backend::ImportConstant(std::span<const std::byte> bytes) {
  void* data = const_cast<std::byte*>(bytes.data());
  return Buffer{.data = std::shared_ptr<void>(data, [](void*) {}), .bytes = bytes.size()};
}

inline Result<LinearWeight> Backend::ImportLinear(WeightFormat /*format*/,
                                                  int64_t /*out_features*/,
                                                  int64_t /*in_features*/,
                                                  std::span<const std::byte> /*data*/,
                                                  std::span<const float> /*bias*/) {
  return Status(Code::kUnsupported, name() +
                                        ": has no packed layout to import, expected a call "
                                        "of PackLinear");
}

inline size_t Backend::LinearScratchBytes(const LinearWeight& /*weight*/, int64_t /*rows*/) const {
  return 0;
}

inline Status Backend::FusedLinear(const FusedLinearParams& params) {
  if (params.norm) LS_TRY(RmsNorm(*params.norm));
  LS_TRY(Linear(params.linear));
  return params.gate ? SiluMul(*params.gate) : Status();
}

inline Status Backend::PickTokens(const PickTokensParams& params) {
  for (size_t r = 0; r < params.out.size(); ++r) {
    const std::span<float> row(params.x.row<float>(static_cast<int64_t>(r)),
                               static_cast<size_t>(params.x.cols));
    if (!params.edits.empty()) EditLogits(row, params.edits[r]);
    params.out[r] = DrawToken(row, params.draws[r]);
  }
  return Status();
}

inline Status Backend::PageLogSums(const PageLogSumsParams& /*params*/) {
  return Status(Code::kUnsupported,
                name() +
                    ": attention can not be observed on this device; use --device cpu, or "
                    "leave out --audit-rate and --explain");
}

}  // namespace lserve
