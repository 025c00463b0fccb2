// FlashAttention-3's forward on this GPU, timed as cuda_attention_bench times our dense prefill:
// one layer of Llama-3-8B's shape, bf16, causal, one sequence, contiguous K and V, the same values.
// A yardstick without PyTorch, no part of the build. Needs a Hopper GPU and about 3 GB of its
// memory:
//
//     git clone https://github.com/Dao-AILab/flash-attention fa && git -C fa checkout 0251105a
//     git -C fa submodule update --init csrc/cutlass
//     nvcc -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a --use_fast_math -DNDEBUG
//         --expt-relaxed-constexpr -DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
//         -DCUTLASS_ENABLE_GDC_FOR_SM90 -DFLASHATTENTION_DISABLE_{LOCAL,VARLEN,APPENDKV,CLUSTER}
//         -I fa/hopper -I fa/csrc/cutlass/include -I src -o fa3_attention bench/fa3_attention.cu
//         fa/hopper/instantiations/flash_fwd_hdim128_bf16_sm90.cu
//     ./fa3_attention [JSON_FILE]
//
// The flags are those of its hopper/setup.py; what is disabled are other instances of the template
// than the one that its Python interface picks for this shape.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <cutlass/numeric_types.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "flash.h"

namespace lserve {
namespace {

// The shape, the values and the protocol of src/backend/cuda/cuda_attention_bench.cc.
constexpr int kQHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr int kQCols = kQHeads * kHeadDim;
constexpr int kKvCols = kKvHeads * kHeadDim;
constexpr int kRows = 8192;  // of values; longer sequences repeat them
constexpr float kScale = 0.08838835f;
constexpr double kWarmUpMilliseconds = 300;
constexpr int kRestedSamples = 11;
constexpr std::chrono::milliseconds kRest(2000), kPause(300);

constexpr int kLengths[] = {8192, 32768, 131072};
constexpr int kMaxTokens = 131072;
constexpr double kTolerance = 2e-2;  // of |output - reference| / |reference|, a head of a row

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define LS_CHECK_CUDA(call) Check(call, #call)

__global__ void CountNans(const __nv_bfloat16* x, int64_t size, unsigned long long* count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += step) {
    if (__hisnan(x[i])) atomicAdd(count, 1ull);
  }
}

class Yardstick {
 public:
  explicit Yardstick(std::string json) : json_(std::move(json)) {
    LS_CHECK_CUDA(cudaGetDeviceProperties(&gpu_, 0));
    LS_CHECK_CUDA(cudaDriverGetVersion(&driver_));
    std::printf("%s, driver %d\n", gpu_.name, driver_);
    LS_CHECK_CUDA(cudaStreamCreate(&stream_));
    Rng rng(1);
    values_.resize(size_t{kRows} * kQCols);
    for (__nv_bfloat16& x : values_) x = __float2bfloat16(2 * rng.NextFloat());
    q_ = Allocate<__nv_bfloat16>(size_t{kMaxTokens} * kQCols);
    k_ = Allocate<__nv_bfloat16>(size_t{kMaxTokens} * kKvCols);
    v_ = Allocate<__nv_bfloat16>(size_t{kMaxTokens} * kKvCols);
    out_ = Allocate<__nv_bfloat16>(size_t{kMaxTokens} * kQCols);
    log_sums_ = Allocate<float>(size_t{kMaxTokens} * kQHeads);
    next_tile_ = Allocate<int>(1);
    num_nans_ = Allocate<unsigned long long>(1);
    for (size_t row = 0; row < kMaxTokens; row += kRows) {
      CopyColumns(q_ + row * kQCols, 0, kQCols);
      CopyColumns(k_ + row * kKvCols, 0, kKvCols);
      CopyColumns(v_ + row * kKvCols, kKvCols, kKvCols);
    }
  }

  // Prints the times for a sequence of `tokens`; false if the result is wrong.
  bool Run(int tokens) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    LS_CHECK_CUDA(cudaMemset(out_, 0xff, size_t{kMaxTokens} * kQCols * sizeof(*out_)));  // NaNs
    Forward(tokens);
    LS_CHECK_CUDA(cudaStreamSynchronize(stream_));
    const double error = LargestError(tokens);
    const unsigned long long nans = NumNans(tokens);
    if (!(error <= kTolerance) || nans > 0) {
      std::fprintf(stderr,
                   "fa3 %dK: error %.2e in the checked rows, at most %.0e expected; %llu values of "
                   "the output are NaN or unwritten, 0 expected; was it built as the head of this "
                   "file says?\n",
                   tokens / 1024, error, kTolerance, nans);
      return false;
    }
    LS_CHECK_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    Forward(tokens);
    LS_CHECK_CUDA(cudaStreamEndCapture(stream_, &graph));
    LS_CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    const size_t samples = tokens > 65536 ? 3 : 7;
    std::vector<double> loaded, rested;
    for (double warm_up = 0; loaded.size() < samples;) {
      const double milliseconds = Replay(exec);
      if (warm_up >= kWarmUpMilliseconds) loaded.push_back(milliseconds);
      warm_up += milliseconds;
    }
    std::this_thread::sleep_for(kRest);
    while (rested.size() < kRestedSamples) {
      std::this_thread::sleep_for(kPause);
      rested.push_back(Replay(exec));
    }
    LS_CHECK_CUDA(cudaGraphExecDestroy(exec));
    LS_CHECK_CUDA(cudaGraphDestroy(graph));
    Print(tokens, std::move(loaded), std::move(rested), error);
    return true;
  }

