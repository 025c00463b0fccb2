#include "backend/cuda/cuda_backend.h"

#include <algorithm>
#include <cstddef>

#include "backend/cuda/cuda_kv_store.h"
#include "backend/cuda/cuda_status.h"
#include "backend/cuda/matrix_views.h"
#include "backend/cuda_factory.h"
#include "base/check.h"
#include "base/round_up.h"
#include "base/strings.h"
#include "base/within_memory.h"

namespace lserve {
namespace {

// What cuBLAS asks for on Hopper.
constexpr size_t kCublasWorkspace = size_t{32} << 20;

}  // namespace

Result<std::unique_ptr<Backend>> MakeCudaBackend(const GpuInfo& gpu, const CudaOptions& options) {
  return std::unique_ptr<Backend>(LS_TRY(CudaBackend::Make(gpu, options)));
}

Result<std::unique_ptr<CudaBackend>> CudaBackend::Make(const GpuInfo& gpu,
                                                       const CudaOptions& options) {
  const std::string& kernels = options.kernels;
  constexpr int kFirstSupported = 8;  // bf16 tensor cores and cp.async
  if (gpu.compute_major < kFirstSupported) {
    return Status(
        Code::kUnsupported,
        StrCat("--device cuda:", gpu.index, ": ", gpu.name, " is sm_", gpu.compute_major,
               gpu.compute_minor, ", expected sm_80 (Ampere) or newer; use --device cpu"));
  }
  const bool hopper = gpu.compute_major == 9;
  if (kernels != "auto" && kernels != "sm80" && !(kernels == "sm90" && hopper)) {
    return Status(Code::kInvalidArgument,
                  StrCat("--cuda-kernels ", kernels, ": expected auto, sm80",
                         hopper ? " or sm90" : "; sm90 needs a Hopper GPU, and this is sm_",
                         hopper ? "" : StrCat(gpu.compute_major, gpu.compute_minor)));
  }
  const CudaKernels chosen = hopper && kernels != "sm80" ? CudaKernels::kSm90 : CudaKernels::kSm80;
  LS_CUDA(cudaSetDevice(gpu.index));
  cudaStream_t stream = nullptr;
  LS_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cublasHandle_t cublas = nullptr;
  LS_CUBLAS(cublasCreate(&cublas));
  std::unique_ptr<CudaBackend> backend(new CudaBackend(gpu, chosen, options, stream, cublas));
  LS_CUBLAS(cublasSetStream(cublas, stream));
  // Its own would be allocated within a graph.
  backend->cublas_workspace_ = LS_TRY(AllocateOnDevice(kCublasWorkspace));
  LS_CUBLAS(cublasSetWorkspace(cublas, backend->cublas_workspace_.data.get(), kCublasWorkspace));
  LS_TRY(backend->selector_timer_.Init(stream));
  return backend;
}

CudaBackend::~CudaBackend() {
  static_cast<void>(cudaStreamSynchronize(stream_));
  static_cast<void>(staging_.Release());
  static_cast<void>(cublasDestroy(cublas_));
  static_cast<void>(cudaStreamDestroy(stream_));
}

std::string CudaBackend::description() const {
  return StrCat(Describe(gpu_), ", ", kernels_ == CudaKernels::kSm90 ? "sm90" : "sm80", " kernels",
                options_.batch_invariant ? ", batch invariant" : "");
}

std::optional<DeviceMemory> CudaBackend::Memory() const {
  DeviceMemory memory;
  if (cudaMemGetInfo(&memory.free_bytes, &memory.total_bytes) != cudaSuccess) return DeviceMemory{};
  return memory;
}

Result<Buffer> CudaBackend::Allocate(size_t bytes) {
  return AllocateOnDevice(bytes);
}

Status CudaBackend::CopyToDevice(void* device, const void* host, size_t bytes) {
  if (bytes == 0) return Status();
  if (bytes >= HostStaging::kMinBytes) return staging_.CopyToDevice(device, host, bytes);
  // From pageable memory: CUDA takes the bytes before the call returns.
  LS_CUDA(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_));
  return Status();
}

Status CudaBackend::CopyToHost(void* host, const void* device, size_t bytes) {
  if (bytes == 0) return Status();
  LS_CUDA(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_));
  LS_CUDA(cudaStreamSynchronize(stream_));
  return Status();
}

Result<Buffer> CudaBackend::ImportConstant(std::span<const std::byte> bytes) {
  Buffer buffer = LS_TRY(AllocateOnDevice(bytes.size()));
  LS_TRY(CopyToDevice(buffer.data.get(), bytes.data(), bytes.size()));
  return buffer;
}

KvHeadBytes CudaBackend::kv_head_bytes(DType dtype, int head_dim) const {
  const size_t elements = size_t{2} * kPageTokens * static_cast<size_t>(head_dim);
  const size_t scale = dtype == DType::kBf16  ? 0
                       : dtype == DType::kFp8 ? sizeof(uint8_t)
                                              : 2 * sizeof(uint16_t);
  const size_t bits = static_cast<size_t>(BitsOf(dtype));
  const size_t stats =
      size_t{2} * kLogicalPagesPerPage * static_cast<size_t>(head_dim) * sizeof(uint16_t);
  constexpr size_t kAlignment = 64;
  return {.kv = RoundUp(elements * bits / 8 + size_t{2} * kPageTokens * scale, kAlignment),
          .stats = RoundUp(stats, kAlignment)};
}

