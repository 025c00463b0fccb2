#include "model/llama.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/clock.h"
#include "base/strings.h"

namespace lserve {
namespace {

// The first `rows` rows of a workspace matrix.
Matrix Rows(Matrix m, int64_t rows) {
  m.rows = rows;
  return m;
}

// Columns [first, first + count) of a float matrix.
Matrix Columns(Matrix m, int64_t first, int64_t count) {
  m.data = static_cast<float*>(m.data) + first;
  m.cols = count;
  return m;
}

}  // namespace

void Batch::Clear() {
  tokens.clear();
  ranges.clear();
  sequences.clear();
  prefill.Clear();
  decode.Clear();
  selects.clear();
  tile_selects.clear();
  observe = nullptr;
}

Result<std::unique_ptr<LlamaModel>> LlamaModel::Load(const Checkpoint& checkpoint,
                                                     const ModelConfig& config,
                                                     int64_t max_model_len,
                                                     int max_rows,
                                                     const WeightOptions& options,
                                                     Backend* backend) {
  std::unique_ptr<LlamaModel> model(new LlamaModel(config, backend));
  model->weights_ = LS_TRY(LoadWeights(checkpoint, config, Shard{}, options, backend));
  model->frequencies_ = MakeRopeFrequencies(config.rope, config.head_dim,
                                            config.max_position_embeddings, max_model_len);
  const Status allocated = model->AllocateWorkspace(max_rows);
  if (!allocated.ok()) return allocated;
  return model;
}

Result<Matrix> LlamaModel::NewMatrix(int64_t rows, int64_t cols) {
  Buffer buffer = LS_TRY(
      backend_->Allocate(static_cast<size_t>(rows) * static_cast<size_t>(cols) * sizeof(float)));
  workspace_bytes_ += buffer.bytes;
  buffers_.push_back(buffer);
  return Matrix{
      .data = buffer.data.get(), .dtype = DType::kF32, .rows = rows, .cols = cols, .stride = cols};
}

Status LlamaModel::AllocateWorkspace(int max_rows) {
  max_rows_ = max_rows;
  const int64_t q_width = config_.num_q_heads * config_.head_dim;
  const int64_t kv_width = config_.num_kv_heads * config_.head_dim;
  hidden_ = LS_TRY(NewMatrix(max_rows, config_.hidden_size));
  normed_ = LS_TRY(NewMatrix(max_rows, config_.hidden_size));
  qkv_ = LS_TRY(NewMatrix(max_rows, q_width + 2 * kv_width));
  attention_ = LS_TRY(NewMatrix(max_rows, q_width));
  gate_up_ = LS_TRY(NewMatrix(max_rows, 2 * config_.intermediate_size));
  activated_ = LS_TRY(NewMatrix(max_rows, config_.intermediate_size));
  cos_ = LS_TRY(NewMatrix(max_rows, config_.head_dim / 2));
  sin_ = LS_TRY(NewMatrix(max_rows, config_.head_dim / 2));
  logit_hidden_ = LS_TRY(NewMatrix(kLogitRows, config_.hidden_size));
  logits_ = LS_TRY(NewMatrix(kLogitRows, config_.vocab_size));
  const size_t angles = static_cast<size_t>(max_rows) * static_cast<size_t>(config_.head_dim / 2);
  host_cos_.resize(angles);
  host_sin_.resize(angles);
  size_t scratch = backend_->LinearScratchBytes(weights_.lm_head, kLogitRows);
  for (const LayerWeights& layer : weights_.layers) {
    for (const LinearWeight* weight : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      scratch = std::max(scratch, backend_->LinearScratchBytes(*weight, max_rows));
    }
  }
  workspace_bytes_ += scratch;
  return Status();
}

Status LlamaModel::FillAngles(const Batch& batch) {
  positions_.clear();
  for (const RowRange& range : batch.ranges) {
    LS_CHECK_EQ(range.first_row, static_cast<int>(positions_.size()));
    for (int i = 0; i < range.num_rows; ++i) positions_.push_back(range.first_position + i);
  }
  LS_CHECK_EQ(positions_.size(), batch.tokens.size());
  const size_t count = positions_.size() * static_cast<size_t>(config_.head_dim / 2);
  FillRopeRows(frequencies_, positions_, std::span(host_cos_).first(count),
               std::span(host_sin_).first(count));
  LS_TRY(backend_->CopyToDevice(cos_.data, host_cos_.data(), count * sizeof(float)));
  return backend_->CopyToDevice(sin_.data, host_sin_.data(), count * sizeof(float));
}

Status LlamaModel::Forward(const Batch& batch, KvStore* store) {
  rows_ = static_cast<int64_t>(batch.tokens.size());
  LS_CHECK_GT(rows_, 0);
  LS_CHECK_LE(rows_, max_rows_);
  backend_->BeginStep();
  LS_TRY(FillAngles(batch));
  // Decode steps are alike; an observer reads between ops.
  const bool repeats = batch.prefill.rows.empty() && batch.tile_selects.empty() && !batch.observe;
  const auto layers = [&] { return Layers(batch, store); };
  return repeats ? backend_->RunStep(layers) : layers();
}

Status LlamaModel::Layers(const Batch& batch, KvStore* store) {
  LS_TRY(backend_->GatherRows(
      {.table = weights_.embedding, .indices = batch.tokens, .out = Rows(hidden_, rows_)}));
  for (int layer = 0; layer < static_cast<int>(config_.num_layers); ++layer) {
    LS_TRY(Attention(batch, layer, store));
    LS_TRY(Mlp(layer));
  }
  return Status();
}

Status LlamaModel::Attention(const Batch& batch, int layer, KvStore* store) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int num_q_heads = static_cast<int>(config_.num_q_heads);
  const int num_kv_heads = static_cast<int>(config_.num_kv_heads);
  const int head_dim = static_cast<int>(config_.head_dim);
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  const Matrix hidden = Rows(hidden_, rows_), normed = Rows(normed_, rows_);
  const Matrix qkv = Rows(qkv_, rows_), attention = Rows(attention_, rows_);
  const Matrix q = Columns(qkv, 0, int64_t{num_q_heads} * head_dim);
  const Matrix k = Columns(qkv, q.cols, int64_t{num_kv_heads} * head_dim);
  const Matrix v = Columns(qkv, q.cols + k.cols, k.cols);

