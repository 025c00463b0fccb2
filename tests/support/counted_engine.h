// CountedEngine: an engine over a backend that computes nothing. Requests are admitted, cut into
// chunks, planned and booked as always, FLOP and bytes by bench/op_costs.h, so that work can be
// counted at lengths that would take minutes to compute. Of the lists that depend on keys it gets
// the longest that any attention could ask for, so that a bound on the work holds for every text.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bench/metered_backend.h"
#include "bench/random_model.h"
#include "bench/shapes.h"
#include "engine/engine_inputs.h"
#include "lserve/engine.h"

namespace lserve {

class CountingBackend final : public MeteredBackend {
 public:
  // `meter` must outlive it.
  CountingBackend(std::unique_ptr<Backend> inner, OpMeter* meter)
      : MeteredBackend(std::move(inner), meter), meter_(meter) {}

  Status GatherRows(const GatherRowsParams& /*params*/) override { return Status(); }
  Status RmsNorm(const RmsNormParams& /*params*/) override { return Status(); }
  Status SiluMul(const SiluMulParams& /*params*/) override { return Status(); }
  Status Rope(const RopeParams& /*params*/) override { return Status(); }
  Status AppendKv(const AppendKvParams& /*params*/) override { return Status(); }
  Status Linear(const LinearParams& params) override { return Book(OpKind::kLinear, params); }
  Status PrefillAttention(const AttentionParams& params) override {
    return Book(OpKind::kPrefillAttention, params);
  }
  Status DecodeAttention(const AttentionParams& params) override {
    return Book(OpKind::kDecodeAttention, params);
  }
  Status PickTokens(const PickTokensParams& params) override {
    for (int32_t& token : params.out) token = 1;
    return Status();
  }
  // The share of the tiles that have to be chosen is largest where all of them weigh the same and
  // the forced ones nothing: then it is the threshold.
  Status SelectTiles(const SelectTilesParams& params) override {
    for (const TileSelectRequest& request : params.requests) {
      const int64_t tiles = request.first_position / kTileTokens + 1;
      const double others = static_cast<double>(tiles - request.sink_tiles - request.newest_tiles);
      const PageIdx kept = std::min<PageIdx>(
          request.max_listed_tiles,
          request.sink_tiles + static_cast<PageIdx>(std::ceil(request.threshold * others)));
      Fill(params, request.table, {{0, kept * (kTileTokens / kPageTokens)}});
    }
    return Book(OpKind::kSelectTiles, params);
  }
  // Always the whole budget.
  Status SelectPages(const SelectPagesParams& params) override {
    for (const SelectRequest& request : params.requests) {
      const PageIdx newest = request.num_pages - request.newest_pages;
      Fill(params, request.table,
           {{0, request.budget_pages - request.newest_pages}, {newest, request.num_pages}});
    }
    return Book(OpKind::kSelectPages, params);
  }

 private:
  template <class Params>
  Status Book(OpKind kind, const Params& params) {
    meter_->of(kind).cost += CostOf(params);
    return Status();
  }
  // The same list for every head.
  template <class Params>
  static void Fill(const Params& params,
                   const SelectionTable& table,
                   const std::vector<PageRun>& list) {
    const WayLayout& way = params.store->layout().way(Way::kRetrieval);
    for (int slot = 0; slot < way.num_slots(params.layer); ++slot) {
      const int entry = way.first_entry[static_cast<size_t>(params.layer)] + slot;
      table.num_runs[entry] = static_cast<int>(list.size());
      std::copy(list.begin(), list.end(),
                table.runs + static_cast<int64_t>(entry) * table.capacity);
    }
  }

  OpMeter* meter_;
};

// What attention and the choice of its pages and tiles cost.
inline OpCost AttentionCost(const OpMeter& meter) {
  OpCost sum;
  for (const OpKind kind : {OpKind::kPrefillAttention, OpKind::kDecodeAttention,
                            OpKind::kSelectPages, OpKind::kSelectTiles}) {
    sum += meter.of(kind).cost;
  }
  return sum;
}

// What a request cost, step by step.
struct Work {
  std::vector<OpMeter> prefill;  // the last step gave the first token
  std::vector<OpMeter> decode;
  RequestStats stats;

  static OpCost Attention(const std::vector<OpMeter>& steps) {
    OpCost sum;
    for (const OpMeter& step : steps) sum += AttentionCost(step);
    return sum;
  }
  static OpCost Linear(const std::vector<OpMeter>& steps) {
    OpCost sum;
    for (const OpMeter& step : steps) sum += step.of(OpKind::kLinear).cost;
    return sum;
  }
};

class CountedEngine {
 public:
  // `model`: instead of config.model_dir.
  explicit CountedEngine(EngineConfig config, std::optional<ModelInMemory> model = {}) {
    config.device = "cpu";
    config.num_threads = 1;
    EngineInputs inputs;
    inputs.model = std::move(model);
    inputs.wrap_backend = [this](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
      return std::make_unique<CountingBackend>(std::move(inner), &meter_);
    };
    engine_ = Engine::Create(config, std::move(inputs)).value();
  }

  Engine& engine() { return *engine_; }

  Work Run(Request request) {
    Work work;
    request.ignore_eos = true;
    request.sampling.temperature = 0;
    const Result<RequestId> added = engine_->Add(std::move(request));
    EXPECT_TRUE(added.ok()) << added.status().message();
    bool begun = false;
    while (engine_->has_work()) {
      meter_ = {};
      for (const RequestEvent& event : engine_->Step().value()) {
        (begun ? work.decode : work.prefill).push_back(meter_);
        begun |= event.token.has_value();
        if (event.finished) work.stats = event.stats;
        EXPECT_TRUE(event.error.ok()) << event.error.message();
      }
    }
    return work;
  }
  // A prompt of `length` tokens, and `max_tokens` of an answer.
  Work Run(int64_t length, int64_t max_tokens, const AttentionSettings& attention) {
    Request request;
    request.prompt.assign(static_cast<size_t>(length), 1);
    request.max_tokens = max_tokens;
    request.attention = attention;
    return Run(std::move(request));
  }

 private:
  OpMeter meter_;
  std::unique_ptr<Engine> engine_;  // refers to meter_
};

// One layer of KV heads of `kinds` (1: retrieval), two query heads each, as small as a model gets.
inline constexpr int kCountedHeadDim = 16;
inline ModelInMemory CountedModel(const std::vector<uint8_t>& kinds) {
  ModelConfig config = FindShape("100m").value();
  config.hidden_size = config.intermediate_size = 32;
  config.num_layers = 1;
  config.num_kv_heads = static_cast<int64_t>(kinds.size());
  config.num_q_heads = 2 * config.num_kv_heads;
  config.head_dim = kCountedHeadDim;
  config.vocab_size = 97;
  ModelInMemory model = MakeRandomModel(config, 1);
  model.heads->kind = kinds;
  return model;
}

}  // namespace lserve
