// EngineConfig: everything an engine is made from. Parsed and validated once, in apps/, then passed
// down as const.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "attention/attention_settings.h"

namespace lserve {

struct EngineConfig {
  // A Hugging Face checkpoint: config.json, *.safetensors, and for text tokenizer.json.
  std::string model_dir;

  // auto, cpu, cuda[:N], reference (scalar, for checks). auto takes the GPU if this build can use
  // it.
  std::string device = "auto";
  // 0: every core this process may run on.
  int num_threads = 0;
  // auto, generic, avx2, avx512, avx512bf16: forces a path; for tests and comparisons.
  std::string cpu_isa = "auto";
  // Attention kernels of a GPU: auto (the newest it has), sm80, sm90; for comparisons.
  std::string kernels = "auto";
  // on, off: a GPU replays decode steps as CUDA graphs; off for comparisons, results are the same.
  std::string cuda_graphs = "on";
  // On a GPU: the same logits whatever shares a request's batch, and however its prompt is cut into
  // chunks. Elsewhere that is always so. Costs time in prompts (ADR 0034).
  bool batch_invariant = false;

  // Defaults of requests that bring no settings of their own.
  AttentionSettings attention;
  // File with head scores (JSON or DuoAttention TSV), "none", or "" for
  // MODEL_DIR/streaming_heads.json if there is one (else no head streams, with a warning).
  std::string streaming_heads;
  // The share of KV heads that stream, cut by the file's scores; unset: the file's own kinds.
  std::optional<double> streaming_ratio;

  // none, int8, w8a8, int4: how the weights of a bf16, f16 or f32 checkpoint are held. w8a8: int8,
  // and the inputs of all layers are quantised as well.
  std::string quantization = "none";
  // Where quantised weights are kept for the next start; "": nowhere.
  std::string quantization_cache_dir;

  // auto (bf16), bf16, int8, int4; on GPUs also fp8 (E4M3).
  std::string kv_cache_dtype = "auto";
  // 0: half of the memory that is available when the engine starts; on a GPU, all of
  // gpu_memory_utilization that the weights leave.
  size_t kv_cache_bytes = 0;
  // Host memory for kept prefixes of 1024 tokens and more, beside the KV cache: for a GPU. 0: none.
  uint64_t kv_host_bytes = 0;
  // Kept prefixes of 1024 tokens and more are also written to files here, and found again after a
  // restart; "": nowhere. Up to `kv_disk_bytes`, the least recently used go first.
  std::string kv_disk_dir;
  uint64_t kv_disk_bytes = uint64_t{16} << 30;
  // Share of a GPU's memory that this process and others may fill together, in (0, 1].
  double gpu_memory_utilization = 0.9;

  // Longest sequence, prompt and answer together. 0: what the checkpoint was made for.
  int64_t max_model_len = 0;
  // Tokens of one step: the chunk of a long prompt. Larger chunks use the matrix units better; a
  // running stream waits for the whole step. 0: 512 on a CPU, 8192 on a GPU. Raised to a tile of
  // 128 and a token per sequence.
  int max_num_batched_tokens = 0;
  // 0, or how long a step should take while an answer is being written: prompts get chunks that
  // small, but a tile of 128 tokens at least.
  double max_decode_gap_ms = 0;
  // The share of sparse decode steps, and of requests, whose loss is measured (AuditStats): 0 to 1.
  // An audited step is computed twice, an audited request keeps every page of its streaming heads
  // if there is room.
  double audit_rate = 0;
  // A request that has waited this long comes before newer ones whose priority is better by one,
  // after twice as long before those better by two, and so on: nobody waits without end. 0: never.
  double priority_ageing_seconds = 60;
  // Sequences of one step.
  int max_num_seqs = 8;
};

}  // namespace lserve
