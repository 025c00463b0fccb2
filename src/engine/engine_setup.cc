#include "engine/engine_setup.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "attention/policy.h"
#include "backend/registry.h"
#include "base/clock.h"
#include "base/mapped_file.h"
#include "base/strings.h"
#include "engine/disk_tier.h"
#include "engine/host_tier.h"
#include "lserve/version.h"

namespace lserve {
namespace {

Status CheckConfig(const EngineConfig& config) {
  std::vector<std::string> problems = config.attention.Problems();
  const auto check = [&](bool good, std::string problem) {
    if (!good) problems.push_back(std::move(problem));
  };
  check(config.max_num_seqs >= 1 && config.max_num_seqs <= 1024,
        StrCat("--max-num-seqs is ", config.max_num_seqs, ", expected 1 to 1024"));
  check(config.max_num_batched_tokens >= 0 && config.max_num_batched_tokens <= (1 << 20),
        StrCat("--max-num-batched-tokens is ", config.max_num_batched_tokens,
               ", expected 0 (auto) to ", 1 << 20));
  check(config.num_threads >= 0 && config.num_threads <= 4096,
        StrCat("--threads is ", config.num_threads, ", expected 0 (every core) to 4096"));
  check(config.gpu_memory_utilization > 0 && config.gpu_memory_utilization <= 1,
        StrCat("--gpu-memory-utilization is ", config.gpu_memory_utilization,
               ", expected more than 0, at most 1"));
  check(config.audit_rate >= 0 && config.audit_rate <= 1,
        StrCat("--audit-rate is ", config.audit_rate, ", expected 0 (off) to 1 (every step)"));
  check(config.priority_ageing_seconds >= 0 && config.priority_ageing_seconds <= 1e9,
        StrCat("--priority-ageing is ", config.priority_ageing_seconds,
               ", expected 0 (off) to 1e9 seconds"));
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
  if (name == "auto") return DType::kBf16;
  for (const DType dtype : kKvDTypes) {
    if (name == Name(dtype)) return dtype;
  }
  return Status(Code::kInvalidArgument,
                StrCat("--kv-cache-dtype ", name, ": expected auto, bf16, int8, fp8 or int4"));
}

Status CheckKvDType(DType dtype, const Backend& backend) {
  if (backend.has_kv_dtype(dtype)) return Status();
  return Status(
      Code::kUnsupported,
      StrCat("--kv-cache-dtype ", Name(dtype), ": is for GPUs, this is the ", backend.name(),
             " backend, expected auto, bf16, int8 or int4; use --device cuda, or int8, which takes "
             "as much memory"));
}

Result<WeightFormat> ParseWeightFormat(const std::string& name) {
  if (name == "none") return WeightFormat::kAsStored;
  if (name == "int8") return WeightFormat::kInt8;
  if (name == "int4") return WeightFormat::kInt4;
  if (name == "w8a8") return WeightFormat::kW8A8;
  return Status(Code::kInvalidArgument,
                StrCat("--quantization ", name, ": expected none, int8, w8a8 or int4"));
}

// An explicit ratio cuts the scores anew; otherwise the file's own kinds hold.
Result<HeadKinds> KindsOf(const StreamingHeadsFile& file,
                          std::optional<double> ratio,
                          const ModelConfig& model,
                          const std::string& path) {
  LS_TRY(CheckShape(file, model.num_layers, model.num_kv_heads, path));
  if (ratio.has_value()) return CutByRatio(file, *ratio);
  if (file.kind.has_value()) return *file.kind;
  return Status(Code::kInvalidArgument,
                StrCat(path,
                       ": has scores but no kinds; say which share streams with "
                       "--streaming-ratio (LServe uses 0.5)"));
}

// Which KV heads stream: the precedence of docs/architecture.md, "Head kinds". `own` takes
// the place of the file in the model's directory.
Result<HeadKinds> ResolveHeadKinds(const EngineConfig& config,
                                   const ModelConfig& model,
                                   const std::optional<StreamingHeadsFile>& own,
                                   std::vector<std::string>* warnings) {
  const HeadKinds all_retrieval(static_cast<size_t>(model.num_layers * model.num_kv_heads), 1);
  if (config.streaming_heads == "none") return all_retrieval;
  std::string path = config.streaming_heads;
  if (path.empty() && own.has_value()) {
    return KindsOf(*own, config.streaming_ratio, model, model.name);
  }
  if (path.empty()) {
    path = (std::filesystem::path(config.model_dir) / "streaming_heads.json").string();
    if (!std::filesystem::exists(path)) {
      const bool ratio = config.streaming_ratio.value_or(0.0) > 0;
      if (config.attention.mode != AttentionMode::kDense || ratio) {
        warnings->push_back(StrCat(
            "no ", path, ": every KV head reads selected pages, none streams",
            ratio ? StrCat("; --streaming-ratio ", *config.streaming_ratio,
                           " has no scores to rank the heads by, give --streaming-heads FILE")
                  : ""));
      }
      return all_retrieval;
    }
  }
  const StreamingHeadsFile file = LS_TRY(LoadStreamingHeads(path));
  return KindsOf(file, config.streaming_ratio, model, path);
}

// Bytes that the kernel says programs can still take without swapping.
size_t SystemMemory() {
  std::ifstream meminfo("/proc/meminfo");
  std::string name, unit;
  size_t kilobytes = 0;
  while (meminfo >> name >> kilobytes) {
    if (name == "MemAvailable:") return kilobytes * 1024;
    std::getline(meminfo, unit);
  }
  return size_t{4} << 30;
}

// What is left of the container's limit (cgroup v2); nothing is known without one.
std::optional<size_t> CgroupMemory() {
  size_t limit = 0, used = 0;
  std::ifstream max("/sys/fs/cgroup/memory.max"), current("/sys/fs/cgroup/memory.current");
  if (!(max >> limit) || !(current >> used)) return std::nullopt;  // "max" is no number
  return limit > used ? limit - used : 0;
}

// What is left of `ulimit -v`. Both ways reserve the whole budget as address space, and weights and
// threads take some: a quarter.
std::optional<size_t> AddressSpace() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const size_t used = pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return limit.rlim_cur > used ? (limit.rlim_cur - used) / 4 : 0;
}

// What this process has in memory.
size_t ResidentBytes() {
  size_t size = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

size_t AvailableMemory() {
  size_t bytes = SystemMemory();
  for (const std::optional<size_t>& limit : {CgroupMemory(), AddressSpace()}) {
    if (limit) bytes = std::min(bytes, *limit);
  }
  return bytes;
}

// Tokens of a step. A CPU's products are at their rate from 512 rows on; a GPU's need more to fill
// it, and the whole step is still short.
int StepTokens(const EngineConfig& given,
               const Backend& backend,
               std::vector<std::string>* warnings) {
  constexpr int kCpuTokens = 512, kGpuTokens = 8192;
  const int least = kTileTokens + given.max_num_seqs;
  if (given.max_num_batched_tokens == 0) {
    return std::max(backend.Memory() ? kGpuTokens : kCpuTokens, least);
  }
  if (given.max_num_batched_tokens < least) {
    warnings->push_back(StrCat("--max-num-batched-tokens ", given.max_num_batched_tokens,
                               " is raised to ", least, ": a step holds a tile of ", kTileTokens,
                               " and a token for each sequence"));
  }
  return std::max(given.max_num_batched_tokens, least);
}

// What the KV cache may take: what is `given`, by default (0) on a GPU everything that is not
// weights or workspace, up to the share of its memory that the user allows; the rest is for scratch
// that grows with use.
Result<size_t> KvBytes(const Backend& backend, size_t given, double utilization) {
  const std::optional<DeviceMemory> device = backend.Memory();
  if (!device) return given > 0 ? given : AvailableMemory() / 2;
  if (given > device->free_bytes) {
    return Status(Code::kOutOfMemory,
                  StrCat("--kv-cache-bytes is ", given, ", expected at most ", device->free_bytes,
                         ", what the GPU has free after the weights; lower it, or leave it out"));
  }
  if (given > 0) return given;
  const size_t kept_free =
      static_cast<size_t>((1 - utilization) * static_cast<double>(device->total_bytes));
  if (device->free_bytes <= kept_free) {
    return Status(Code::kOutOfMemory,
                  StrCat("no GPU memory is left for the KV cache: ", device->free_bytes, " of ",
                         device->total_bytes,
                         " bytes are free after the weights, expected more "
                         "than ",
                         kept_free, " at --gpu-memory-utilization ", utilization,
                         "; raise it, use a smaller model, or free the GPU of other programs"));
  }
  return device->free_bytes - kept_free;
}

// The disk tier, whose files follow from everything that is not in a prompt or a request.
Result<std::unique_ptr<DiskTier>> OpenDiskTier(const EngineParts& parts,
                                               const HeadKinds& kinds,
                                               int64_t max_model_len) {
  const EngineConfig& config = parts.config;
  const std::string path = (std::filesystem::path(config.model_dir) / "config.json").string();
  const std::string model = StrCat(parts.checkpoint->identity(), "\n", LS_TRY(ReadTextFile(path)),
                                   "\n", std::string(kinds.begin(), kinds.end()), "\n",
                                   max_model_len, "\n", config.quantization);
  const KvLayout& layout = parts.store->layout();
  return DiskTier::Open(
      {.dir = config.kv_disk_dir,
       .max_bytes = config.kv_disk_bytes,
       .origin = StrCat("lserve ", kVersion, ", ", parts.backend->kv_signature(), ", ",
                        Name(layout.dtype), ", model ", PrefixName(model, "", {})),
       .page_bytes = {layout.ways[0].page_bytes(), layout.ways[1].page_bytes()}});
}

Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model_dir) {
  const std::filesystem::path path = std::filesystem::path(model_dir) / "tokenizer.json";
  if (!std::filesystem::exists(path)) return std::unique_ptr<Tokenizer>();
  return Tokenizer::Load(model_dir);
}

}  // namespace

