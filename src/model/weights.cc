#include "model/weights.h"

#include <array>
#include <cstring>
#include <string>

#include "base/half.h"
#include "base/strings.h"

namespace lserve {
namespace {

// One projection of a checkpoint: "PREFIX.q_proj" and the rows it must have.
struct Projection {
  std::string name;
  int64_t rows = 0;
  bool has_bias = false;
};

void AppendAsFloat(const TensorInfo& tensor, std::vector<float>* out) {
  int64_t count = 1;
  for (const int64_t size : tensor.shape) count *= size;
  for (int64_t i = 0; i < count; ++i) {
    switch (tensor.dtype) {
      case DType::kBf16:
        out->push_back(ToFloat(reinterpret_cast<const Bf16*>(tensor.data.data())[i]));
        break;
      case DType::kF16:
        out->push_back(ToFloat(reinterpret_cast<const F16*>(tensor.data.data())[i]));
        break;
      default:
        out->push_back(reinterpret_cast<const float*>(tensor.data.data())[i]);
        break;
    }
  }
}

// Reads the tensors of one model and counts their bytes.
class WeightReader {
 public:
  WeightReader(const Checkpoint& checkpoint, Backend* backend, size_t* bytes)
      : checkpoint_(checkpoint), backend_(backend), bytes_(bytes) {}

  // A vector of `size` values, as float on the device.
  Result<Buffer> Vector(const std::string& name, int64_t size) {
    const std::array<int64_t, 1> shape = {size};
    const TensorInfo* tensor = LS_TRY(checkpoint_.Get(name, shape));
    std::vector<float> values;
    AppendAsFloat(*tensor, &values);
    Buffer buffer = LS_TRY(backend_->Allocate(values.size() * sizeof(float)));
    backend_->CopyToDevice(buffer.data.get(), values.data(), values.size() * sizeof(float));
    *bytes_ += buffer.bytes;
    return buffer;
  }

  // Projections that share their input, stacked into one weight.
  Result<LinearWeight> Stacked(const std::string& prefix,
                               const std::vector<Projection>& projections,
                               int64_t in_features) {
    std::vector<WeightPart> parts;
    std::vector<float> bias;
    for (const Projection& projection : projections) {
      const std::string name = StrCat(prefix, projection.name);
      const std::array<int64_t, 2> shape = {projection.rows, in_features};
      const TensorInfo* tensor = LS_TRY(checkpoint_.Get(name + ".weight", shape));
      if (!parts.empty() && parts.front().dtype != tensor->dtype) {
        return Status(Code::kUnsupported,
                      StrCat(name, ".weight: is ", Name(tensor->dtype), ", expected ",
                             Name(parts.front().dtype), " as ", prefix, projections.front().name,
                             "; store the checkpoint in one dtype"));
      }
      parts.push_back(
          {.data = tensor->data.data(), .dtype = tensor->dtype, .rows = projection.rows});
      if (!projection.has_bias) continue;
      const std::array<int64_t, 1> bias_shape = {projection.rows};
      AppendAsFloat(*LS_TRY(checkpoint_.Get(name + ".bias", bias_shape)), &bias);
    }
    return Pack(parts, in_features, bias);
  }

  Result<LinearWeight> Pack(std::span<const WeightPart> parts,
                            int64_t in_features,
                            std::span<const float> bias) {
    LinearWeight weight =
        LS_TRY(backend_->PackLinear(parts, in_features, bias, WeightFormat::kAsStored));
    *bytes_ += weight.data.bytes + weight.scales.bytes + weight.zeros.bytes + weight.bias.bytes;
    return weight;
  }

  Result<const TensorInfo*> Embedding(const std::string& name, const ModelConfig& config) {
    const std::array<int64_t, 2> shape = {config.vocab_size, config.hidden_size};
    return checkpoint_.Get(name, shape);
  }

