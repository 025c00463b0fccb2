// Times the cache's ops on the GPU, one layer of Llama-3-8B's shape (32 query heads, 8 KV heads,
// head_dim 128, half of the KV heads streaming): prefill dense, half streaming and with seeded
// block lists, at once and in chunks over pages of every type; decode dense and selected, with
// selection. Decode ops are captured in a graph of several layers, whose pages do not all fit the
// L2 cache, and replayed. One line per figure; with a file name also JSON Lines; with a name only
// the figures whose names begin with it, say "prefill 32K dense".
// `cuda_attention_bench [auto|sm80|sm90 [JSON_FILE [NAME]]]`.
//
// Times are taken under load, as in a long prompt. Dense prefill is timed on a rested chip too, as
// kernels are often compared: single launches with pauses, at clocks that power does not limit.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/cuda_status.h"
#include "base/rng.h"
#include "base/strings.h"

namespace lserve {
namespace {

constexpr int kQHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr int kGroup = kQHeads / kKvHeads;
constexpr int kQueryRows = 8192;  // of the buffers; longer prompts use them in turn
constexpr int kSinkTokens = 128;
constexpr int kPrefillWindow = 8192;
constexpr int kDecodeWindow = 256;
constexpr int kBudgetPages = 64;
constexpr float kScale = 0.08838835f;
constexpr double kWarmUpMilliseconds = 300;
constexpr int kRestedSamples = 11;
constexpr std::chrono::milliseconds kRest(2000), kPause(300);

enum class Protocol : uint8_t { kLoaded, kLoadedAndRested };

// The sample below which `share` of `samples` lie.
double Percentile(std::vector<double>& samples, double share) {
  std::sort(samples.begin(), samples.end());
  const double last = static_cast<double>(samples.size() - 1);
  return samples[static_cast<size_t>(std::lround(share * last))];
}

class Bench {
 public:
  // Measures the figures whose names begin with `only`.
  Bench(std::unique_ptr<CudaBackend> backend, GpuInfo gpu, std::string json, std::string only)
      : backend_(std::move(backend)),
        gpu_(std::move(gpu)),
        json_(std::move(json)),
        only_(std::move(only)) {}

  Status Run() {
    std::printf("%s\n", Describe(gpu_).c_str());
    LS_TRY(MakeInputs());
    for (const int64_t tokens : {8192, 32768, 131072}) LS_TRY(Prefill(tokens));
    for (const int64_t tokens : {32768, 131072}) {
      if (!MayWant("chunked")) break;
      for (const DType dtype : kKvDTypes) LS_TRY(PrefillInChunks(tokens, dtype));
    }
    if (!MayWant("decode")) return Status();
    for (const auto& [tokens, batch] :
         {std::pair<int64_t, int>{131072, 1}, {262144, 1}, {131072, 8}}) {
      for (const DType dtype : kKvDTypes) {
        LS_TRY(Decode(tokens, batch, dtype));
      }
    }
    for (const DType dtype : {DType::kInt8, DType::kFp8}) LS_TRY(Decode(131072, 16, dtype));
    return Status();
  }

 private:
  // The cache of `batch` sequences of `tokens` tokens each, and what ops are told of it.
  struct Cache {
    KvLayout layout;
    std::unique_ptr<KvStore> store;
    std::vector<std::vector<PageId>> ids;
    std::vector<SequencePages> sequences;
  };

  // Whether names that begin with `start` may be among those to measure.
  bool MayWant(std::string_view start) const {
    return start.starts_with(only_) || std::string_view(only_).starts_with(start);
  }

  Status MakeInputs() {
    Rng rng(1);
    std::vector<float> q(size_t{kQueryRows} * kQHeads * kHeadDim);
    for (float& x : q) x = 2 * rng.NextFloat();
    const size_t bytes = q.size() * sizeof(float);
    q_ = LS_TRY(backend_->Allocate(bytes));
    out_ = LS_TRY(backend_->Allocate(bytes));
    LS_TRY(backend_->CopyToDevice(q_.data.get(), q.data(), bytes));
    return Status();
  }

