#include "bench/shapes.h"

#include "base/strings.h"

namespace lserve {
namespace {

struct Shape {
  const char* name;
  int64_t layers;
  int64_t hidden;
  int64_t q_heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t intermediate;
  int64_t vocab;
  bool tied;
  double rope_theta;
};

// 100m and 1b are the shapes that llama.cpp was measured with; the others are the published ones.
constexpr Shape kShapes[] = {
    {"100m", 12, 768, 12, 4, 64, 2048, 32000, true, 10000.0},
    {"1b", 16, 2048, 32, 8, 64, 8192, 32000, true, 10000.0},
    {"llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256, true, 500000.0},
    {"llama-3-70b-1-layer", 1, 8192, 64, 8, 128, 28672, 128256, false, 500000.0},
    {"llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32000, false, 10000.0},
    {"llama-3-8b", 32, 4096, 32, 8, 128, 14336, 128256, false, 500000.0},
};

}  // namespace

std::vector<std::string> ShapeNames() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

Result<ModelConfig> FindShape(const std::string& name) {
  for (const Shape& shape : kShapes) {
    if (name != shape.name) continue;
    ModelConfig config;
    config.name = shape.name;
    config.hidden_size = shape.hidden;
    config.intermediate_size = shape.intermediate;
    config.num_layers = shape.layers;
    config.num_q_heads = shape.q_heads;
    config.num_kv_heads = shape.kv_heads;
    config.head_dim = shape.head_dim;
    config.vocab_size = shape.vocab;
    config.max_position_embeddings = int64_t{1} << 20;
    config.rms_norm_eps = 1e-5;
    config.tie_word_embeddings = shape.tied;
    config.rope.theta = shape.rope_theta;
    config.rope.original_max_position_embeddings = config.max_position_embeddings;
    config.torch_dtype = "bfloat16";
    return config;
  }
  std::string known;
  for (const Shape& shape : kShapes) known += StrCat(known.empty() ? "" : ", ", shape.name);
  return Status(Code::kInvalidArgument,
                StrCat("--shape: got \"", name, "\", expected one of ", known));
}

}  // namespace lserve