 private:
  const Checkpoint& checkpoint_;
  Backend* backend_;
  size_t* bytes_;
};

// A bias in the file that the configuration does not announce would silently be left out.
Status CheckNoSurprises(const Checkpoint& checkpoint, const ModelConfig& config) {
  const std::pair<const char*, bool> optional[] = {
      {"self_attn.q_proj.bias", config.qkv_bias},  {"self_attn.k_proj.bias", config.qkv_bias},
      {"self_attn.v_proj.bias", config.qkv_bias},  {"self_attn.o_proj.bias", config.o_bias},
      {"mlp.gate_proj.bias", config.mlp_bias},     {"mlp.up_proj.bias", config.mlp_bias},
      {"mlp.down_proj.bias", config.mlp_bias},     {"self_attn.q_norm.weight", config.qk_norm},
      {"self_attn.k_norm.weight", config.qk_norm},
  };
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const auto& [name, expected] : optional) {
      const std::string full = StrCat("model.layers.", layer, ".", name);
      if (!expected && checkpoint.Find(full) != nullptr) {
        return Status(Code::kCorruptModel,
                      StrCat(checkpoint.model_dir(), ": has a tensor \"", full,
                             "\" that config.json does not call for, expected none; is config.json "
                             "from the same model?"));
      }
    }
  }
  const std::string beyond = StrCat("model.layers.", config.num_layers, ".input_layernorm.weight");
  if (checkpoint.Find(beyond) != nullptr) {
    return Status(Code::kCorruptModel,
                  StrCat(checkpoint.model_dir(), ": has a tensor \"", beyond, "\", expected ",
                         config.num_layers, " layers; is config.json from the same model?"));
  }
  return Status();
}

Result<LayerWeights> LoadLayer(WeightReader& reader, const ModelConfig& config, int64_t layer) {
  const std::string prefix = StrCat("model.layers.", layer, ".");
  const int64_t q_width = config.num_q_heads * config.head_dim;
  const int64_t kv_width = config.num_kv_heads * config.head_dim;
  LayerWeights w;
  w.input_norm = LS_TRY(reader.Vector(prefix + "input_layernorm.weight", config.hidden_size));
  w.qkv = LS_TRY(reader.Stacked(prefix,
                                {{"self_attn.q_proj", q_width, config.qkv_bias},
                                 {"self_attn.k_proj", kv_width, config.qkv_bias},
                                 {"self_attn.v_proj", kv_width, config.qkv_bias}},
                                config.hidden_size));
  if (config.qk_norm) {
    w.q_norm = LS_TRY(reader.Vector(prefix + "self_attn.q_norm.weight", config.head_dim));
    w.k_norm = LS_TRY(reader.Vector(prefix + "self_attn.k_norm.weight", config.head_dim));
  }
  w.o = LS_TRY(
      reader.Stacked(prefix, {{"self_attn.o_proj", config.hidden_size, config.o_bias}}, q_width));
  w.post_norm =
      LS_TRY(reader.Vector(prefix + "post_attention_layernorm.weight", config.hidden_size));
  w.gate_up = LS_TRY(reader.Stacked(prefix,
                                    {{"mlp.gate_proj", config.intermediate_size, config.mlp_bias},
                                     {"mlp.up_proj", config.intermediate_size, config.mlp_bias}},
                                    config.hidden_size));
  w.down = LS_TRY(reader.Stacked(prefix, {{"mlp.down_proj", config.hidden_size, config.mlp_bias}},
                                 config.intermediate_size));
  return w;
}

}  // namespace

Result<LlamaWeights> LoadWeights(const Checkpoint& checkpoint,
                                 const ModelConfig& config,
                                 Shard shard,
                                 Backend* backend) {
  if (shard.world != 1) {
    return Status(Code::kUnsupported,
                  StrCat("tensor parallelism over ", shard.world, " devices, expected 1"));
  }
  const Status surprises = CheckNoSurprises(checkpoint, config);
  if (!surprises.ok()) return surprises;

  LlamaWeights weights;
  WeightReader reader(checkpoint, backend, &weights.bytes);
  const TensorInfo* embedding = LS_TRY(reader.Embedding("model.embed_tokens.weight", config));
  weights.embedding_data = LS_TRY(backend->ImportConstant(embedding->data));
  weights.bytes += embedding->data.size();
  weights.embedding = ConstMatrix(weights.embedding_data.data.get(), embedding->dtype,
                                  config.vocab_size, config.hidden_size, config.hidden_size);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    weights.layers.push_back(LS_TRY(LoadLayer(reader, config, layer)));
  }
  weights.final_norm = LS_TRY(reader.Vector("model.norm.weight", config.hidden_size));
  const TensorInfo* head = embedding;
  if (!config.tie_word_embeddings) head = LS_TRY(reader.Embedding("lm_head.weight", config));
  const WeightPart part = {
      .data = head->data.data(), .dtype = head->dtype, .rows = config.vocab_size};
  weights.lm_head = LS_TRY(reader.Pack({&part, 1}, config.hidden_size, {}));
  return weights;
}

}  // namespace lserve
