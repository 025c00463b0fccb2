// LlamaWeights: the weights of a Llama-family model in a backend's layout, and how they are found
// in a checkpoint. The forward pass is in llama.h.
#pragma once

#include <vector>

#include "backend/backend.h"
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

struct LlamaWeights {
  Buffer embedding_data;
  ConstMatrix embedding;  // [vocab, hidden], as stored; a view of the mapped checkpoint on the CPU
  std::vector<LayerWeights> layers;
  Buffer final_norm;     // [hidden] float
  LinearWeight lm_head;  // [vocab, hidden]
  size_t bytes = 0;      // of everything above
};

// Reads every weight that `config` calls for. Errors name the tensor and what was expected of it.
// `checkpoint` must outlive the weights.
Result<LlamaWeights> LoadWeights(const Checkpoint& checkpoint,
                                 const ModelConfig& config,
                                 Shard shard,
                                 Backend* backend);

}  // namespace lserve