 private:
  template <class T>
  static T* Allocate(size_t count) {
    void* data = nullptr;
    LS_CHECK_CUDA(cudaMalloc(&data, count * sizeof(T)));
    return static_cast<T*>(data);
  }

  // `to`: [kRows, cols], from column `first` of the values on.
  void CopyColumns(__nv_bfloat16* to, int first, int cols) {
    LS_CHECK_CUDA(cudaMemcpy2D(to, cols * sizeof(*to), &values_[static_cast<size_t>(first)],
                               kQCols * sizeof(*to), cols * sizeof(*to), kRows,
                               cudaMemcpyHostToDevice));
  }

  // What hopper/flash_api.cpp's mha_fwd() does for q [1, tokens, 32, 128] and k, v [1, tokens, 8,
  // 128]: one split, query heads not packed, tiles taken from a counter that starts at zero.
  void Forward(int tokens) {
    Flash_fwd_params params{};
    params.is_bf16 = true;
    params.q_ptr = q_;
    params.k_ptr = k_;
    params.v_ptr = v_;
    params.o_ptr = out_;
    params.softmax_lse_ptr = log_sums_;
    params.q_row_stride = params.o_row_stride = kQCols;
    params.k_row_stride = params.v_row_stride = kKvCols;
    params.q_head_stride = params.k_head_stride = params.v_head_stride = kHeadDim;
    params.o_head_stride = kHeadDim;
    params.v_dim_stride = 1;
    params.q_batch_stride = params.o_batch_stride = int64_t{tokens} * kQCols;
    params.k_batch_stride = params.v_batch_stride = int64_t{tokens} * kKvCols;
    params.b = params.b_k = 1;
    params.h = kQHeads;
    params.h_k = kKvHeads;
    params.d = params.d_rounded = params.dv = params.dv_rounded = kHeadDim;
    params.seqlen_q = params.seqlen_q_rounded = params.total_q = tokens;
    params.seqlen_k = params.seqlen_k_rounded = params.total_k = tokens;
    params.scale_softmax = kScale;
    params.p_dropout = params.rp_dropout = 1;
    params.p_dropout_in_uint8_t = 255;
    params.is_causal = true;
    params.window_size_left = tokens - 1;
    params.window_size_right = 0;
    params.page_size = 1;
    params.num_splits = 1;
    params.pack_gqa = false;
    params.varlen_sort_batches = params.head_swizzle = true;
    params.tile_count_semaphore = next_tile_;
    params.arch = 90;
    params.num_sm = gpu_.multiProcessorCount;
    LS_CHECK_CUDA(cudaMemsetAsync(next_tile_, 0, sizeof(*next_tile_), stream_));
    run_mha_fwd_<90, cutlass::bfloat16_t, kHeadDim, kHeadDim, /*Split=*/false,
                 /*PagedKVNonTMA=*/false, /*Has_softcap=*/false, /*PackGQA=*/false>(params,
                                                                                    stream_);
  }

  // Milliseconds of one replay.
  double Replay(cudaGraphExec_t exec) {
    cudaEvent_t begin = nullptr, end = nullptr;
    LS_CHECK_CUDA(cudaEventCreate(&begin));
    LS_CHECK_CUDA(cudaEventCreate(&end));
    LS_CHECK_CUDA(cudaEventRecord(begin, stream_));
    LS_CHECK_CUDA(cudaGraphLaunch(exec, stream_));
    LS_CHECK_CUDA(cudaEventRecord(end, stream_));
    LS_CHECK_CUDA(cudaStreamSynchronize(stream_));
    float milliseconds = 0;
    LS_CHECK_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
    LS_CHECK_CUDA(cudaEventDestroy(begin));
    LS_CHECK_CUDA(cudaEventDestroy(end));
    return double{milliseconds};
  }

