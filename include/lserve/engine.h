// Engine: the one owner of model, cache and schedule. Requests go in, events come out, one step at
// a time. It does no I/O but for kept prefixes on disk, and knows no protocol; apps/ and server/
// drive it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "lserve/config.h"
#include "lserve/request.h"

namespace lserve {

class Tokenizer;
struct EngineInputs;  // engine/engine_inputs.h
struct ModelConfig;

// What an engine is, for people and for --json.
struct EngineInfo {
  std::string model;   // directory name
  std::string device;  // backend description
  std::string kv_dtype;
  int64_t max_model_len = 0;
  int num_layers = 0;
  int num_kv_heads = 0;  // of all layers
  int num_streaming_kv_heads = 0;
  std::vector<int32_t> end_tokens;  // that end an answer
  std::string quantization;         // none, int8, w8a8, int4
  uint64_t weight_bytes = 0;
  uint64_t workspace_bytes = 0;  // activations, and scratch of the backend's ops
  uint64_t kv_budget_bytes = 0;
  uint64_t kv_bytes_per_token = 0;  // of a dense sequence
  // What the process has in memory at most: the above and what it had before, but for requests:
  // their text, events, logits that are asked for. With a GPU: what it has in the GPU's memory.
  uint64_t peak_bytes = 0;
  // What the user should know although nothing failed, a sentence each.
  std::vector<std::string> warnings;
};

// A tier of the prefix cache beside the pages on the device: host memory
// (EngineConfig::kv_host_bytes) or disk (kv_disk_dir).
struct KvTierStats {
  uint64_t bytes = 0;
  int64_t stretches = 0;      // of up to 2048 tokens; on disk, a file each
  int64_t loaded_tokens = 0;  // prompt tokens that came from there instead of being computed
  int64_t refused = 0;        // files that were damaged, cut off or foreign
  int64_t slow = 0;           // times that a prompt was computed since a read took over 10 s
  int64_t dropped = 0;        // stretches that were not kept: too small a tier, a slow or full disk
};

// Thread safety: every method on one thread, but for Check(), the tiers and the accessors of what
// is fixed when the engine is made: info(), config(), model_config(), tokenizer().
class Engine {
 public:
  static Result<std::unique_ptr<Engine>> Create(const EngineConfig& config);
  // The same with parts that the caller brings: a model that is in no directory, a metered backend.
  static Result<std::unique_ptr<Engine>> Create(const EngineConfig& config, EngineInputs inputs);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // What is wrong with a request: too long for the model or for the cache (needed, free, longest
  // that fits), a token out of range, bad sampling parameters. On any thread: it reads only what
  // never changes.
  Status Check(const Request& request) const;
  // Queues a request, or says what Check() would.
  Result<RequestId> Add(Request request);
  void Cancel(RequestId id);

  bool has_work() const;
  // Runs one batch: decode tokens of the running sequences and chunks of waiting prompts. Without
  // events if all of them wait for prefixes to be read, after some milliseconds. An error
  // here is the engine's end (a device is gone); a request's own error comes as its event.
  Result<std::vector<RequestEvent>> Step();

  // Forgets the prefixes that finished requests left in the cache, in all its tiers.
  void DropPrefixes();
  uint64_t kv_bytes_in_use() const;
  // Times that a request's pages were taken back before its end.
  int64_t num_preemptions() const;
  KvTierStats host_tier() const;
  KvTierStats disk_tier() const;
  // Of all requests so far, running ones included.
  const AuditStats& audit() const;
  // Time spent in choosing pages for decode: on a GPU by its own clock, up to the last layer but
  // one that chose. Costs no wait.
  double selector_seconds() const;

  const EngineInfo& info() const;
  const EngineConfig& config() const;
  const ModelConfig& model_config() const;
  // Null if the model directory has none.
  const Tokenizer* tokenizer() const;

 private:
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lserve
