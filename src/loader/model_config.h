// ModelConfig: what config.json and generation_config.json of a Hugging Face model directory say,
// checked and normalised. An architecture or option that we do not implement is an error that names
// it, never ignored. Not the weights (safetensors.h). Used by model/, engine/ and `lserve inspect`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace lserve {

enum class Architecture : uint8_t { kLlama, kMistral, kQwen2, kQwen3 };
std::string_view Name(Architecture architecture);  // "LlamaForCausalLM", ...

enum class RopeType : uint8_t { kDefault, kLinear, kLlama3, kDynamic, kYarn };
std::string_view Name(RopeType type);  // "default", ...

// Rotary embedding, both spellings (rope_scaling + rope_theta, rope_parameters). Fields that the
// type does not use keep their defaults. model/rope.h turns this into frequencies.
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double factor = 1.0;            // linear, llama3, dynamic, yarn
  double low_freq_factor = 1.0;   // llama3
  double high_freq_factor = 4.0;  // llama3
  // Positions the model saw before it was scaled; max_position_embeddings where the file is silent.
  int64_t original_max_position_embeddings = 0;
  double beta_fast = 32.0;                 // yarn
  double beta_slow = 1.0;                  // yarn
  bool truncate = true;                    // yarn: round the correction range to whole dimensions
  std::optional<double> attention_factor;  // yarn; otherwise derived from factor and mscale
  std::optional<double> mscale;            // yarn
  std::optional<double> mscale_all_dim;    // yarn
};

// generation_config.json; empty where the file is silent.
struct GenerationDefaults {
  std::optional<bool> do_sample;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<int64_t> top_k;
};

struct ModelConfig {
  std::string name;  // last component of the directory
  Architecture architecture = Architecture::kLlama;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;  // divides num_q_heads
  int64_t head_dim = 0;      // even
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 0.0;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // of the q, k and v projections
  bool o_bias = false;
  bool mlp_bias = false;  // of the gate, up and down projections
  bool qk_norm = false;   // RMSNorm over head_dim of each query and key head, before RoPE
  // A window that no position up to max_position_embeddings outgrows. We do not implement windows:
  // a longer sequence must be refused.
  std::optional<int64_t> sliding_window;
  RopeConfig rope;
  std::optional<int32_t> bos_token_id;
  // Tokens that end a generation: generation_config.json's if it names any, else config.json's.
  std::vector<int32_t> eos_token_ids;
  std::string torch_dtype;  // "bfloat16", ...; empty if the file is silent
  GenerationDefaults generation;
};

// Reads DIR/config.json and, if there is one, DIR/generation_config.json.
Result<ModelConfig> LoadModelConfig(const std::string& model_dir);

// The same from text; an empty `generation_json` stands for no file. `path` only serves messages.
Result<ModelConfig> ParseModelConfig(std::string_view config_json,
                                     std::string_view generation_json,
                                     const std::string& path);

}  // namespace lserve
