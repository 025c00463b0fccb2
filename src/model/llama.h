// LlamaModel: the forward pass of the Llama family (Llama, Mistral, Qwen2, Qwen3) over a batch of
// token rows, as calls of backend ops. It owns weights and workspace; pages, plans and schedules
// come in with the batch. Used by the engine.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "loader/model_config.h"
#include "loader/safetensors.h"
#include "model/rope.h"
#include "model/weights.h"

namespace lserve {

// One step's rows: each range is consecutive tokens of one sequence, to be appended to its cache.
struct Batch {
  std::vector<int32_t> tokens;           // [rows]
  std::vector<RowRange> ranges;          // cover the rows in order
  std::vector<SequencePages> sequences;  // by RowRange::sequence; pages reserved for the new rows
  PagePlan prefill;
  PagePlan decode;
  std::vector<SelectRequest> selects;
  std::vector<TileSelectRequest> tile_selects;  // for rows of `prefill`
  // If set, called in every layer after each attention op, with what it was given (ADR 0015).
  std::function<Status(const AttentionParams& attention)> observe;

  void Clear();
};

class LlamaModel {
 public:
  // `max_rows`: rows of the largest batch. `max_model_len` fixes dynamic RoPE scaling. Both
  // `checkpoint` and `backend` must outlive the model.
  static Result<std::unique_ptr<LlamaModel>> Load(const Checkpoint& checkpoint,
                                                  const ModelConfig& config,
                                                  int64_t max_model_len,
                                                  int max_rows,
                                                  const WeightOptions& options,
                                                  Backend* backend);

  // Runs all layers and leaves the last hidden state of every row in the workspace.
  Status Forward(const Batch& batch, KvStore* store);

  // Logits of some rows of the last Forward, in groups of at most kLogitRows: [rows.size(), vocab]
  // floats on the device, the caller's to change, valid until the next call.
  static constexpr int kLogitRows = 64;
  Result<Matrix> Logits(std::span<const int32_t> rows);

  // Of all Forward calls, spent in choosing pages for decode. On a GPU the last layer that chose is
  // not in it yet.
  double selector_seconds() const {
    return backend_->selector_seconds().value_or(selector_seconds_);
  }

  const ModelConfig& config() const { return config_; }
  size_t weight_bytes() const { return weights_.bytes; }
  // Taken beside the weights while they were loaded.
  size_t loading_bytes() const { return weights_.most_read; }
  // Matrices between ops, and what Linear takes beside them.
  size_t workspace_bytes() const { return workspace_bytes_; }

 private:
  LlamaModel(const ModelConfig& config, Backend* backend) : config_(config), backend_(backend) {}
  Status AllocateWorkspace(int max_rows);
  Result<Matrix> NewMatrix(int64_t rows, int64_t cols);
  Status FillAngles(const Batch& batch);
  Status Layers(const Batch& batch, KvStore* store);
  Status Attention(const Batch& batch, int layer, KvStore* store);
  Status Mlp(int layer);

  ModelConfig config_;
  Backend* backend_;
  LlamaWeights weights_;
  double selector_seconds_ = 0;  // by the host's clock
  RopeFrequencies frequencies_;

  // Workspace, [max_rows, ...]; Forward narrows `rows` to the batch.
  std::vector<Buffer> buffers_;
  size_t workspace_bytes_ = 0;
  int64_t max_rows_ = 0;
  int64_t rows_ = 0;
  Matrix hidden_, normed_, qkv_, attention_, gate_up_, activated_, cos_, sin_;
  Matrix logit_hidden_, logits_;
  std::vector<int64_t> positions_;
  std::vector<float> host_cos_, host_sin_;
};

}  // namespace lserve