Result<EngineParts> BuildEngine(const EngineConfig& given, EngineInputs inputs) {
  LS_TRY(CheckConfig(given));
  const WeightFormat weight_format = LS_TRY(ParseWeightFormat(given.quantization));
  std::vector<std::string> warnings;
  size_t program_bytes = ResidentBytes();
  EngineConfig config = given;
  const DType kv_dtype = LS_TRY(KvDType(config.kv_cache_dtype));
  EngineParts parts;
  parts.seconds = inputs.seconds ? std::move(inputs.seconds)
                                 : [start = Stopwatch()] { return start.seconds(); };
  const bool in_memory = inputs.model.has_value();
  parts.model_config = in_memory ? inputs.model->config : LS_TRY(LoadModelConfig(config.model_dir));
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
  if (model.sliding_window && *model.sliding_window < max_model_len) {
    return Status(
        Code::kUnsupported,
        StrCat("--max-model-len is ", max_model_len, ", expected at most ", *model.sliding_window,
               ", config.json's \"sliding_window\", which is not implemented; lower it"));
  }
  if (!in_memory) parts.tokenizer = LS_TRY(LoadTokenizer(config.model_dir));
  program_bytes = std::max(program_bytes, ResidentBytes());
  parts.backend = LS_TRY(MakeBackend({.device = config.device,
                                      .num_threads = config.num_threads,
                                      .cpu_isa = config.cpu_isa,
                                      .kernels = config.kernels,
                                      .cuda_graphs = config.cuda_graphs == "on",
                                      .batch_invariant = config.batch_invariant}));
  LS_TRY(CheckKvDType(kv_dtype, *parts.backend));
  config.max_num_batched_tokens = StepTokens(given, *parts.backend, &warnings);
  parts.config = config;
  const std::string note = parts.backend->format_note(weight_format);
  if (!note.empty()) warnings.push_back(note);
  if (config.batch_invariant && !parts.backend->Memory()) {
    warnings.push_back("--batch-invariant changes nothing on " + parts.backend->name() +
                       ": results never depend on the batch there");
  }
  if (inputs.wrap_backend) parts.backend = inputs.wrap_backend(std::move(parts.backend));
  if (!inputs.heads && in_memory) inputs.heads = inputs.model->heads;
  const HeadKinds kinds = LS_TRY(ResolveHeadKinds(config, model, inputs.heads, &warnings));

  const int head_dim = static_cast<int>(model.head_dim);
  const KvLayout layout =
      MakeKvLayout(static_cast<int>(model.num_layers), static_cast<int>(model.num_kv_heads),
                   head_dim, kv_dtype, kinds, parts.backend->kv_head_bytes(kv_dtype, head_dim));
  parts.checkpoint =
      in_memory ? std::move(inputs.model->checkpoint) : LS_TRY(Checkpoint::Open(config.model_dir));
  parts.model = LS_TRY(
      LlamaModel::Load(*parts.checkpoint, model, max_model_len, config.max_num_batched_tokens,
                       {.format = weight_format,
                        .cache_dir = in_memory ? std::string() : config.quantization_cache_dir},
                       parts.backend.get()));

  const size_t budget =
      LS_TRY(KvBytes(*parts.backend, config.kv_cache_bytes, config.gpu_memory_utilization));
  const PageId max_pages[kNumWays] = {PagePool::MaxPages(layout, Way::kRetrieval, budget),
                                      PagePool::MaxPages(layout, Way::kStreaming, budget)};
  parts.store = LS_TRY(parts.backend->MakeKvStore(layout, max_pages));
  parts.pool = std::make_unique<PagePool>(layout, parts.store.get(), budget);
  if (config.kv_host_bytes > 0) parts.tiers.host = std::make_unique<HostTier>(config.kv_host_bytes);
  if (!config.kv_disk_dir.empty()) {
    if (in_memory) {
      return Status(Code::kUnsupported,
                    "--kv-disk-dir is given for a model that is in no directory, expected one that "
                    "a restart finds again; leave it out");
    }
    parts.tiers.disk = LS_TRY(OpenDiskTier(parts, kinds, max_model_len));
    if (inputs.wrap_disk_tier)
      parts.tiers.disk = inputs.wrap_disk_tier(std::move(parts.tiers.disk));
  }

  EngineInfo& info = parts.info;
  info.model = model.name;
  info.device = parts.backend->description();
  info.kv_dtype = std::string(Name(kv_dtype));
  info.max_model_len = max_model_len;
  info.num_layers = static_cast<int>(model.num_layers);
  info.num_kv_heads = static_cast<int>(kinds.size());
  info.num_streaming_kv_heads =
      info.num_kv_heads - static_cast<int>(std::count(kinds.begin(), kinds.end(), 1));
  info.end_tokens = model.eos_token_ids;
  info.quantization = config.quantization;
  const PageId most_pages = std::max(max_pages[0], max_pages[1]);
  info.workspace_bytes =
      parts.model->workspace_bytes() +
      parts.backend->AttentionScratchBytes(
          layout, {.num_q_heads = static_cast<int>(model.num_q_heads),
                   .rows = config.max_num_batched_tokens,
                   .sequences = config.max_num_seqs,
                   .pages = std::min<int64_t>(NumPages(max_model_len), most_pages)});
  info.weight_bytes = parts.model->weight_bytes();
  info.kv_budget_bytes = budget;
  info.kv_bytes_per_token =
      (layout.ways[0].page_bytes() + layout.ways[1].page_bytes()) / kPageTokens;
  info.peak_bytes =
      info.weight_bytes + std::max(budget + info.workspace_bytes, parts.model->loading_bytes());
  if (!parts.backend->Memory()) info.peak_bytes += program_bytes;
  info.warnings = std::move(warnings);
  return parts;
}

}  // namespace lserve