  ConstMatrix Queries(int rows) const {
    return {q_.data.get(), DType::kF32, rows, kQHeads * kHeadDim, kQHeads * kHeadDim};
  }
  Matrix Output(int rows) const {
    return {out_.data.get(), DType::kF32, rows, kQHeads * kHeadDim, kQHeads * kHeadDim};
  }

  Result<Cache> Fill(int64_t tokens, int batch, DType dtype, int layers, int retrieval_heads) {
    Cache cache;
    std::vector<uint8_t> kinds;
    for (int i = 0; i < layers * kKvHeads; ++i) kinds.push_back(i % kKvHeads < retrieval_heads);
    cache.layout = MakeKvLayout(layers, kKvHeads, kHeadDim, dtype, kinds,
                                backend_->kv_head_bytes(dtype, kHeadDim));
    const PageIdx pages = NumPages(tokens);
    cache.store = LS_TRY(backend_->MakeKvStore(cache.layout, {pages * batch, pages * batch}));
    for (const Way way : kWays) {
      if (cache.layout.way(way).page_bytes() > 0) {
        LS_TRY(cache.store->Commit(way, 0, pages * batch));
      }
    }
    // Neighbours in a sequence lie apart, as in a pool that has been used for a while.
    constexpr int64_t kStep = 37;
    for (int s = 0; s < batch; ++s) {
      std::vector<PageId> ids;
      const PageId total = pages * batch;
      for (PageIdx p = 0; p < pages; ++p) {
        ids.push_back(static_cast<PageId>((int64_t{s} * pages + p) * kStep % total));
      }
      cache.ids.push_back(std::move(ids));
    }
    for (const std::vector<PageId>& ids : cache.ids) {
      SequencePages sequence;
      for (const Way way : kWays) sequence.pages[Index(way)] = ids;
      cache.sequences.push_back(sequence);
    }
    for (int layer = 0; layer < layers; ++layer) {
      for (int s = 0; s < batch; ++s) {
        for (int64_t first = 0; first < tokens; first += kQueryRows) {
          const RowRange range = {
              .sequence = s,
              .first_row = 0,
              .num_rows = static_cast<int>(std::min<int64_t>(kQueryRows, tokens - first)),
              .first_position = first};
          const int64_t cols = kKvHeads * kHeadDim;
          const float* data = q_.as<float>();
          LS_TRY(backend_->AppendKv(
              {.k = {data, DType::kF32, range.num_rows, cols, kQHeads * kHeadDim},
               .v = {data + cols, DType::kF32, range.num_rows, cols, kQHeads * kHeadDim},
               .store = cache.store.get(),
               .layer = layer,
               .sequences = cache.sequences,
               .ranges = {&range, 1}}));
        }
      }
    }
    return cache;
  }