  LS_TRY(backend_->FusedLinear(
      {.norm = {{.x = hidden, .weight = w.input_norm.as<float>(), .eps = eps, .y = normed}},
       .linear = {.x = normed, .weight = &w.qkv, .y = qkv},
       .gate = {}}));
  if (config_.qk_norm) {
    LS_TRY(backend_->RmsNorm(
        {.x = q, .weight = w.q_norm.as<float>(), .eps = eps, .groups = num_q_heads, .y = q}));
    LS_TRY(backend_->RmsNorm(
        {.x = k, .weight = w.k_norm.as<float>(), .eps = eps, .groups = num_kv_heads, .y = k}));
  }
  // q and k lie side by side, so one call rotates both.
  LS_TRY(backend_->Rope({.x = qkv,
                         .num_heads = num_q_heads + num_kv_heads,
                         .head_dim = head_dim,
                         .cos = Rows(cos_, rows_),
                         .sin = Rows(sin_, rows_)}));
  // Append, then attend: attention reads only what the cache stores, the newest token included.
  LS_TRY(backend_->AppendKv({.k = k,
                             .v = v,
                             .store = store,
                             .layer = layer,
                             .sequences = batch.sequences,
                             .ranges = batch.ranges}));
  AttentionParams params = {.q = q,
                            .out = attention,
                            .num_q_heads = num_q_heads,
                            .scale = scale,
                            .store = store,
                            .layer = layer,
                            .sequences = batch.sequences};
  if (!batch.tile_selects.empty()) {
    LS_TRY(backend_->SelectTiles({.q = q,
                                  .num_q_heads = num_q_heads,
                                  .scale = scale,
                                  .store = store,
                                  .layer = layer,
                                  .sequences = batch.sequences,
                                  .requests = batch.tile_selects}));
  }
  if (!batch.prefill.rows.empty()) {
    params.plan = &batch.prefill;
    LS_TRY(backend_->PrefillAttention(params));
    if (batch.observe) LS_TRY(batch.observe(params));
  }
  if (!batch.selects.empty()) {
    const Stopwatch watch;
    LS_TRY(backend_->SelectPages({.q = q,
                                  .num_q_heads = num_q_heads,
                                  .scale = scale,
                                  .store = store,
                                  .layer = layer,
                                  .sequences = batch.sequences,
                                  .requests = batch.selects}));
    selector_seconds_ += watch.seconds();
  }
  if (!batch.decode.rows.empty()) {
    params.plan = &batch.decode;
    LS_TRY(backend_->DecodeAttention(params));
    if (batch.observe) LS_TRY(batch.observe(params));
  }
  LS_TRY(backend_->Linear({.x = attention, .weight = &w.o, .y = hidden, .accumulate = true}));
  return Status();
}

Status LlamaModel::Mlp(int layer) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const Matrix hidden = Rows(hidden_, rows_), normed = Rows(normed_, rows_);
  const Matrix gate_up = Rows(gate_up_, rows_), activated = Rows(activated_, rows_);
  LS_TRY(backend_->FusedLinear({.norm = {{.x = hidden,
                                          .weight = w.post_norm.as<float>(),
                                          .eps = static_cast<float>(config_.rms_norm_eps),
                                          .y = normed}},
                                .linear = {.x = normed, .weight = &w.gate_up, .y = gate_up},
                                .gate = {{.x = gate_up, .y = activated}}}));
  LS_TRY(backend_->Linear({.x = activated, .weight = &w.down, .y = hidden, .accumulate = true}));
  return Status();
}

Result<Matrix> LlamaModel::Logits(std::span<const int32_t> rows) {
  const int64_t count = static_cast<int64_t>(rows.size());
  LS_CHECK_LE(count, kLogitRows);
  const Matrix hidden = Rows(logit_hidden_, count), logits = Rows(logits_, count);
  LS_TRY(backend_->GatherRows({.table = Rows(hidden_, rows_), .indices = rows, .out = hidden}));
  LS_TRY(backend_->FusedLinear({.norm = {{.x = hidden,
                                          .weight = weights_.final_norm.as<float>(),
                                          .eps = static_cast<float>(config_.rms_norm_eps),
                                          .y = hidden}},
                                .linear = {.x = hidden, .weight = &weights_.lm_head, .y = logits},
                                .gate = {}}));
  return logits;
}

}  // namespace lserve
