#include "loader/model_config.h"

#include <filesystem>
#include <system_error>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/strings.h"
#include "loader/json_fields.h"
#include "loader/rope_config.h"

namespace lserve {
namespace {

// Far above any published model, far below what overflows a product of two in int64.
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxPositions = int64_t{1} << 30;
constexpr size_t kMaxConfigBytes = size_t{16} << 20;

// Options of the family's relatives that change the computation. Each is refused unless it has the
// value that makes it do nothing.
constexpr std::string_view kOffOptions[] = {
    // config.json: must be absent, null, false, 0 or empty
    "quantization_config",
    "compression_config",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attention_multiplier",
    "attention_chunk_size",
    "kv_lora_rank",
    "q_lora_rank",
    "clip_qkv",
    "alibi",
    "use_mrope",
    "mrope_section",
    "use_qk_norm",
    "query_pre_attn_scalar",
    "no_rope_layers",
    "add_cross_attention",
    "is_encoder_decoder"};
constexpr std::string_view kOneOptions[] = {
    // config.json: must be absent, null or 1
    "pretraining_tp",       "partial_rotary_factor", "rotary_pct", "residual_multiplier",
    "embedding_multiplier", "logits_scaling",        "logit_scale"};
constexpr std::string_view kOffGeneration[] = {
    // generation_config.json: must be absent, null, false, 0 or empty
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "penalty_alpha",
    "bad_words_ids",
    "force_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "min_length",
    "min_new_tokens",
    "epsilon_cutoff",
    "eta_cutoff",
    "watermarking_config",
    "constraints"};
constexpr std::string_view kOneGeneration[] = {
    // generation_config.json: must be absent, null or 1
    "num_beams", "num_beam_groups", "typical_p", "guidance_scale", "encoder_repetition_penalty"};

bool IsOff(const Json& value) {
  if (value.is_bool()) return !value.as_bool();
  if (value.is_number()) return value.as_double() == 0.0;
  if (value.is_array()) return value.as_array().empty();
  if (value.is_object()) return value.as_object().empty();
  return false;
}

Status Refused(const JsonFields& fields,
               std::string_view key,
               const std::string& value,
               std::string_view expected) {
  return Status(Code::kUnsupported,
                StrCat(fields.where(), ": \"", key, "\" is ", value, ", expected ", expected,
                       "; lserve does not implement this option, use another checkpoint"));
}

template <size_t N, size_t M>
Status CheckNeutral(const JsonFields& fields,
                    const std::string_view (&off)[N],
                    const std::string_view (&one)[M]) {
  for (const std::string_view key : off) {
    const Json* value = fields.Find(key);
    if (value != nullptr && !IsOff(*value)) {
      return Refused(fields, key, Shown(*value), "it absent or off");
    }
  }
  for (const std::string_view key : one) {
    const Json* value = fields.Find(key);
    if (value != nullptr && !(value->is_number() && value->as_double() == 1.0)) {
      return Refused(fields, key, Shown(*value), "it absent or 1");
    }
  }
  return Status();
}

Result<Json> ParseObject(std::string_view text, const std::string& where) {
  Result<Json> json = ParseJson(text, {.max_bytes = kMaxConfigBytes});
  if (!json.ok()) {
    return Status(Code::kCorruptModel,
                  StrCat(where, ": is no valid JSON (", json.status().message(),
                         "), expected a Hugging Face configuration; download the file again"));
  }
  if (!json.value().is_object()) {
    return Status(Code::kCorruptModel, StrCat(where, ": is ", Shown(json.value()),
                                              ", expected an object; download the file again"));
  }
  return json;
}

Result<Architecture> ParseArchitecture(const JsonFields& fields) {
  constexpr std::string_view kExpected =
      ", expected LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM; use "
      "a checkpoint of one of these";
  const Json* list = fields.Find("architectures");
  const bool one = list != nullptr && list->is_array() && list->as_array().size() == 1 &&
                   list->as_array()[0].is_string();
  if (!one) {
    return Status(Code::kUnsupported,
                  StrCat(fields.where(), ": \"architectures\" is ",
                         list == nullptr ? "missing" : Shown(*list), ", not one name", kExpected));
  }
  const std::string& name = list->as_array()[0].as_string();
  for (const Architecture architecture :
       {Architecture::kLlama, Architecture::kMistral, Architecture::kQwen2, Architecture::kQwen3}) {
    if (Name(architecture) == name) return architecture;
  }
  return Status(Code::kUnsupported,
                StrCat(fields.where(), ": architecture is ", Quoted(name), kExpected));
}

Status ParseSizes(const JsonFields& fields, ModelConfig& config) {
  config.hidden_size = LS_TRY(fields.RequiredInt("hidden_size", 1, kMaxWidth));
  config.intermediate_size = LS_TRY(fields.RequiredInt("intermediate_size", 1, kMaxWidth));
  config.num_layers = LS_TRY(fields.RequiredInt("num_hidden_layers", 1, kMaxLayers));
  config.vocab_size = LS_TRY(fields.RequiredInt("vocab_size", 1, kMaxVocab));
  config.max_position_embeddings =
      LS_TRY(fields.RequiredInt("max_position_embeddings", 1, kMaxPositions));
  config.rms_norm_eps = LS_TRY(fields.Number("rms_norm_eps", 1e-12, 1.0)).value_or(1e-6);
  config.tie_word_embeddings = LS_TRY(fields.Bool("tie_word_embeddings")).value_or(false);
  return Status();
}

Status ParseHeads(const JsonFields& fields, ModelConfig& config) {
  config.num_q_heads = LS_TRY(fields.RequiredInt("num_attention_heads", 1, kMaxHeads));
  // transformers' defaults of 8 and 32 for the others fit single models; only Llama's follows from
  // the file.
  config.num_kv_heads =
      config.architecture == Architecture::kLlama
          ? LS_TRY(fields.Int("num_key_value_heads", 1, kMaxHeads)).value_or(config.num_q_heads)
          : LS_TRY(fields.RequiredInt("num_key_value_heads", 1, kMaxHeads));
  if (config.num_q_heads % config.num_kv_heads != 0) {
    return Status(Code::kCorruptModel,
                  StrCat(fields.where(), ": \"num_attention_heads\" is ", config.num_q_heads,
                         ", expected a multiple of \"num_key_value_heads\" (", config.num_kv_heads,
                         "); fix the file or download it again"));
  }
  const std::optional<int64_t> head_dim = LS_TRY(fields.Int("head_dim", 2, kMaxHeadDim));
  if (!head_dim && config.architecture == Architecture::kQwen3) {
    return fields.RequiredInt("head_dim", 2, kMaxHeadDim).status();
  }
  if (!head_dim && config.hidden_size % config.num_q_heads != 0) {
    return Status(Code::kCorruptModel,
                  StrCat(fields.where(), ": \"hidden_size\" is ", config.hidden_size,
                         ", expected a multiple of \"num_attention_heads\" (", config.num_q_heads,
                         ") where \"head_dim\" is absent; fix the file or download it again"));
  }
  config.head_dim = head_dim.value_or(config.hidden_size / config.num_q_heads);
  if (config.head_dim % 2 != 0 || config.head_dim > kMaxHeadDim) {
    return Status(Code::kUnsupported,
                  StrCat(fields.where(), ": the head dimension is ", config.head_dim,
                         ", expected an even number up to ", kMaxHeadDim,
                         " (RoPE rotates pairs); use another checkpoint"));
  }
  return Status();
}

Status ParseBiases(const JsonFields& fields, ModelConfig& config) {
  const std::optional<bool> attention = LS_TRY(fields.Bool("attention_bias"));
  const std::optional<bool> mlp = LS_TRY(fields.Bool("mlp_bias"));
  config.qk_norm = config.architecture == Architecture::kQwen3;
  switch (config.architecture) {
    case Architecture::kLlama:
      config.qkv_bias = config.o_bias = attention.value_or(false);
      config.mlp_bias = mlp.value_or(false);
      return Status();
    case Architecture::kQwen3:
      config.qkv_bias = config.o_bias = attention.value_or(false);
      break;
    case Architecture::kQwen2:
      // Its q, k and v projections always have a bias, its o projection never.
      if (attention.has_value() && !*attention) {
        return Refused(fields, "attention_bias", "false", "true or absent for Qwen2ForCausalLM");
      }
      config.qkv_bias = true;
      break;
    case Architecture::kMistral:
      if (attention.value_or(false)) {
        return Refused(fields, "attention_bias", "true", "false for MistralForCausalLM");
      }
      break;
  }
  if (mlp.value_or(false)) {
    return Refused(fields, "mlp_bias", "true",
                   StrCat("false for ", std::string(Name(config.architecture))));
  }
  return Status();
}

Status CheckLayerTypes(const JsonFields& fields, const ModelConfig& config) {
  const Json* types = fields.Find("layer_types");
  if (types == nullptr) return Status();
  if (!types->is_array() || types->as_array().size() != static_cast<size_t>(config.num_layers)) {
    return Status(Code::kCorruptModel,
                  StrCat(fields.where(), ": \"layer_types\" is ", Shown(*types),
                         " of another length, expected ", config.num_layers,
                         " names (\"num_hidden_layers\"); fix the file"));
  }
  for (const Json& type : types->as_array()) {
    if (!type.is_string() || type.as_string() != "full_attention") {
      return Refused(fields, "layer_types", Shown(type), "\"full_attention\" in every layer");
    }
  }
  return Status();
}

// A window that no query can outgrow is no window; any other is a different model. RoPE scaling can
// carry a model beyond its stated positions, so whoever fixes the longest sequence checks again.
Status CheckSlidingWindow(const JsonFields& fields, ModelConfig& config) {
  const bool is_qwen =
      config.architecture == Architecture::kQwen2 || config.architecture == Architecture::kQwen3;
  const bool use = LS_TRY(fields.Bool("use_sliding_window")).value_or(!is_qwen);
  if (is_qwen) {
    return use ? Refused(fields, "use_sliding_window", "true", "false or absent") : Status();
  }
  const std::optional<int64_t> window = LS_TRY(fields.Int("sliding_window", 1, kMaxPositions));
  if (use && window && *window < config.max_position_embeddings) {
    return Refused(fields, "sliding_window", StrCat(*window),
                   StrCat("null, or at least \"max_position_embeddings\" (",
                          config.max_position_embeddings, ")"));
  }
  if (use) config.sliding_window = window;
  return Status();
}

Result<int32_t> ParseTokenId(const JsonFields& fields,
                             std::string_view key,
                             const Json& value,
                             int64_t vocab_size) {
  if (value.is_int() && value.as_int() >= 0 && value.as_int() < vocab_size) {
    return static_cast<int32_t>(value.as_int());
  }
  return Status(Code::kCorruptModel,
                StrCat(fields.where(), ": \"", key, "\" has ", Shown(value),
                       ", expected token ids from 0 to ", vocab_size - 1, "; fix the file"));
}

// "eos_token_id" may be one id or a list.
Result<std::vector<int32_t>> ParseTokenIds(const JsonFields& fields,
                                           std::string_view key,
                                           int64_t vocab_size) {
  std::vector<int32_t> ids;
  const Json* value = fields.Find(key);
  if (value == nullptr) return ids;
  if (!value->is_array()) {
    ids.push_back(LS_TRY(ParseTokenId(fields, key, *value, vocab_size)));
    return ids;
  }
  for (const Json& id : value->as_array()) {
    ids.push_back(LS_TRY(ParseTokenId(fields, key, id, vocab_size)));
  }
  return ids;
}

Status ParseTokens(const JsonFields& fields, ModelConfig& config) {
  const std::vector<int32_t> bos = LS_TRY(ParseTokenIds(fields, "bos_token_id", config.vocab_size));
  if (!bos.empty()) config.bos_token_id = bos.front();
  const std::vector<int32_t> eos = LS_TRY(ParseTokenIds(fields, "eos_token_id", config.vocab_size));
  if (!eos.empty()) config.eos_token_ids = eos;
  return Status();
}

Status ParseGeneration(std::string_view text, const std::string& path, ModelConfig& config) {
  const Json json = LS_TRY(ParseObject(text, path));
  const JsonFields fields(json, path);
  LS_TRY(CheckNeutral(fields, kOffGeneration, kOneGeneration));
  LS_TRY(ParseTokens(fields, config));
  GenerationDefaults& defaults = config.generation;
  defaults.do_sample = LS_TRY(fields.Bool("do_sample"));
  defaults.temperature = LS_TRY(fields.Number("temperature", 0.0, 1e6));
  defaults.top_p = LS_TRY(fields.Number("top_p", 0.0, 1.0));
  defaults.min_p = LS_TRY(fields.Number("min_p", 0.0, 1.0));
  defaults.top_k = LS_TRY(fields.Int("top_k", 0, kMaxVocab));
  defaults.repetition_penalty = LS_TRY(fields.Number("repetition_penalty", 1e-6, 1e6));
  return Status();
}

std::string DirectoryName(const std::string& model_dir) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::weakly_canonical(model_dir, error);
  if (error) return model_dir;
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

}  // namespace

std::string_view Name(Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
      return "LlamaForCausalLM";
    case Architecture::kMistral:
      return "MistralForCausalLM";
    case Architecture::kQwen2:
      return "Qwen2ForCausalLM";
    case Architecture::kQwen3:
      return "Qwen3ForCausalLM";
  }
  return "?";
}

