#include "model/weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "base/half.h"
#include "base/log.h"
#include "base/strings.h"
#include "loader/packed_weights.h"

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

// Of what is stored: the codes of kInt8 and kW8A8 are the same.
const char* FormatName(WeightFormat format) {
  return format == WeightFormat::kInt4 ? "int4" : "int8";
}

// Where the quantised weights of this checkpoint lie: one file per model directory and format, so
// that a changed checkpoint replaces its old cache.
std::string CachePath(const Checkpoint& checkpoint, const WeightOptions& options) {
  std::error_code ignored;
  const std::filesystem::path model =
      std::filesystem::weakly_canonical(checkpoint.model_dir(), ignored);
  const std::string text = model.string();
  const std::string name =
      model.has_filename() ? model.filename().string() : model.parent_path().filename().string();
  return (std::filesystem::path(options.cache_dir) /
          StrCat(name, "-", FormatName(options.format), "-",
                 ChecksumOf(std::as_bytes(std::span(text))), ".weights"))
      .string();
}

// The weights on disk that quantising gave at an earlier start, or the file that it is to give.
// A file of no use is a line in the log.
class WeightCache {
 public:
  WeightCache(const Checkpoint& checkpoint, const WeightOptions& options, const Backend& backend) {
    if (options.format == WeightFormat::kAsStored || options.cache_dir.empty()) return;
    const std::string layout = backend.packed_layout();
    if (layout.empty()) return;
    path_ = CachePath(checkpoint, options);
    key_ = StrCat(layout, ", ", FormatName(options.format), ", head ",
                  FormatName(HeadFormat(options.format)), ", ", checkpoint.identity());
    Result<PackedWeights> opened = PackedWeights::Open(path_, key_);
    if (opened.ok()) {
      reader_ = std::move(opened).value();
    } else if (opened.status().code() == Code::kNotFound) {
      StartWriting();
    } else {
      Rebuild(opened.status());
    }
  }

  bool is_reading() const { return reader_.has_value(); }
  const PackedWeights& reader() const { return *reader_; }

  // What was read is of no use: from now on, write.
  void Rebuild(const Status& reason) {
    LogWarning(StrCat("quantization cache: ", reason.message()));
    reader_.reset();
    StartWriting();
  }

  void Add(const std::string& name, const LinearWeight& weight) {
    if (!writer_) return;
    Check(writer_->Add(name, {weight.data.as<const std::byte>(), weight.data.bytes}));
  }
  void Finish() {
    if (writer_) Check(writer_->Finish());
    writer_.reset();
  }

 private:
  void StartWriting() {
    Result<PackedWeightsWriter> writer = PackedWeightsWriter::Create(path_, key_);
    if (writer.ok()) {
      writer_.emplace(std::move(writer).value());
    } else {
      Check(writer.status());
    }
  }
  void Check(const Status& status) {
    if (status.ok()) return;
    LogWarning(StrCat("quantization cache: ", status.message(), "; going on without it"));
    writer_.reset();
  }

  std::string path_;
  std::string key_;
  std::optional<PackedWeights> reader_;
  std::optional<PackedWeightsWriter> writer_;
};

// Reads the tensors of one model and counts their bytes in `weights`.
class WeightReader {
 public:
  WeightReader(const Checkpoint& checkpoint,
               const WeightOptions& options,
               WeightCache& cache,
               Backend* backend,
               LlamaWeights* weights)
      : checkpoint_(checkpoint),
        options_(options),
        cache_(cache),
        backend_(backend),
        weights_(weights) {}

  // A vector of `size` values, as float on the device.
  Result<Buffer> Vector(const std::string& name, int64_t size) {
    const std::array<int64_t, 1> shape = {size};
    const TensorInfo* tensor = LS_TRY(checkpoint_.Get(name, shape));
    std::vector<float> values;
    AppendAsFloat(*tensor, &values);
    Buffer buffer = LS_TRY(backend_->Allocate(values.size() * sizeof(float)));
    LS_TRY(backend_->CopyToDevice(buffer.data.get(), values.data(), values.size() * sizeof(float)));
    weights_->bytes += buffer.bytes;
    return buffer;
  }