  // `density`: share of a retrieval row's earlier tiles that are listed; 1: all, without a list.
  // The queries from `first_token` on, in chunks of kQueryRows, one after the other, or all at
  // once.
  Status TimePrefill(const Cache& cache,
                     int64_t tokens,
                     bool streaming,
                     double density,
                     bool in_chunks,
                     int64_t first_token = 0) {
    std::vector<PagePlan> plans;
    std::vector<int> counts;
    std::vector<PageRun> lists;
    const int64_t tiles = tokens / kTileTokens;
    const int slots = cache.layout.way(Way::kRetrieval).num_slots(0);
    const int entries = cache.layout.way(Way::kRetrieval).num_entries;
    const int capacity = static_cast<int>(tiles / 2 + 1);
    Rng rng(2);
    double keys = 0;  // (query, key) pairs of all heads
    for (int64_t tile = first_token / kTileTokens; tile < tiles; ++tile) {
      if (plans.empty() || (in_chunks && tile * kTileTokens % kQueryRows == 0)) {
        plans.emplace_back();
      }
      PagePlan& plan = plans.back();
      for (const Way way : kWays) {
        if (cache.layout.way(way).num_slots(0) == 0) continue;
        PlanRow row;
        row.way = way;
        row.first_query = static_cast<int>(tile * kTileTokens % kQueryRows);
        row.num_queries = kTileTokens;
        row.first_position = tile * kTileTokens;
        row.newest = {0, static_cast<PageIdx>(2 * tile + 2)};
        const double heads = cache.layout.way(way).num_slots(0) * kGroup;
        double visited = static_cast<double>(tile) + 0.5;
        if (way == Way::kStreaming && streaming) {
          row.sink_end = kSinkTokens;
          row.window = kPrefillWindow;
          const int64_t first = std::max<int64_t>(0, row.first_position - kPrefillWindow + 1);
          row.newest.first = static_cast<PageIdx>(first / kPageTokens);
          const PageIdx sink = std::min(NumPages(kSinkTokens), row.newest.first);
          row.first_run = static_cast<int>(plan.runs.size());
          row.num_runs = 1;
          plan.runs.push_back({0, sink});
          visited = (row.newest.last - row.newest.first + sink) / 2.0 - 0.5;
        } else if (density < 1) {
          row.newest.first = static_cast<PageIdx>(std::max<int64_t>(0, 2 * tile - 2));
          row.selection = static_cast<int>(plan.selections.size());
          plan.selections.push_back({.capacity = capacity});
          visited = 0;
          for (int slot = 0; slot < slots; ++slot) {
            std::vector<PageRun> runs;
            for (int64_t t = 0; 2 * t < row.newest.first; ++t) {
              if (t > 0 && rng.NextFloat() * 0.5 + 0.5 >= density) continue;
              const PageRun run = {static_cast<PageIdx>(2 * t), static_cast<PageIdx>(2 * t + 2)};
              if (!runs.empty() && runs.back().last == run.first) {
                runs.back().last = run.last;
              } else {
                runs.push_back(run);
              }
              visited += 1.0 / slots;
            }
            counts.push_back(static_cast<int>(runs.size()));
            runs.resize(static_cast<size_t>(capacity));
            lists.insert(lists.end(), runs.begin(), runs.end());
          }
          visited += tile > 0 ? 1.5 : 0.5;
        }
        keys += visited * kTileTokens * kTileTokens * heads;
        plan.rows.push_back(row);
      }
    }
    const Buffer device_counts = LS_TRY(backend_->Allocate(counts.size() * sizeof(int)));
    const Buffer device_lists = LS_TRY(backend_->Allocate(lists.size() * sizeof(PageRun)));
    LS_TRY(backend_->CopyToDevice(device_counts.data.get(), counts.data(),
                                  counts.size() * sizeof(int)));
    LS_TRY(backend_->CopyToDevice(device_lists.data.get(), lists.data(),
                                  lists.size() * sizeof(PageRun)));
    size_t list = 0;
    for (PagePlan& plan : plans) {
      for (SelectionTable& table : plan.selections) {
        table.num_runs = device_counts.as<int>() + list * static_cast<size_t>(entries);
        table.runs = device_lists.as<PageRun>() + list * static_cast<size_t>(entries * capacity);
        ++list;
      }
    }
    backend_->BeginStep();
    const auto run = [&] {
      for (const PagePlan& plan : plans) {
        LS_TRY(backend_->PrefillAttention({.q = Queries(kQueryRows),
                                           .out = Output(kQueryRows),
                                           .num_q_heads = kQHeads,
                                           .scale = kScale,
                                           .store = cache.store.get(),
                                           .layer = 0,
                                           .sequences = cache.sequences,
                                           .plan = &plan}));
      }
      return Status();
    };
    const std::string what =
        StrCat(in_chunks ? "chunked prefill " : "prefill ",
               first_token > 0 ? StrCat(tokens - first_token, " of ") : "", tokens / 1024, "K ",
               streaming ? "half streaming" : "dense",
               density < 1 ? StrCat(", lists of ", static_cast<int>(density * 100), "%") : "",
               in_chunks ? StrCat(", ", Name(cache.layout.dtype)) : "");
    return Report(
        what, 1, 4.0 * keys * kHeadDim, 0, run, tokens > 65536 ? 3 : 7,
        density < 1 || streaming || in_chunks ? Protocol::kLoaded : Protocol::kLoadedAndRested);
  }

