#include "apps/engine_flags.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "base/strings.h"

namespace lserve {
namespace {

bool IsDevice(std::string_view text) {
  if (text == "auto" || text == "cpu" || text == "reference" || text == "cuda") return true;
  if (!text.starts_with("cuda:") || text.size() == 5 || text.size() > 8) return false;
  return text.find_first_not_of("0123456789", 5) == std::string_view::npos;
}

std::string DefaultCacheDir() {
  for (const auto& [variable, below] :
       {std::pair{"XDG_CACHE_HOME", "/lserve"}, std::pair{"HOME", "/.cache/lserve"}}) {
    const char* value = std::getenv(variable);
    // A relative path is to be ignored, says the XDG specification.
    if (value != nullptr && value[0] == '/') return std::string(value) + below;
  }
  return "";
}

void AddAttentionFlags(FlagSet& flags, EngineFlags& out) {
  AttentionSettings& attention = out.config.attention;
  flags.Group("Attention");
  flags.Choice("--attention", out.attention_mode, {"auto", "dense", "sparse"},
               "dense: every query sees every token. sparse: streaming heads and page selection "
               "from the first token on. auto: as sparse, but dense for positions below "
               "--sparse-min-context");
  flags.Integer("--sparse-token-budget,--dynamic-attn-budget", attention.token_budget, 1, "TOKENS",
                "tokens that a retrieval head reads per decode step, in whole pages of 64; larger "
                "is safer and slower");
  flags.Integer("--sparse-sink-tokens", attention.sink_tokens, 0, "TOKENS",
                "first tokens that a streaming head always sees");
  flags.Integer("--sparse-recent-tokens", attention.recent_tokens, 1, "TOKENS",
                "newest tokens that a streaming head sees");
  flags.Integer("--sparse-prefill-recent-tokens", attention.prefill_recent_tokens, 0, "TOKENS",
                "the same while the prompt is read; 0: as --sparse-recent-tokens");
  flags.Size("--sparse-min-context", attention.min_context, 0, {}, "TOKENS",
             "with --attention auto, positions below this are dense");
  flags.Number("--sparse-prefill-threshold", out.prefill_threshold, 0.0, 1.0,
               "share of the estimated attention that a retrieval head's tiles of keys must carry "
               "while the prompt is read, 0 or 1: it reads every tile. Default: 0.9");
  flags.Integer("--sparse-prefill-max-tokens", attention.prefill_max_tokens, 0, "TOKENS",
                "tokens of a prompt that 128 neighbouring tokens read at most, however flat the "
                "attention: past that, what is read grows with the length of a prompt instead of "
                "with its square. 0: as many as the threshold asks for");
  flags.Size("--sparse-prefill-min-context", attention.prefill_min_position, 0, {}, "TOKENS",
             "positions below this read every tile whatever the threshold");
  flags.Integer("--selector-interval,--selector-update-interval", attention.selector_interval, 0,
                "STEPS",
                "decode steps that share one choice of pages; 1 is the most exact. 0: budget / "
                "1024, 1 to 4, so 4 at the default budget");
  flags.Text("--streaming-heads", out.config.streaming_heads, "FILE|none",
             "which KV heads stream: JSON or DuoAttention TSV. Default: "
             "MODEL_DIR/streaming_heads.json if there is one");
  flags.Number("--streaming-ratio", out.config.streaming_ratio, 0.0, 1.0,
               "share of the KV heads that stream, cut by the scores of the file. Default: the "
               "file's own choice");
}

void AddMemoryFlags(FlagSet& flags, EngineFlags& out) {
  EngineConfig& config = out.config;
  flags.Group("Memory and machine");
  flags.Size("--max-model-len,--ctx-size,-c,--context-length", config.max_model_len, 1,
             {"auto", "0", "-1"}, "TOKENS",
             "longest prompt and answer together, as 131072 or 128k (k = 1024); auto: what the "
             "model was made for");
  flags.Choice("--quantization,-q", config.quantization, {"none", "int8", "w8a8", "int4"},
               "how weights are held: int8 halves the memory and the time of a decode step at "
               "nearly the same answers, w8a8 quantises activations too, for faster reading of "
               "prompts at four times the error, int4 quarters the memory and may cost answers; "
               "none: as stored");
  flags.Text("--quantization-cache", out.quantization_cache, "DIR|none",
             "where quantised weights are kept for the next start. Default: "
             "$XDG_CACHE_HOME/lserve, else ~/.cache/lserve");
  flags.Choice("--kv-cache-dtype,--cache-type-k", config.kv_cache_dtype,
               {"auto", "bf16", "int8", "int4", "fp8"},
               "element type of the KV cache; auto: bf16. int8 halves the memory, int4 quarters "
               "it; fp8 (E4M3, on GPUs) takes what int8 does and rounds more coarsely");
  flags.Choice("--cache-type-v", out.value_dtype, {"", "auto", "bf16", "int8", "int4", "fp8"},
               "must equal --kv-cache-dtype: keys and values share one type");
  flags.Size("--kv-cache-bytes,--kv-cache-memory-bytes", out.kv_cache_bytes, 1, {"auto", "0"},
             "BYTES",
             "memory of the KV cache, as 2G; auto: half of what is available, on a GPU what "
             "--gpu-memory-utilization allows");
  flags.Size("--kv-host-bytes", out.kv_host_bytes, 0, {}, "BYTES",
             "host memory for kept prefixes of 1024 tokens and more, beside the cache: for a GPU, "
             "as 64G; 0: none");
  flags.Text("--kv-disk-dir", config.kv_disk_dir, "DIR",
             "write kept prefixes of 1024 tokens and more to files here (with checksums, for this "
             "user only), so that a restart finds them again. Default: nowhere");
  flags.Size("--kv-disk-bytes", out.kv_disk_bytes, 0, {}, "BYTES",
             "room for them, as 16G; what was used longest ago goes first");
  flags.Integer("--max-num-batched-tokens,--chunked-prefill-size,--ubatch-size",
                config.max_num_batched_tokens, 0, "TOKENS",
                "tokens of one engine step: the chunk of a long prompt; 0: 512 on a CPU, 8192 on a "
                "GPU");
  flags.Integer("--max-num-seqs,--max-running-requests,--parallel", config.max_num_seqs, 1, "COUNT",
                "questions that are answered at the same time");
  flags.Checked("--device", config.device, IsDevice, "auto|cpu|cuda[:N]|reference",
                "where to compute; auto: a GPU if this program was built for one and finds it; "
                "reference: scalar, double precision, very slow, for checks");
  flags.Integer("--threads,-t", config.num_threads, 0, "COUNT",
                "CPU threads; 0: every core this process may use");
  flags.Choice("--cpu-isa", config.cpu_isa, {"auto", "generic", "avx2", "avx512", "avx512bf16"},
               "instruction set of the CPU kernels; for comparisons");
  flags.Choice("--cuda-kernels", config.kernels, {"auto", "sm80", "sm90"},
               "attention kernels of a GPU; auto: the newest it has. For comparisons");
  flags.Choice("--cuda-graphs", config.cuda_graphs, {"on", "off"},
               "replay decode steps of a GPU as CUDA graphs. For comparisons");
  flags.Switch("--batch-invariant", config.batch_invariant,
               "on a GPU: answers do not depend, in any bit, on what shares their batch nor on the "
               "chunks of their prompt; prompts take longer (README, Limits). On a CPU that is "
               "always so");
  flags.Number("--gpu-memory-utilization,--mem-fraction-static", config.gpu_memory_utilization, 0,
               1, "SHARE",
               "share of a GPU's memory that may be filled; the KV cache takes what weights and "
               "workspace leave of it");
  flags.NoEffect("--n-gpu-layers,--gpu-layers", "COUNT",
                 "layers are not split over devices; --device chooses one");
}

}  // namespace

void AddEngineFlags(FlagSet& flags, EngineFlags& out) {
  AddAttentionFlags(flags, out);
  AddMemoryFlags(flags, out);
}

Status FinishEngineFlags(EngineFlags& out) {
  out.config.attention.mode = *ParseAttentionMode(out.attention_mode);
  if (out.prefill_threshold) out.config.attention.prefill_threshold = *out.prefill_threshold;
  out.config.kv_cache_bytes = static_cast<size_t>(out.kv_cache_bytes);
  out.config.kv_host_bytes = static_cast<uint64_t>(out.kv_host_bytes);
  out.config.kv_disk_bytes = static_cast<uint64_t>(out.kv_disk_bytes);
  out.config.quantization_cache_dir = out.quantization_cache == "none" ? ""
                                      : out.quantization_cache.empty() ? DefaultCacheDir()
                                                                       : out.quantization_cache;
  std::vector<std::string> problems = out.config.attention.Problems();
  if (!out.value_dtype.empty() && out.value_dtype != out.config.kv_cache_dtype) {
    problems.push_back(StrCat("--cache-type-v: got ", out.value_dtype, ", expected ",
                              out.config.kv_cache_dtype,
                              " as --kv-cache-dtype; keys and values share one type"));
  }
  if (out.config.streaming_ratio && out.config.streaming_heads == "none") {
    // `none` beats the ratio (design 4.2).
    out.config.streaming_ratio.reset();
  }
  if (problems.empty()) return Status();
  std::string message;
  for (const std::string& problem : problems) {
    message += StrCat(message.empty() ? "" : "; ", problem);
  }
  return Status(Code::kInvalidArgument, message);
}

void AddSamplingFlags(FlagSet& flags, SamplingFlags& out) {
  flags.Group("Sampling (defaults: the model's generation_config.json, else greedy)");
  constexpr double kMost = 100.0;  // SamplingParams::Problems
  flags.Number("--temperature,--temp", out.temperature, 0.0, kMost,
               "0: always the most probable token");
  flags.Number("--top-p", out.top_p, 0.0, 1.0, "smallest set of tokens with this probability");
  flags.Integer("--top-k", out.top_k, 0, "COUNT", "the most probable tokens; 0: off");
  flags.Number("--min-p", out.min_p, 0.0, 1.0, "least probability, relative to the largest");
  flags.Number("--repetition-penalty,--repeat-penalty", out.repetition_penalty, 0.0, kMost,
               "on prompt and answer; 1: off");
  flags.Number("--presence-penalty", out.presence_penalty, -2.0, 2.0,
               "on tokens of the answer, once; 0: off");
  flags.Number("--frequency-penalty", out.frequency_penalty, -2.0, 2.0,
               "on tokens of the answer, per occurrence; 0: off");
  flags.Size("--seed,-s", out.seed, 0, {}, "NUMBER", "of the random numbers");
}

SamplingParams MakeSampling(const SamplingFlags& flags, const GenerationDefaults& defaults) {
  SamplingParams params;
  const bool do_sample = defaults.do_sample.value_or(false);
  params.temperature =
      flags.temperature.value_or(do_sample ? defaults.temperature.value_or(1.0) : 0.0);
  params.top_p = flags.top_p.value_or(defaults.top_p.value_or(params.top_p));
  params.min_p = flags.min_p.value_or(defaults.min_p.value_or(params.min_p));
  params.top_k = static_cast<int>(
      std::min<int64_t>(flags.top_k.value_or(defaults.top_k.value_or(params.top_k)), INT32_MAX));
  params.repetition_penalty = flags.repetition_penalty.value_or(
      defaults.repetition_penalty.value_or(params.repetition_penalty));
  params.presence_penalty = flags.presence_penalty.value_or(params.presence_penalty);
  params.frequency_penalty = flags.frequency_penalty.value_or(params.frequency_penalty);
  params.seed = static_cast<uint64_t>(flags.seed);
  return params;
}

std::string ExpandShortName(const std::string& argument) {
  constexpr std::pair<std::string_view, std::string_view> kNames[] = {
      {"-ctk", "--kv-cache-dtype"}, {"-ctv", "--cache-type-v"}, {"-ub", "--ubatch-size"},
      {"-np", "--parallel"},        {"-ngl", "--n-gpu-layers"}, {"-dev", "--device"},
      {"-sys", "--system"},
  };
  for (const auto& [name, expansion] : kNames) {
    if (argument == name) return std::string(expansion);
  }
  return argument;
}

}  // namespace lserve