  // Projections that share their input, stacked into one weight.
  Result<LinearWeight> Stacked(const std::string& prefix,
                               const std::vector<Projection>& projections,
                               int64_t in_features) {
    std::vector<const TensorInfo*> tensors;
    std::vector<float> bias;
    for (const Projection& projection : projections) {
      const std::string name = StrCat(prefix, projection.name);
      const std::array<int64_t, 2> shape = {projection.rows, in_features};
      const TensorInfo* tensor = LS_TRY(checkpoint_.Get(name + ".weight", shape));
      if (!tensors.empty() && tensors.front()->dtype != tensor->dtype) {
        return Status(Code::kUnsupported,
                      StrCat(name, ".weight: is ", Name(tensor->dtype), ", expected ",
                             Name(tensors.front()->dtype), " as ", prefix, projections.front().name,
                             "; store the checkpoint in one dtype"));
      }
      tensors.push_back(tensor);
      if (!projection.has_bias) continue;
      const std::array<int64_t, 1> bias_shape = {projection.rows};
      AppendAsFloat(*LS_TRY(checkpoint_.Get(name + ".bias", bias_shape)), &bias);
    }
    return Pack(StrCat(prefix, projections.front().name), tensors, bias, options_.format);
  }

  // `tensors` stacked by rows, from the cache if it has them.
  Result<LinearWeight> Pack(const std::string& name,
                            std::span<const TensorInfo* const> tensors,
                            std::span<const float> bias,
                            WeightFormat format) {
    const int64_t in_features = tensors.front()->shape[1];
    LinearWeight weight;
    if (cache_.is_reading()) {
      int64_t out_features = 0;
      for (const TensorInfo* tensor : tensors) out_features += tensor->shape[0];
      const std::span<const std::byte> data = LS_TRY(cache_.reader().Get(name));
      weight = LS_TRY(backend_->ImportLinear(format, out_features, in_features, data, bias));
    } else {
      std::vector<WeightPart> parts;
      size_t read = 0;
      for (const TensorInfo* tensor : tensors) {
        read += tensor->data.size();
        parts.push_back(
            {.data = tensor->data.data(), .dtype = tensor->dtype, .rows = tensor->shape[0]});
      }
      weights_->most_read = std::max(weights_->most_read, read);
      Result<LinearWeight> packed = backend_->PackLinear(parts, in_features, bias, format);
      if (!packed.ok()) {
        return Status(packed.status().code(),
                      StrCat(checkpoint_.model_dir(), ": ", name, ": ", packed.status().message()));
      }
      weight = std::move(packed).value();
      cache_.Add(name, weight);
      // What is packed is not read again: at no time are both there in full.
      for (const TensorInfo* tensor : tensors) checkpoint_.Release(*tensor);
    }
    weights_->bytes +=
        weight.data.bytes + weight.scales.bytes + weight.zeros.bytes + weight.bias.bytes;
    return weight;
  }

  Result<const TensorInfo*> Embedding(const std::string& name, const ModelConfig& config) {
    const std::array<int64_t, 2> shape = {config.vocab_size, config.hidden_size};
    return checkpoint_.Get(name, shape);
  }

 private:
  const Checkpoint& checkpoint_;
  const WeightOptions& options_;
  WeightCache& cache_;
  Backend* backend_;
  LlamaWeights* weights_;
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

Result<LlamaWeights> LoadAll(const Checkpoint& checkpoint,
                             const ModelConfig& config,
                             const WeightOptions& options,
                             WeightCache& cache,
                             Backend* backend) {
  LlamaWeights weights;
  if (cache.is_reading()) weights.cache = cache.reader().owner();
  WeightReader reader(checkpoint, options, cache, backend, &weights);
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
  weights.lm_head = LS_TRY(reader.Pack("lm_head", {&head, 1}, {}, HeadFormat(options.format)));
  return weights;
}

}  // namespace

Result<LlamaWeights> LoadWeights(const Checkpoint& checkpoint,
                                 const ModelConfig& config,
                                 Shard shard,
                                 const WeightOptions& options,
                                 Backend* backend) {
  if (shard.world != 1) {
    return Status(Code::kUnsupported,
                  StrCat("tensor parallelism over ", shard.world, " devices, expected 1"));
  }
  LS_TRY(CheckNoSurprises(checkpoint, config));
  WeightCache cache(checkpoint, options, *backend);
  if (cache.is_reading()) {
    Result<LlamaWeights> cached = LoadAll(checkpoint, config, options, cache, backend);
    if (cached.ok()) return cached;
    // The checkpoint's own faults come back below.
    cache.Rebuild(cached.status());
  }
  Result<LlamaWeights> weights = LoadAll(checkpoint, config, options, cache, backend);
  if (weights.ok()) cache.Finish();
  return weights;
}

}  // namespace lserve