Result<ModelConfig> ParseModelConfig(std::string_view config_json,
                                     std::string_view generation_json,
                                     const std::string& path) {
  const std::string where = path + "/config.json";
  const Json json = LS_TRY(ParseObject(config_json, where));
  const JsonFields fields(json, where);
  ModelConfig config;
  config.architecture = LS_TRY(ParseArchitecture(fields));
  LS_TRY(CheckNeutral(fields, kOffOptions, kOneOptions));
  LS_TRY(ParseSizes(fields, config));
  LS_TRY(ParseHeads(fields, config));
  LS_TRY(ParseBiases(fields, config));
  LS_TRY(CheckLayerTypes(fields, config));
  LS_TRY(CheckSlidingWindow(fields, config));
  const std::string act = LS_TRY(fields.String("hidden_act")).value_or("silu");
  if (act != "silu" && act != "swish") {
    return Refused(fields, "hidden_act", Quoted(act), "\"silu\"");
  }
  config.rope = LS_TRY(ParseRopeConfig(fields, config));
  LS_TRY(ParseTokens(fields, config));
  config.torch_dtype = LS_TRY(fields.String("torch_dtype")).value_or("");
  if (config.torch_dtype.empty()) config.torch_dtype = LS_TRY(fields.String("dtype")).value_or("");
  if (!generation_json.empty()) {
    LS_TRY(ParseGeneration(generation_json, path + "/generation_config.json", config));
  }
  return config;
}

Result<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  const std::string config_json = LS_TRY(ReadTextFile(model_dir + "/config.json", kMaxConfigBytes));
  std::string generation_json;
  Result<std::string> generation =
      ReadTextFile(model_dir + "/generation_config.json", kMaxConfigBytes);
  if (generation.ok()) {
    generation_json = std::move(generation).value();
  } else if (generation.status().code() != Code::kNotFound) {
    return generation.status();
  }
  ModelConfig config = LS_TRY(ParseModelConfig(config_json, generation_json, model_dir));
  config.name = DirectoryName(model_dir);
  return config;
}

}  // namespace lserve
