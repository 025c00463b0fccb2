#include "engine/engine_setup.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "attention/policy.h"
#include "backend/registry.h"
#include "base/log.h"
#include "base/strings.h"

namespace lserve {
namespace {

Status CheckConfig(const EngineConfig& config) {
  std::vector<std::string> problems = config.attention.Problems();
  const auto check = [&](bool good, std::string problem) {
    if (!good) problems.push_back(std::move(problem));
  };
  check(config.max_num_seqs >= 1 && config.max_num_seqs <= 1024,
        StrCat("--max-num-seqs is ", config.max_num_seqs, ", expected 1 to 1024"));
  const int low = kTileTokens + config.max_num_seqs;
  check(config.max_num_batched_tokens >= low && config.max_num_batched_tokens <= (1 << 20),
        StrCat("--max-num-batched-tokens is ", config.max_num_batched_tokens, ", expected ", low,
               " (a tile and a token for each sequence) to ", 1 << 20));
  check(config.num_threads >= 0 && config.num_threads <= 4096,
        StrCat("--threads is ", config.num_threads, ", expected 0 (every core) to 4096"));
  check(config.max_model_len >= 0, StrCat("--max-model-len is ", config.max_model_len,
                                          ", expected 0 (the checkpoint's) or more"));
  if (problems.empty()) return Status();
  std::string all = problems.front();
  for (size_t i = 1; i < problems.size(); ++i) all += StrCat("; ", problems[i]);
  return Status(Code::kInvalidArgument, all);
}

// Positions that the checkpoint can be asked for. Beyond what it was trained on, a RoPE that scales
// states how far it carries; dynamic scaling fits itself to any length.
int64_t SupportedPositions(const ModelConfig& model) {
  switch (model.rope.type) {
    case RopeType::kDynamic:
      return int64_t{1} << 30;
    case RopeType::kLinear:
    case RopeType::kYarn: {
      const double scaled =
          static_cast<double>(model.rope.original_max_position_embeddings) * model.rope.factor;
      return std::max(model.max_position_embeddings, static_cast<int64_t>(scaled));
    }
    case RopeType::kDefault:
    case RopeType::kLlama3:
      return model.max_position_embeddings;
  }
  return model.max_position_embeddings;
}

Result<DType> KvDType(const std::string& name) {
  if (name == "auto" || name == "bf16") return DType::kBf16;
  if (name == "int8") return DType::kInt8;
  if (name == "int4") return DType::kInt4;
  if (name.starts_with("fp8")) {
    return Status(Code::kUnsupported, StrCat("--kv-cache-dtype ", name,
                                             ": is for GPUs, expected auto, bf16, int8 or int4"));
  }
  return Status(Code::kInvalidArgument,
                StrCat("--kv-cache-dtype ", name, ": expected auto, bf16, int8 or int4"));
}

Result<WeightFormat> ParseWeightFormat(const std::string& name) {
  if (name == "none") return WeightFormat::kAsStored;
  if (name == "int8") return WeightFormat::kInt8;
  if (name == "int4") return WeightFormat::kInt4;
  return Status(Code::kInvalidArgument,
                StrCat("--quantization ", name, ": expected none, int8 or int4"));
}

// Which KV heads stream: the precedence of docs/architecture.md, "Head kinds".
Result<HeadKinds> ResolveHeadKinds(const EngineConfig& config,
                                   const ModelConfig& model,
                                   std::vector<std::string>* warnings) {
  const HeadKinds all_retrieval(static_cast<size_t>(model.num_layers * model.num_kv_heads), 1);
  if (config.streaming_heads == "none") return all_retrieval;
  std::string path = config.streaming_heads;
  if (path.empty()) {
    path = (std::filesystem::path(config.model_dir) / "streaming_heads.json").string();
    if (!std::filesystem::exists(path)) {
      if (config.streaming_ratio.has_value() && *config.streaming_ratio > 0) {
        return Status(Code::kInvalidArgument,
                      StrCat("--streaming-ratio ", *config.streaming_ratio, ": there is no ", path,
                             " to rank the heads by; give --streaming-heads FILE"));
      }
      if (config.attention.mode != AttentionMode::kDense) {
        warnings->push_back(
            StrCat("no ", path, ": every KV head reads selected pages, none streams"));
      }
      return all_retrieval;
    }
  }
  const StreamingHeadsFile file = LS_TRY(LoadStreamingHeads(path));
  LS_TRY(CheckShape(file, model.num_layers, model.num_kv_heads, path));
  if (config.streaming_ratio.has_value()) return CutByRatio(file, *config.streaming_ratio);
  if (file.kind.has_value()) return *file.kind;
  return Status(Code::kInvalidArgument,
                StrCat(path,
                       ": has scores but no kinds; say which share streams with "
                       "--streaming-ratio (LServe uses 0.5)"));
}

// Bytes that the kernel says programs can still take without swapping.
size_t AvailableMemory() {
  std::ifstream meminfo("/proc/meminfo");
  std::string name, unit;
  size_t kilobytes = 0;
  while (meminfo >> name >> kilobytes) {
    if (name == "MemAvailable:") return kilobytes * 1024;
    std::getline(meminfo, unit);
  }
  return size_t{4} << 30;
}

Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model_dir) {
  const std::filesystem::path path = std::filesystem::path(model_dir) / "tokenizer.json";
  if (!std::filesystem::exists(path)) return std::unique_ptr<Tokenizer>();
  return Tokenizer::Load(model_dir);
}

}  // namespace

