// Our packed GEMM beside oneDNN's, taking turns, on the shapes of the 100M and the 1B model:
//
//     onednn_gemm [THREADS [ROUNDS]] > results.jsonl       (a table on stderr)
//
// Rates are per second of processor time of one thread, so that neighbours do not lower them, and
// by the clock. Ours includes what it does to x, a float: rounding to bf16, or quantization in
// groups of 128. oneDNN finds x as bf16 or int8, its weight packed as it asks, and its "int8" has
// no scales at all: it multiplies and converts to float. "int8, scales" is nearer to what ours
// does: a product for each 128 of K, added to y by a scale per column; x still has none.
#include <omp.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "backend/cpu/ceilings.h"
#include "backend/cpu/cpu_backend.h"
#include "base/clock.h"
#include "base/half.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/strings.h"
#include "bench/summary.h"

namespace lserve {
namespace {

struct Shape {
  int64_t rows, in, out;
};
// Those of docs/kernels/cpu_gemm.md with many rows: 1B, then 100M.
constexpr Shape kShapes[] = {{512, 2048, 8192}, {512, 2048, 2048}, {512, 8192, 2048},
                             {512, 768, 2048},  {512, 768, 768},   {16, 2048, 8192}};

using DnnlType = dnnl::memory::data_type;
using DnnlTag = dnnl::memory::format_tag;

enum class Kind { kBf16, kInt8, kInt8Scaled };
constexpr std::pair<Kind, const char*> kKinds[] = {
    {Kind::kBf16, "bf16"}, {Kind::kInt8, "int8"}, {Kind::kInt8Scaled, "int8, scales"}};
constexpr int64_t kGroup = 128;

// One product in oneDNN, with operands that stay where they are.
class DnnlGemm {
 public:
  DnnlGemm(const Shape& s, Kind kind) : engine_(dnnl::engine::kind::cpu, 0) {
    const bool scaled = kind == Kind::kInt8Scaled;
    const DnnlType x_type = kind == Kind::kBf16 ? DnnlType::bf16 : DnnlType::u8;
    const DnnlType w_type = kind == Kind::kBf16 ? DnnlType::bf16 : DnnlType::s8;
    const int64_t depth = scaled ? kGroup : s.in;
    const dnnl::memory::desc x({s.rows, depth}, x_type, dnnl::memory::dims{s.in, 1});
    const dnnl::memory::desc any({depth, s.out}, w_type, DnnlTag::any);
    const dnnl::memory::desc y({s.rows, s.out}, DnnlType::f32, DnnlTag::ab);
    const size_t x_bytes = dnnl::memory::data_type_size(x_type);
    x_.resize(static_cast<size_t>(s.rows * s.in) * x_bytes);
    const dnnl::memory output(y, engine_);
    for (int64_t k = 0; k < s.in; k += depth) {
      dnnl::primitive_attr attributes;
      if (scaled) {
        constexpr int kPerColumn = 1 << 1;
        attributes.set_output_scales(kPerColumn,
                                     std::vector<float>(static_cast<size_t>(s.out), 0.5f));
        dnnl::post_ops add;
        add.append_sum(1.0f);
        if (k > 0) attributes.set_post_ops(add);
      }
      const dnnl::matmul::primitive_desc described({x, any, y}, attributes, engine_);
      const dnnl::memory weight(described.weights_desc(), engine_);
      // Values do not change the time, but for denormals and NaN: zero bytes are neither.
      std::memset(weight.get_data_handle(), 0, described.weights_desc().get_size());
      steps_.push_back(
          {dnnl::matmul(described),
           {{DNNL_ARG_SRC, dnnl::memory(x, engine_, &x_[static_cast<size_t>(k) * x_bytes])},
            {DNNL_ARG_WEIGHTS, weight},
            {DNNL_ARG_DST, output}}});
      implementation_ = described.impl_info_str();
    }
  }

  void Run() {
    for (const Step& step : steps_) step.product.execute(stream_, step.arguments);
    stream_.wait();
  }
  const std::string& implementation() const { return implementation_; }

 private:
  struct Step {
    dnnl::matmul product;
    std::unordered_map<int, dnnl::memory> arguments;
  };