  Status Prefill(int64_t tokens) {
    const Cache cache = LS_TRY(Fill(tokens, 1, DType::kBf16, 1, kKvHeads / 2));
    LS_TRY(TimePrefill(cache, tokens, false, 1, false));
    LS_TRY(TimePrefill(cache, tokens, true, 1, false));
    LS_TRY(TimePrefill(cache, tokens, true, 0.5, false));
    LS_TRY(TimePrefill(cache, tokens, true, 0.25, false));
    // The estimate that would write such lists, for all rows.
    std::vector<TileSelectRequest> requests;
    const int entries = cache.layout.way(Way::kRetrieval).num_entries;
    const int64_t tiles = tokens / kTileTokens;
    const int capacity = static_cast<int>(tiles / 2 + 1);
    const Buffer counts = LS_TRY(backend_->Allocate(static_cast<size_t>(entries) * sizeof(int)));
    const Buffer runs =
        LS_TRY(backend_->Allocate(static_cast<size_t>(entries * capacity) * sizeof(PageRun)));
    for (int64_t tile = 0; tile < tiles; ++tile) {
      requests.push_back(
          {.first_query = static_cast<int>(tile * kTileTokens % kQueryRows),
           .first_position = tile * kTileTokens,
           .threshold = 0.9,
           .table = {
               .capacity = capacity, .num_runs = counts.as<int>(), .runs = runs.as<PageRun>()}});
    }
    backend_->BeginStep();
    // Chunk by chunk, as prompts are read.
    constexpr size_t kChunkTiles = kQueryRows / kTileTokens;
    // Multiply-adds of the estimate: rows and columns are 1 / 16 of queries and keys, each 16 D.
    const double products = static_cast<double>(tokens) * static_cast<double>(tokens) / 2 /
                            kTileStride * kHeadDim * kQHeads / 2;
    return Report(
        StrCat("select_tiles ", tokens / 1024, "K"), 1, 2 * products, 0,
        [&] {
          for (size_t first = 0; first < requests.size(); first += kChunkTiles) {
            LS_TRY(backend_->SelectTiles({.q = Queries(kQueryRows),
                                          .num_q_heads = kQHeads,
                                          .scale = kScale,
                                          .store = cache.store.get(),
                                          .layer = 0,
                                          .sequences = cache.sequences,
                                          .requests = {&requests[first], kChunkTiles}}));
          }
          return Status();
        },
        3);
  }

  // As an engine does, so that what is done once per chunk counts as often.
  Status PrefillInChunks(int64_t tokens, DType dtype) {
    const Cache cache = LS_TRY(Fill(tokens, 1, dtype, 1, kKvHeads / 2));
    LS_TRY(TimePrefill(cache, tokens, false, 1, true));
    LS_TRY(TimePrefill(cache, tokens, false, 1, true, tokens - kTileTokens));  // a question
    return TimePrefill(cache, tokens, true, 0.25, true);
  }

