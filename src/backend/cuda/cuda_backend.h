// CudaBackend: the ops on one NVIDIA GPU, as kernels on one stream. Ops return when their work is
// queued; CopyToHost waits for it. Made by backend/registry.h, through MakeCudaBackend.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/device_memory.h"
#include "backend/cuda/device_views.h"
#include "backend/cuda/draw_upload.h"
#include "backend/cuda/host_staging.h"
#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/selector_timer.h"
#include "backend/cuda/step_graphs.h"
#include "backend/cuda_factory.h"
#include "backend/cuda_probe.h"

namespace lserve {

// Which attention kernels run; the newest that the GPU has, unless the user says otherwise.
enum class CudaKernels { kSm80, kSm90 };

class CudaBackend : public Backend {
 public:
  static Result<std::unique_ptr<CudaBackend>> Make(const GpuInfo& gpu, const CudaOptions& options);
  ~CudaBackend() override;

  std::string name() const override { return "cuda"; }
  std::string description() const override;
  std::optional<DeviceMemory> Memory() const override;
  std::optional<double> selector_seconds() const override { return selector_timer_.seconds(); }

  // All work is queued here; for benches, which capture it.
  cudaStream_t stream() const { return stream_; }

  // cuda_backend.cc
  Result<Buffer> Allocate(size_t bytes) override;
  Status CopyToDevice(void* device, const void* host, size_t bytes) override;
  Status CopyToHost(void* host, const void* device, size_t bytes) override;
  Result<Buffer> ImportConstant(std::span<const std::byte> bytes) override;
  void BeginStep() override {
    uploads_.BeginStep();
    prefill_groups_.clear();
    selected_in_step_ = false;
  }
  Status RunStep(const std::function<Status()>& ops) override;
  KvHeadBytes kv_head_bytes(DType dtype, int head_dim) const override;
  Result<std::unique_ptr<KvStore>> MakeKvStore(const KvLayout& layout,
                                               const PageId (&max_pages)[kNumWays]) override;
  Status GatherRows(const GatherRowsParams& params) override;
  Status RmsNorm(const RmsNormParams& params) override;
  Status SiluMul(const SiluMulParams& params) override;
  Status Rope(const RopeParams& params) override;
  Status PickTokens(const PickTokensParams& params) override;

  // cuda_linear.cc
  Result<LinearWeight> PackLinear(std::span<const WeightPart> parts,
                                  int64_t in_features,
                                  std::span<const float> bias,
                                  WeightFormat format) override;
  std::string format_note(WeightFormat format) const override;
  size_t LinearScratchBytes(const LinearWeight& weight, int64_t rows) const override;
  Status Linear(const LinearParams& params) override;
  Status FusedLinear(const FusedLinearParams& params) override;

  // cuda_attention.cc
  size_t AttentionScratchBytes(const KvLayout& layout,
                               const AttentionLimits& limits) const override;
  Status AppendKv(const AppendKvParams& params) override;
  Status SelectPages(const SelectPagesParams& params) override;
  Status SelectTiles(const SelectTilesParams& params) override;
  Status DecodeAttention(const AttentionParams& params) override;
  Status PageLogSums(const PageLogSumsParams& params) override;

  // cuda_prefill.cc
  Status PrefillAttention(const AttentionParams& params) override;

 private:
  // Rows of a plan that prefill kernels take at once, on the device.
  struct PrefillGroup {
    const int* order = nullptr;  // as PlanView
    int rows[kNumWays] = {};
    PageIdx most_pages = 0;  // up to the last of a row
    const SequenceView* sequences = nullptr;
    // Of quantised pages: what is dequantised. `sequences` then have places in it.
    const PageId* pages[kNumWays] = {};
    int num_pages[kNumWays] = {};
  };

  CudaBackend(GpuInfo gpu,
              CudaKernels kernels,
              CudaOptions options,
              cudaStream_t stream,
              cublasHandle_t cublas)
      : gpu_(std::move(gpu)),
        kernels_(kernels),
        options_(std::move(options)),
        stream_(stream),
        cublas_(cublas),
        uploads_(stream),
        staging_(stream),
        graphs_(stream) {}

  // Every op that RunStep allows: called when all of its launches' parameters are known. True: the
  // op is only written down, and launches nothing. `values`: what tells its launches apart.
  template <class... T>
  bool Noted(const T&... values) {
    if (!tracing_) return false;
    trace_.Add(values...);
    return true;
  }

  Result<const SequenceView*> UploadSequences(std::span<const SequencePages> sequences);
  Result<AttentionArgs> MakeAttentionArgs(const AttentionParams& params);
  bool HasSm90Prefill(const KvLayout& layout) const;
  size_t MostScratchParts(int head_dim) const;
  size_t PrefillScratchBytes(const KvLayout& layout, const AttentionLimits& limits) const;
  Result<std::span<const PrefillGroup>> PrefillGroups(const AttentionParams& params,
                                                      const SequenceView* sequences);
  Status PrefillInRounds(const KvLayout& layout,
                         const AttentionArgs& args,
                         const PrefillGroup& group);
  Status LaunchPrefill(const AttentionArgs& args,
                       const PrefillGroup& group,
                       const PrefillMaps* maps,
                       std::byte* counter);
  // Zeros, at least `count`, that kernels leave zero.
  Result<int*> DecodeCounters(size_t count);
  Status SelectTilesRound(SelectTilesArgs args, float scale);
  Status Quantize(std::span<const WeightPart> parts, WeightFormat format, LinearWeight* weight);
  bool StreamsWeight(const LinearWeight& weight, int64_t rows) const;
  Status MultiplyRows(const LinearParams& params);       // few rows
  Status StreamWeight(const FusedLinearParams& params);  // few rows, on Hopper
  Status MultiplyMatrix(const LinearParams& params);     // many rows, cuBLAS
  Status MultiplyInTurns(const LinearParams& params);    // many rows, batch invariant
  Status LaunchTurns(const GemvArgs& args);

  GpuInfo gpu_;
  CudaKernels kernels_;
  CudaOptions options_;
  cudaStream_t stream_;
  cublasHandle_t cublas_;
  Buffer cublas_workspace_;
  StepUploads uploads_;
  HostStaging staging_;  // of weights
  StepGraphs graphs_;
  StepTrace trace_;
  SelectorTimer selector_timer_;
  bool tracing_ = false;
  bool selected_in_step_ = false;
  std::unordered_map<const PagePlan*, std::vector<PrefillGroup>> prefill_groups_;  // of the step
  Buffer decode_counters_;
  DeviceScratch picked_;  // of PickTokens
  DrawUpload draw_upload_;
  DeviceScratch linear_scratch_;     // x as bf16, or a weight as float
  DeviceScratch attention_scratch_;  // partial results, scores, dequantised pages
};

}  // namespace lserve
