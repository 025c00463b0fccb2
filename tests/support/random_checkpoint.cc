#include "support/random_checkpoint.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/check.h"
#include "base/half.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/strings.h"

namespace lserve {
namespace {

// Collects bf16 tensors and writes them as one safetensors file.
class SafetensorsWriter {
 public:
  explicit SafetensorsWriter(uint64_t seed) : rng_(seed) {}

  // Uniform with standard deviation `deviation` around `center`.
  void Add(const std::string& name,
           const std::vector<int64_t>& shape,
           float deviation,
           float center = 0) {
    const int64_t begin = static_cast<int64_t>(data_.size()) * 2;
    int64_t count = 1;
    Json::Array dims;
    for (const int64_t d : shape) {
      count *= d;
      dims.push_back(d);
    }
    for (int64_t i = 0; i < count; ++i) {
      data_.push_back(ToBf16(center + rng_.NextFloat() * deviation * std::sqrt(3.0f)));
    }
    header_.push_back(
        {name, Json(Json::Object{{"dtype", "BF16"},
                                 {"shape", dims},
                                 {"data_offsets", Json::Array{begin, begin + 2 * count}}})});
  }

  void Write(const std::string& path) const {
    const std::string header = WriteJson(Json(header_));
    const uint64_t size = header.size();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&size), sizeof(size));
    file.write(header.data(), static_cast<std::streamsize>(header.size()));
    file.write(reinterpret_cast<const char*>(data_.data()),
               static_cast<std::streamsize>(data_.size() * 2));
    LS_CHECK(file.good()) << path;
  }

 private:
  Rng rng_;
  Json::Object header_;
  std::vector<Bf16> data_;
};

void WriteJsonFile(const std::string& path, const Json& json) {
  std::ofstream file(path);
  file << WriteJson(json);
  LS_CHECK(file.good()) << path;
}

}  // namespace

RandomCheckpoint::RandomCheckpoint(const RandomModelShape& s) {
  std::string pattern = (std::filesystem::temp_directory_path() / "lserve_model_XXXXXX").string();
  LS_CHECK(mkdtemp(pattern.data()) != nullptr) << pattern;
  dir_ = pattern;
  WriteJsonFile(dir_ + "/config.json", Json(Json::Object{
                                           {"architectures", Json::Array{"LlamaForCausalLM"}},
                                           {"model_type", "llama"},
                                           {"hidden_size", s.hidden},
                                           {"intermediate_size", s.intermediate},
                                           {"num_hidden_layers", s.layers},
                                           {"num_attention_heads", s.q_heads},
                                           {"num_key_value_heads", s.kv_heads},
                                           {"head_dim", s.head_dim},
                                           {"vocab_size", s.vocab},
                                           {"rms_norm_eps", 1e-5},
                                           {"rope_theta", 10000.0},
                                           {"max_position_embeddings", s.max_positions},
                                           {"hidden_act", "silu"},
                                           {"tie_word_embeddings", false},
                                           {"eos_token_id", 0},
                                       }));
  SafetensorsWriter writer(s.seed);
  const float in = 1.0f / std::sqrt(static_cast<float>(s.hidden));
  writer.Add("model.embed_tokens.weight", {s.vocab, s.hidden}, 1.0f);
  for (int64_t layer = 0; layer < s.layers; ++layer) {
    const std::string p = StrCat("model.layers.", layer, ".");
    // Queries and keys are larger than a fresh model's, so that attention is peaked and a wrong
    // page shows.
    writer.Add(p + "self_attn.q_proj.weight", {s.q_heads * s.head_dim, s.hidden}, 2 * in);
    writer.Add(p + "self_attn.k_proj.weight", {s.kv_heads * s.head_dim, s.hidden}, 2 * in);
    writer.Add(p + "self_attn.v_proj.weight", {s.kv_heads * s.head_dim, s.hidden}, in);
    writer.Add(p + "self_attn.o_proj.weight", {s.hidden, s.q_heads * s.head_dim}, in);
    writer.Add(p + "mlp.gate_proj.weight", {s.intermediate, s.hidden}, in);
    writer.Add(p + "mlp.up_proj.weight", {s.intermediate, s.hidden}, in);
    writer.Add(p + "mlp.down_proj.weight", {s.hidden, s.intermediate}, in);
    writer.Add(p + "input_layernorm.weight", {s.hidden}, 0.1f, 1.0f);
    writer.Add(p + "post_attention_layernorm.weight", {s.hidden}, 0.1f, 1.0f);
  }
  writer.Add("model.norm.weight", {s.hidden}, 0.1f, 1.0f);
  writer.Add("lm_head.weight", {s.vocab, s.hidden}, in);
  writer.Write(dir_ + "/model.safetensors");
  if (s.kinds.empty()) return;
  Json::Array score, kind;
  for (int64_t layer = 0; layer < s.layers; ++layer) {
    Json::Array row_score, row_kind;
    for (int64_t head = 0; head < s.kv_heads; ++head) {
      const int value = s.kinds[static_cast<size_t>(layer * s.kv_heads + head)];
      row_score.push_back(static_cast<double>(value));
      row_kind.push_back(value);
    }
    score.push_back(row_score);
    kind.push_back(row_kind);
  }
  WriteJsonFile(dir_ + "/streaming_heads.json", Json(Json::Object{{"model", "random"},
                                                                  {"layers", s.layers},
                                                                  {"kv_heads", s.kv_heads},
                                                                  {"score", score},
                                                                  {"kind", kind}}));
}

RandomCheckpoint::~RandomCheckpoint() {
  std::error_code ignored;
  std::filesystem::remove_all(dir_, ignored);
}

std::vector<int32_t> RandomTokens(int64_t count, int64_t vocab, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(rng.NextBelow(static_cast<uint64_t>(vocab))));
  }
  return tokens;
}

}  // namespace lserve
