#include "bench/random_model.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/strings.h"

namespace lserve {
namespace {

constexpr float kDeviation = 0.02f;
constexpr int64_t kWindowStep = 32;  // elements: windows begin on a cache line

struct Wanted {
  std::string name;
  std::vector<int64_t> shape;
  int64_t count() const {
    int64_t n = 1;
    for (const int64_t size : shape) n *= size;
    return n;
  }
};

// Every tensor that LoadWeights asks for.
std::vector<Wanted> WantedTensors(const ModelConfig& c) {
  const int64_t q = c.num_q_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  std::vector<Wanted> all = {{"model.embed_tokens.weight", {c.vocab_size, c.hidden_size}}};
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    const std::string p = StrCat("model.layers.", layer, ".");
    all.push_back({p + "input_layernorm.weight", {c.hidden_size}});
    all.push_back({p + "self_attn.q_proj.weight", {q, c.hidden_size}});
    all.push_back({p + "self_attn.k_proj.weight", {kv, c.hidden_size}});
    all.push_back({p + "self_attn.v_proj.weight", {kv, c.hidden_size}});
    all.push_back({p + "self_attn.o_proj.weight", {c.hidden_size, q}});
    all.push_back({p + "post_attention_layernorm.weight", {c.hidden_size}});
    all.push_back({p + "mlp.gate_proj.weight", {c.intermediate_size, c.hidden_size}});
    all.push_back({p + "mlp.up_proj.weight", {c.intermediate_size, c.hidden_size}});
    all.push_back({p + "mlp.down_proj.weight", {c.hidden_size, c.intermediate_size}});
  }
  all.push_back({"model.norm.weight", {c.hidden_size}});
  if (!c.tie_word_embeddings) {
    all.push_back({"lm_head.weight", {c.vocab_size, c.hidden_size}});
  }
  return all;
}

struct Memory {
  std::vector<Bf16> pool;  // of the matrices
  std::vector<Bf16> ones;  // of the norms
};

void FillRandom(std::vector<Bf16>& values, Rng& rng) {
  // Uniform in [-1, 1) has a deviation of 1 / sqrt(3); one draw gives four values.
  const float unit = kDeviation * std::sqrt(3.0f) / 32768.0f;
  for (size_t i = 0; i < values.size(); i += 4) {
    uint64_t bits = rng.NextU64();
    const size_t last = std::min(values.size(), i + 4);
    for (size_t j = i; j < last; ++j, bits >>= 16) {
      values[j] = ToBf16(static_cast<float>(static_cast<int16_t>(bits)) * unit);
    }
  }
}

StreamingHeadsFile RandomHeads(const ModelConfig& config, Rng& rng) {
  StreamingHeadsFile heads;
  heads.layers = config.num_layers;
  heads.kv_heads = config.num_kv_heads;
  for (int64_t i = 0; i < heads.layers * heads.kv_heads; ++i) {
    heads.score.push_back(static_cast<float>(rng.NextDouble()));
  }
  heads.kind = CutByRatio(heads, kRandomStreamingRatio).value();
  return heads;
}

}  // namespace

ModelInMemory MakeRandomModel(const ModelConfig& config, uint64_t seed) {
  LS_CHECK(!config.qkv_bias && !config.o_bias && !config.mlp_bias && !config.qk_norm);
  const std::vector<Wanted> wanted = WantedTensors(config);
  int64_t largest = 0;
  for (const Wanted& tensor : wanted) largest = std::max(largest, tensor.count());
  const auto memory = std::make_shared<Memory>();
  memory->pool.resize(static_cast<size_t>(largest));
  memory->ones.assign(static_cast<size_t>(config.hidden_size), ToBf16(1.0f));
  Rng rng(seed);
  FillRandom(memory->pool, rng);

  std::vector<TensorInfo> tensors;
  for (const Wanted& tensor : wanted) {
    const int64_t count = tensor.count();
    const Bf16* data = memory->ones.data();
    if (tensor.shape.size() > 1) {
      const uint64_t places = static_cast<uint64_t>((largest - count) / kWindowStep + 1);
      data = memory->pool.data() + static_cast<int64_t>(rng.NextBelow(places)) * kWindowStep;
    }
    tensors.push_back(
        {.name = tensor.name,
         .dtype = DType::kBf16,
         .shape = tensor.shape,
         .data = std::as_bytes(std::span<const Bf16>(data, static_cast<size_t>(count)))});
  }
  return {.config = config,
          .checkpoint = Checkpoint::InMemory(config.name, std::move(tensors), memory),
          .heads = RandomHeads(config, rng)};
}

}  // namespace lserve