  // The largest |output - reference| / |reference| of a few heads of a few rows.
  double LargestError(int tokens) const {
    double largest = 0;
    std::vector<__nv_bfloat16> row(kQCols);
    for (const int position : {0, 129, tokens / 2 + 77, tokens - 1}) {
      LS_CHECK_CUDA(cudaMemcpy(row.data(), out_ + size_t(position) * kQCols,
                               kQCols * sizeof(__nv_bfloat16), cudaMemcpyDeviceToHost));
      for (const int head : {0, 13, 31}) {
        const std::vector<double> expected = Reference(position, head);
        double difference = 0, norm = 0;
        for (int d = 0; d < kHeadDim; ++d) {
          const double value = double{__bfloat162float(row[size_t(head * kHeadDim + d)])};
          difference += std::pow(value - expected[size_t(d)], 2);
          norm += std::pow(expected[size_t(d)], 2);
        }
        const double error = std::sqrt(difference / norm);
        if (std::isnan(error)) return error;
        largest = std::max(largest, error);
      }
    }
    return largest;
  }

  // Attention of one head of one row, in double.
  std::vector<double> Reference(int position, int head) const {
    const int kv_head = head / (kQHeads / kKvHeads);
    const auto at = [&](int row, int col) {
      return double{__bfloat162float(values_[size_t(row % kRows) * kQCols + size_t(col)])};
    };
    std::vector<double> query, out(kHeadDim);
    for (int d = 0; d < kHeadDim; ++d) query.push_back(at(position, head * kHeadDim + d));
    std::vector<double> scores;
    for (int key = 0; key <= position; ++key) {
      double sum = 0;
      for (int d = 0; d < kHeadDim; ++d) sum += query[size_t(d)] * at(key, kv_head * kHeadDim + d);
      scores.push_back(sum * double{kScale});
    }
    const double most = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (int key = 0; key <= position; ++key) {
      const double weight = std::exp(scores[size_t(key)] - most);
      total += weight;
      for (int d = 0; d < kHeadDim; ++d) {
        out[size_t(d)] += weight * at(key, kKvCols + kv_head * kHeadDim + d);
      }
    }
    for (double& x : out) x /= total;
    return out;
  }

  unsigned long long NumNans(int tokens) {
    unsigned long long count = 0;
    LS_CHECK_CUDA(cudaMemset(num_nans_, 0, sizeof(count)));
    CountNans<<<1024, 256>>>(out_, int64_t{tokens} * kQCols, num_nans_);
    LS_CHECK_CUDA(cudaGetLastError());
    LS_CHECK_CUDA(cudaMemcpy(&count, num_nans_, sizeof(count), cudaMemcpyDeviceToHost));
    return count;
  }

  void Print(int tokens, std::vector<double> loaded, std::vector<double> rested, double error) {
    const auto at = [](std::vector<double>& times, double share) {
      std::sort(times.begin(), times.end());
      const double last = static_cast<double>(times.size() - 1);
      return times[static_cast<size_t>(std::lround(share * last))];
    };
    const double flop = 4.0 * kHeadDim * kQHeads * tokens * tokens / 2;
    const double median = at(loaded, 0.5), rested_median = at(rested, 0.5);
    std::printf("fa3 %dK: %.4f ms [%.4f, %.4f] (%.1f TFLOP/s)  rested %.4f ms  error %.1e\n",
                tokens / 1024, median, at(loaded, 0.1), at(loaded, 0.9), flop / median * 1e-9,
                rested_median, error);
    std::fflush(stdout);
    if (json_.empty()) return;
    std::ofstream(json_, std::ios::app)
        << "{\"what\":\"fa3 prefill " << tokens / 1024 << "K dense\",\"ms\":" << median
        << ",\"p10_ms\":" << at(loaded, 0.1) << ",\"p90_ms\":" << at(loaded, 0.9)
        << ",\"flop\":" << flop << ",\"gpu\":\"" << gpu_.name << "\",\"driver\":" << driver_
        << ",\"rested_milliseconds\":" << rested_median << ",\"error\":" << error << "}\n";
  }

  std::string json_;
  cudaDeviceProp gpu_{};
  int driver_ = 0;
  cudaStream_t stream_ = nullptr;
  std::vector<__nv_bfloat16> values_;  // [kRows, kQCols]
  __nv_bfloat16 *q_ = nullptr, *k_ = nullptr, *v_ = nullptr, *out_ = nullptr;
  float* log_sums_ = nullptr;
  int* next_tile_ = nullptr;
  unsigned long long* num_nans_ = nullptr;
};

}  // namespace
}  // namespace lserve

int main(int argc, char** argv) {
  if (argc > 2) {
    std::fprintf(stderr, "usage: %s [JSON_FILE]\n", argv[0]);
    return 2;
  }
  lserve::Yardstick yardstick(argc > 1 ? argv[1] : "");
  for (const int tokens : lserve::kLengths) {
    if (!yardstick.Run(tokens)) return 1;
  }
  return 0;
}