  Status Decode(int64_t tokens, int batch, DType dtype) {
    // Two layers of 128K bf16 tokens are a gigabyte, far more than the L2 cache; for selected pages
    // the statistics of eight layers are 134 MB.
    const int layers = batch > 1 ? 1 : 8;
    const Cache cache = LS_TRY(Fill(tokens, batch, dtype, layers, kKvHeads / 2));
    const std::string shape = StrCat(tokens / 1024, "K x ", batch, " ", Name(dtype));
    const double head_bytes = static_cast<double>(cache.layout.way(Way::kRetrieval).head_bytes.kv);
    const double pages = static_cast<double>(NumPages(tokens));
    PagePlan dense, sparse;
    std::vector<SelectRequest> requests;
    const int entries = cache.layout.way(Way::kRetrieval).num_entries;
    const int capacity = kBudgetPages;
    const size_t table_bytes = static_cast<size_t>(entries) *
                               (sizeof(int) + sizeof(PageRun) * static_cast<size_t>(capacity));
    const Buffer tables = LS_TRY(backend_->Allocate(table_bytes * static_cast<size_t>(batch)));
    for (int s = 0; s < batch; ++s) {
      std::byte* at = tables.as<std::byte>() + table_bytes * static_cast<size_t>(s);
      const SelectionTable table = {
          .capacity = capacity,
          .max_pages = kBudgetPages,
          .num_runs = reinterpret_cast<int*>(at + sizeof(PageRun) *
                                                      static_cast<size_t>(entries * capacity)),
          .runs = reinterpret_cast<PageRun*>(at)};
      requests.push_back({.sequence = s,
                          .query_row = s,
                          .num_pages = NumPages(tokens),
                          .budget_pages = kBudgetPages,
                          .table = table});
      for (const Way way : kWays) {
        PlanRow row;
        row.sequence = s;
        row.way = way;
        row.first_query = s;
        row.num_queries = 1;
        row.first_position = tokens - 1;
        row.newest = {0, NumPages(tokens)};
        dense.rows.push_back(row);
        row.newest.first = NumPages(tokens) - 2;
        if (way == Way::kRetrieval) {
          row.selection = s;
        } else {
          row.sink_end = kSinkTokens;
          row.window = kDecodeWindow;
          row.newest.first = NumPages(tokens) - NumPages(kDecodeWindow) - 1;
          row.first_run = static_cast<int>(sparse.runs.size());
          row.num_runs = 1;
          sparse.runs.push_back({0, NumPages(kSinkTokens)});
        }
        sparse.rows.push_back(row);
      }
      sparse.selections.push_back(table);
    }
    backend_->BeginStep();
    const auto attend = [&](const PagePlan& plan) {
      for (int layer = 0; layer < layers; ++layer) {
        LS_TRY(backend_->DecodeAttention({.q = Queries(batch),
                                          .out = Output(batch),
                                          .num_q_heads = kQHeads,
                                          .scale = kScale,
                                          .store = cache.store.get(),
                                          .layer = layer,
                                          .sequences = cache.sequences,
                                          .plan = &plan}));
      }
      return Status();
    };
    const auto select = [&] {
      for (int layer = 0; layer < layers; ++layer) {
        LS_TRY(backend_->SelectPages({.q = Queries(batch),
                                      .num_q_heads = kQHeads,
                                      .scale = kScale,
                                      .store = cache.store.get(),
                                      .layer = layer,
                                      .sequences = cache.sequences,
                                      .requests = requests}));
      }
      return Status();
    };
    LS_TRY(Report(
        StrCat("decode dense ", shape), layers, 0, head_bytes * pages * kKvHeads * batch,
        [&] { return attend(dense); }, 15));
    LS_TRY(Report(StrCat("decode select ", shape), layers, 0,
                  pages * batch * kKvHeads / 2 *
                      static_cast<double>(cache.layout.way(Way::kRetrieval).head_bytes.stats),
                  select, 15));
    return Report(
        StrCat("decode sparse ", shape), layers, 0,
        head_bytes * batch * (kKvHeads / 2) * (kBudgetPages + 7), [&] { return attend(sparse); },
        15);
  }

