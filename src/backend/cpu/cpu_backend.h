// CpuBackend: the ops on this machine's cores. One SIMD path is chosen at construction and used for
// everything, so that results depend on the instruction set but on nothing else: not on the number
// of threads, rows or pages. The ops are spread over the .cc files of this folder; what runs per
// instruction set hides behind CpuKernels.
#pragma once

#include <string>

#include "backend/backend.h"
#include "backend/cpu/cpu_isa.h"
#include "base/thread_pool.h"

namespace lserve {

struct LinearKernels;
struct AttentionKernels;

class CpuBackend final : public Backend {
 public:
  // REQUIRES: isa <= BestCpuIsa(). `num_threads` 0: every core this process may use.
  // If the system refuses some, fewer run: see num_threads().
  CpuBackend(CpuIsa isa, int num_threads);
  ~CpuBackend() override;

  std::string name() const override { return "cpu"; }
  std::string description() const override;
  std::string kv_signature() const override;
  int num_threads() const { return pool_.num_threads(); }

  // cpu_backend.cc
  Result<Buffer> Allocate(size_t bytes) override;
  Status CopyToDevice(void* device, const void* host, size_t bytes) override;
  Status CopyToHost(void* host, const void* device, size_t bytes) override;

  // linear.cc
  Result<LinearWeight> PackLinear(std::span<const WeightPart> parts,
                                  int64_t in_features,
                                  std::span<const float> bias,
                                  WeightFormat format) override;
  std::string packed_layout() const override;
  Result<LinearWeight> ImportLinear(WeightFormat format,
                                    int64_t out_features,
                                    int64_t in_features,
                                    std::span<const std::byte> data,
                                    std::span<const float> bias) override;
  std::string format_note(WeightFormat format) const override;
  size_t LinearScratchBytes(const LinearWeight& weight, int64_t rows) const override;
  Status Linear(const LinearParams& params) override;

  // elementwise.cc
  Status GatherRows(const GatherRowsParams& params) override;
  Status RmsNorm(const RmsNormParams& params) override;
  Status SiluMul(const SiluMulParams& params) override;
  Status Rope(const RopeParams& params) override;

  // cpu_kv_store.cc
  bool has_kv_dtype(DType dtype) const override;
  KvHeadBytes kv_head_bytes(DType dtype, int head_dim) const override;
  Result<std::unique_ptr<KvStore>> MakeKvStore(const KvLayout& layout,
                                               const PageId (&max_pages)[kNumWays]) override;
  Status AppendKv(const AppendKvParams& params) override;

  // attention.cc, select_pages.cc, select_tiles.cc, page_log_sums.cc
  size_t AttentionScratchBytes(const KvLayout& layout,
                               const AttentionLimits& limits) const override;
  Status SelectPages(const SelectPagesParams& params) override;
  Status SelectTiles(const SelectTilesParams& params) override;
  Status PrefillAttention(const AttentionParams& params) override;
  Status DecodeAttention(const AttentionParams& params) override;
  Status PageLogSums(const PageLogSumsParams& params) override;

 private:
  // A weight with its bias and no data yet.
  Result<LinearWeight> NewWeight(DType dtype,
                                 int64_t out_features,
                                 int64_t in_features,
                                 std::span<const float> bias);

  CpuIsa isa_;
  ThreadPool pool_;
  const LinearKernels* linear_;        // GEMM and elementwise kernels of isa_
  const AttentionKernels* attention_;  // attention, selection and quantization kernels of isa_
  Buffer linear_scratch_;              // x in the kernels' format, partial sums; see linear.cc
};

}  // namespace lserve
