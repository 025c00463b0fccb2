// LlamaWeights: the weights of a Llama-family model in a backend's layout, and how they are found
// in a checkpoint. The forward pass is in llama.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/mapped_file.h"
#include "loader/model_config.h"
#include "loader/safetensors.h"

namespace lserve {

// Which part of the model this process holds. KV heads and columns are dealt to ranks; page ids and
// the schedule do not depend on the rank. This version runs at world 1 and refuses anything else.
struct Shard {
  int rank = 0;
  int world = 1;
};

struct LayerWeights {
  Buffer input_norm;      // [hidden] float
  LinearWeight qkv;       // [(q heads + 2 kv heads) * head_dim, hidden]
  Buffer q_norm, k_norm;  // [head_dim] float, with qk_norm only
  LinearWeight o;         // [hidden, q heads * head_dim]
  Buffer post_norm;       // [hidden] float
  LinearWeight gate_up;   // [2 * intermediate, hidden]
  LinearWeight down;      // [hidden, intermediate]
};

struct WeightOptions {
  WeightFormat format = WeightFormat::kAsStored;  // of every Linear; lm_head: HeadFormat
  // Where quantised weights are kept for the next start; "": nowhere.
  std::string cache_dir;
};

// The format of lm_head: int8 at least (ADR 0011), and its input not quantised (ADR 0021).
constexpr WeightFormat HeadFormat(WeightFormat format) {
  return format == WeightFormat::kAsStored ? format : WeightFormat::kInt8;
}

struct LlamaWeights {
  Buffer embedding_data;
  ConstMatrix embedding;  // [vocab, hidden], as stored; a view of the mapped checkpoint on the CPU
  std::vector<LayerWeights> layers;
  Buffer final_norm;                        // [hidden] float
  LinearWeight lm_head;                     // [vocab, hidden]
  std::shared_ptr<const MappedFile> cache;  // if the weights are views of it
  size_t bytes = 0;                         // of everything above
  size_t most_read = 0;  // bytes of the checkpoint that were read at once, to be packed
};

// Reads every weight that `config` calls for. Errors name the tensor and what was expected of it.
// `checkpoint` must outlive the weights. A cache that can not be read or written costs time only:
// it is a warning in the log.
Result<LlamaWeights> LoadWeights(const Checkpoint& checkpoint,
                                 const ModelConfig& config,
                                 Shard shard,
                                 const WeightOptions& options,
                                 Backend* backend);

}  // namespace lserve