Result<EngineParts> BuildEngine(const EngineConfig& config) {
  LS_TRY(CheckConfig(config));
  const DType kv_dtype = LS_TRY(KvDType(config.kv_cache_dtype));
  const WeightFormat weight_format = LS_TRY(ParseWeightFormat(config.quantization));
  // Told once the engine stands: an error message is to be the only line.
  std::vector<std::string> warnings;
  EngineParts parts;
  parts.model_config = LS_TRY(LoadModelConfig(config.model_dir));
  const ModelConfig& model = parts.model_config;
  const int64_t max_model_len =
      config.max_model_len > 0 ? config.max_model_len : model.max_position_embeddings;
  if (max_model_len > SupportedPositions(model)) {
    return Status(Code::kInvalidArgument,
                  StrCat("--max-model-len is ", max_model_len, ", expected at most ",
                         SupportedPositions(model),
                         ", the positions that the checkpoint was made for; lower it, or scale "
                         "RoPE in config.json"));
  }
  parts.tokenizer = LS_TRY(LoadTokenizer(config.model_dir));
  parts.backend = LS_TRY(MakeBackend(
      {.device = config.device, .num_threads = config.num_threads, .cpu_isa = config.cpu_isa}));
  const HeadKinds kinds = LS_TRY(ResolveHeadKinds(config, model, &warnings));

  const int head_dim = static_cast<int>(model.head_dim);
  const KvLayout layout =
      MakeKvLayout(static_cast<int>(model.num_layers), static_cast<int>(model.num_kv_heads),
                   head_dim, kv_dtype, kinds, parts.backend->kv_head_bytes(kv_dtype, head_dim));
  parts.checkpoint = LS_TRY(Checkpoint::Open(config.model_dir));
  parts.model = LS_TRY(LlamaModel::Load(
      *parts.checkpoint, model, max_model_len, config.max_num_batched_tokens,
      {.format = weight_format, .cache_dir = config.quantization_cache_dir}, parts.backend.get()));

  const size_t budget = config.kv_cache_bytes > 0 ? config.kv_cache_bytes : AvailableMemory() / 2;
  const PageId max_pages[kNumWays] = {PagePool::MaxPages(layout, Way::kRetrieval, budget),
                                      PagePool::MaxPages(layout, Way::kStreaming, budget)};
  parts.store = LS_TRY(parts.backend->MakeKvStore(layout, max_pages));
  parts.pool = std::make_unique<PagePool>(layout, parts.store.get(), budget);

  EngineInfo& info = parts.info;
  info.model = model.name;
  info.device = parts.backend->description();
  info.kv_dtype = std::string(Name(kv_dtype));
  info.max_model_len = max_model_len;
  info.num_layers = static_cast<int>(model.num_layers);
  info.num_kv_heads = static_cast<int>(kinds.size());
  info.num_streaming_kv_heads =
      info.num_kv_heads - static_cast<int>(std::count(kinds.begin(), kinds.end(), 1));
  info.quantization = config.quantization;
  info.workspace_bytes = parts.model->workspace_bytes();
  info.weight_bytes = parts.model->weight_bytes();
  info.kv_budget_bytes = budget;
  info.kv_bytes_per_token =
      (layout.ways[0].page_bytes() + layout.ways[1].page_bytes()) / kPageTokens;
  for (const std::string& warning : warnings) LogWarning(warning);
  return parts;
}

}  // namespace lserve