Result<std::unique_ptr<KvStore>> CudaBackend::MakeKvStore(const KvLayout& layout,
                                                          const PageId (&max_pages)[kNumWays]) {
  if (!HasAttentionKernels(layout.head_dim)) {
    return Status(Code::kUnsupported,
                  StrCat("the model's head_dim is ", layout.head_dim,
                         ", expected 32, 64, 96 or 128 on a GPU; use --device cpu"));
  }
  return std::unique_ptr<KvStore>(
      LS_TRY(CudaKvStore::Make(layout, max_pages, gpu_.index, stream_)));
}

// The ops are walked twice: first to upload their arrays and to write down what they would launch,
// then, unless a graph of that exists, to launch it.
Status CudaBackend::RunStep(const std::function<Status()>& ops) {
  if (!options_.graphs) return ops();
  LS_TRY(uploads_.BeginRecord());
  trace_.Clear();
  tracing_ = true;
  // An exception must not leave the backend in the middle of a walk: the engine goes on after it.
  const Status traced = WithinMemory(ops);
  tracing_ = false;
  const bool fits = LS_TRY(uploads_.EndRecord());
  LS_TRY(traced);
  if (!fits) return ops();
  return graphs_.Run(trace_, [&] {
    uploads_.BeginRepeat();
    const Status launched = WithinMemory(ops);
    uploads_.EndRepeat();
    return launched;
  });
}

Status CudaBackend::GatherRows(const GatherRowsParams& params) {
  for (const int32_t index : params.indices) {
    LS_CHECK(index >= 0 && index < params.table.rows) << "row " << index;
  }
  uploads_.BeginOp();
  // A step gathers rows of logits in turns from one array, so its address tells nothing.
  const int32_t* indices = LS_TRY(uploads_.UploadAnew(params.indices));
  if (Noted(params.table.data, params.table.stride, indices, params.indices.size(), params.out.data,
            params.out.stride)) {
    return Status();
  }
  LS_CUDA(LaunchGatherRows(params.table.data, params.table.dtype, params.table.stride, indices,
                           static_cast<int>(params.indices.size()), params.table.cols,
                           View(params.out), stream_));
  return Status();
}

Status CudaBackend::RmsNorm(const RmsNormParams& params) {
  if (Noted(params.x.data, params.x.stride, params.weight, params.eps, params.x.rows, params.groups,
            params.y.data, params.y.stride)) {
    return Status();
  }
  LS_CUDA(LaunchRmsNorm(View(params.x), params.weight, params.eps, params.x.rows, params.groups,
                        static_cast<int>(params.x.cols / params.groups), View(params.y), stream_));
  return Status();
}

Status CudaBackend::SiluMul(const SiluMulParams& params) {
  if (Noted(params.x.data, params.x.stride, params.x.rows, params.y.data, params.y.stride)) {
    return Status();
  }
  LS_CUDA(LaunchSiluMul(View(params.x), params.x.rows, params.y.cols, View(params.y), stream_));
  return Status();
}

Status CudaBackend::Rope(const RopeParams& params) {
  if (Noted(params.x.data, params.x.stride, params.x.rows, params.num_heads, params.cos.data,
            params.sin.data)) {
    return Status();
  }
  LS_CUDA(LaunchRope(View(params.x), params.x.rows, params.num_heads, params.head_dim,
                     View(params.cos), View(params.sin), stream_));
  return Status();
}

// Not a part of RunStep: the logits' rows and the draws differ in every step, and the host is ahead
// of the device here.
Status CudaBackend::PickTokens(const PickTokensParams& params) {
  const int64_t rows = static_cast<int64_t>(params.out.size()), cols = params.x.cols;
  LS_CHECK_EQ(params.draws.size(), params.out.size());
  LS_CHECK(params.edits.empty() || params.edits.size() == params.out.size());
  LS_CHECK_LE(cols, kMaxDrawTokens);
  const bool only_largest = !HasEdits(params.edits) &&
                            std::all_of(params.draws.begin(), params.draws.end(),
                                        [](const TokenDraw& draw) { return draw.takes_largest; });
  const size_t out_bytes = RoundUp(params.out.size_bytes(), alignof(std::max_align_t));
  const size_t scratch_bytes = only_largest ? 0 : PickTokensScratchBytes(rows, cols);
  const size_t upload_bytes = only_largest ? 0 : DrawUpload::Bytes(params);
  std::byte* picked = LS_TRY(picked_.Get(out_bytes + upload_bytes + scratch_bytes, stream_));
  int32_t* out = reinterpret_cast<int32_t*>(picked);
  if (only_largest) {
    LS_CUDA(LaunchPickLargest(View(ConstMatrix(params.x)), rows, cols, out, stream_));
  } else {
    const DrawUpload::Arrays arrays =
        LS_TRY(draw_upload_.Copy(params, picked + out_bytes, stream_));
    LS_CUDA(LaunchPickTokens(View(params.x), cols, params.draws, arrays.draws, arrays.edits,
                             picked + out_bytes + upload_bytes, out, stream_));
  }
  return CopyToHost(params.out.data(), picked, params.out.size_bytes());
}

}  // namespace lserve