  // Captures `run` in a graph, replays it and prints the time of one of its `parts`.
  Status Report(const std::string& what,
                int parts,
                double flop,
                double bytes,
                const std::function<Status()>& run,
                int samples,
                Protocol protocol = Protocol::kLoaded) {
    if (!what.starts_with(only_)) return Status();
    LS_TRY(run());  // sizes the scratch and makes the copies, which a graph may not
    cudaStream_t stream = backend_->stream();
    LS_CUDA(cudaStreamSynchronize(stream));
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    LS_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const Status captured = run();
    LS_CUDA(cudaStreamEndCapture(stream, &graph));
    LS_TRY(Status(captured));
    LS_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    // The clock of the chip settles over some tenths of a second of load.
    std::vector<double> times, rested;
    double warm_up = 0;
    while (times.size() < static_cast<size_t>(samples)) {
      const double milliseconds = LS_TRY(Replay(exec));
      if (warm_up >= kWarmUpMilliseconds) times.push_back(milliseconds / parts);
      warm_up += milliseconds;
    }
    if (protocol == Protocol::kLoadedAndRested) {
      std::this_thread::sleep_for(kRest);
      while (rested.size() < kRestedSamples) {
        std::this_thread::sleep_for(kPause);
        rested.push_back(LS_TRY(Replay(exec)) / parts);
      }
    }
    LS_CUDA(cudaGraphExecDestroy(exec));
    LS_CUDA(cudaGraphDestroy(graph));
    const double median = Percentile(times, 0.5);
    const double low = Percentile(times, 0.1), high = Percentile(times, 0.9);
    std::printf("%-44s | %10.4f ms [%8.4f, %8.4f]", what.c_str(), median, low, high);
    if (flop > 0) std::printf(" | %7.1f TFLOP/s", flop / median * 1e-9);
    if (bytes > 0) std::printf(" | %7.1f GB/s", bytes / median * 1e-6);
    if (!rested.empty()) std::printf(" | rested %8.4f ms", Percentile(rested, 0.5));
    std::printf("\n");
    std::fflush(stdout);
    if (json_.empty()) return Status();
    std::ofstream file(json_, std::ios::app);
    file << "{\"what\":\"" << what << "\",\"ms\":" << median << ",\"p10_ms\":" << low
         << ",\"p90_ms\":" << high << ",\"flop\":" << flop << ",\"bytes\":" << bytes;
    if (!rested.empty()) file << ",\"rested_milliseconds\":" << Percentile(rested, 0.5);
    file << ",\"gpu\":\"" << gpu_.name << "\",\"driver\":" << gpu_.driver_version << "}\n";
    return Status();
  }

  // Launches the graph and returns the milliseconds that it took.
  Result<double> Replay(cudaGraphExec_t exec) {
    cudaStream_t stream = backend_->stream();
    cudaEvent_t begin = nullptr, end = nullptr;
    LS_CUDA(cudaEventCreate(&begin));
    LS_CUDA(cudaEventCreate(&end));
    LS_CUDA(cudaEventRecord(begin, stream));
    LS_CUDA(cudaGraphLaunch(exec, stream));
    LS_CUDA(cudaEventRecord(end, stream));
    LS_CUDA(cudaStreamSynchronize(stream));
    float milliseconds = 0;
    LS_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
    LS_CUDA(cudaEventDestroy(begin));
    LS_CUDA(cudaEventDestroy(end));
    return double{milliseconds};
  }

  std::unique_ptr<CudaBackend> backend_;
  GpuInfo gpu_;
  std::string json_, only_;
  Buffer q_, out_;
};

Status Main(const std::string& kernels, const std::string& json, const std::string& only) {
  const GpuInfo gpu = LS_TRY(ProbeGpus()).front();
  Bench bench(LS_TRY(CudaBackend::Make(gpu, {.kernels = kernels, .graphs = false})), gpu, json,
              only);
  return bench.Run();
}

}  // namespace
}  // namespace lserve

int main(int argc, char** argv) {
  if (argc > 4) {
    std::fprintf(stderr, "usage: %s [auto|sm80|sm90 [JSON_FILE [NAME]]]\n", argv[0]);
    return 2;
  }
  const lserve::Status status =
      lserve::Main(argc > 1 ? argv[1] : "auto", argc > 2 ? argv[2] : "", argc > 3 ? argv[3] : "");
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  return 1;
}