  dnnl::engine engine_;
  dnnl::stream stream_{engine_};
  std::vector<std::byte> x_;
  std::vector<Step> steps_;
  std::string implementation_;
};

struct Rates {
  std::vector<double> processor;  // FLOP per second of processor time of a thread
  std::vector<double> wall;
};

template <class F>
void Sample(const Shape& s, int threads, Rates& rates, F&& call) {
  const double flop =
      2.0 * static_cast<double>(s.rows) * static_cast<double>(s.in) * static_cast<double>(s.out);
  const int calls = std::max(1, static_cast<int>(4e9 / flop));
  const Stopwatch watch;
  const double before = ProcessorSeconds();
  for (int i = 0; i < calls; ++i) call();
  const double processor = (ProcessorSeconds() - before) / threads;
  rates.wall.push_back(flop * calls / watch.seconds());
  // A thread of oneDNN that waits for another spins: its time counts, as ours does.
  rates.processor.push_back(flop * calls / processor / threads);
}

Json ToJson(const std::vector<double>& samples) {
  const Summary s = Summarize(samples);
  return Json(Json::Object{{"median", Json(s.median)}, {"min", Json(s.min)}, {"max", Json(s.max)}});
}

void Compare(CpuBackend& backend,
             CeilingMeter& meter,
             const Shape& s,
             Kind kind,
             const char* name,
             int rounds) {
  const int threads = backend.num_threads();
  Rng rng(1);
  std::vector<Bf16> stored(static_cast<size_t>(s.in * s.out));
  for (Bf16& w : stored) w = ToBf16(rng.NextFloat());
  std::vector<float> x(static_cast<size_t>(s.rows * s.in)), y(static_cast<size_t>(s.rows * s.out));
  for (float& value : x) value = rng.NextFloat();
  const WeightPart part{stored.data(), DType::kBf16, s.out};
  const WeightFormat format = kind == Kind::kBf16 ? WeightFormat::kAsStored : WeightFormat::kW8A8;
  const LinearWeight weight = backend.PackLinear({&part, 1}, s.in, {}, format).value();
  const LinearParams params = {
      .x = ConstMatrix(x.data(), DType::kF32, s.rows, s.in, s.in),
      .weight = &weight,
      .y = {
          .data = y.data(), .dtype = DType::kF32, .rows = s.rows, .cols = s.out, .stride = s.out}};
  DnnlGemm dnnl(s, kind);
  const auto run_ours = [&] { static_cast<void>(backend.Linear(params)); };
  const auto run_dnnl = [&] { dnnl.Run(); };
  run_ours();
  run_dnnl();
  Rates ours, theirs;
  std::vector<double> ratios, gauges;
  for (int round = 0; round < rounds; ++round) {
    gauges.push_back(meter.Gauge());
    Sample(s, threads, ours, run_ours);
    Sample(s, threads, theirs, run_dnnl);
    ratios.push_back(ours.processor.back() / theirs.processor.back());
  }
  const Summary ratio = Summarize(ratios);
  const std::string shape = StrCat(s.rows, " x ", s.in, " x ", s.out);
  std::fprintf(stderr, "| %s | %s | %.0f | %.0f | %.2f (%.2f - %.2f) |\n", shape.c_str(), name,
               Summarize(ours.processor).median / 1e9, Summarize(theirs.processor).median / 1e9,
               ratio.median, ratio.min, ratio.max);
  const Json line(Json::Object{{"shape", Json(shape)},
                               {"dtype", Json(name)},
                               {"threads", Json(threads)},
                               {"onednn", Json(dnnl.implementation())},
                               {"lserve_flop_per_processor_s", ToJson(ours.processor)},
                               {"onednn_flop_per_processor_s", ToJson(theirs.processor)},
                               {"lserve_flop_s", ToJson(ours.wall)},
                               {"onednn_flop_s", ToJson(theirs.wall)},
                               {"ratio", ToJson(ratios)},
                               {"gauge_flop_s", ToJson(gauges)}});
  std::printf("%s\n", WriteJson(line).c_str());
}

int Main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 9;
  if (threads < 1 || rounds < 1 || argc > 3) {
    std::fprintf(stderr, "usage: onednn_gemm [THREADS [ROUNDS]], both 1 or more\n");
    return 2;
  }
  omp_set_num_threads(threads);
  CpuBackend backend(BestCpuIsa(), threads);
  CeilingMeter meter(BestCpuIsa(), threads);
  const CpuCeilings ceilings = meter.Measure();
  const dnnl_version_t* version = dnnl_version();
  const Json head(Json::Object{
      {"machine", Json(backend.description())},
      {"onednn", Json(StrCat(version->major, ".", version->minor, ".", version->patch))},
      {"bf16_flop_s", Json(ceilings.bf16_flop_s)},
      {"int8_op_s", Json(ceilings.int8_op_s)}});
  std::printf("%s\n", WriteJson(head).c_str());
  std::fprintf(stderr,
               "| M x K x N | type | lserve, GFLOP/s per thread | oneDNN | ratio |\n"
               "| --- | --- | ---: | ---: | ---: |\n");
  for (const auto& [kind, name] : kKinds) {
    for (const Shape& shape : kShapes) Compare(backend, meter, shape, kind, name, rounds);
  }
  return 0;
}

}  // namespace
}  // namespace lserve

int main(int argc, char** argv) {
  try {
    return lserve::Main(argc, argv);
  } catch (const std::exception& error) {  // oneDNN throws
    std::fprintf(stderr, "onednn_gemm: %s\n", error.what());
    return 1;
  }
}
