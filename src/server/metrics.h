// Metrics: what the server counts, and the Prometheus text of it. vLLM's names where the meaning is
// the same, so that existing dashboards work; "lserve:" for what only sparse attention has.
// Thread-safe. Used by EngineThread and the service.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "lserve/engine.h"
#include "lserve/request.h"

namespace lserve {

// What EngineThread looks like from outside, at one moment.
struct EngineSnapshot {
  int64_t requests_running = 0;
  int64_t requests_waiting = 0;
  int64_t tokens_waiting = 0;  // prompt tokens of the waiting requests
  uint64_t kv_bytes_in_use = 0;
  uint64_t kv_budget_bytes = 0;
  std::string kv_dtype = {};
  KvTierStats host = {}, disk = {};  // of the prefix cache
  int64_t preemptions = 0;
  int64_t recomputed_tokens = 0;
  int64_t steps = 0;
  bool busy = false;                   // has work
  double seconds_since_last_step = 0;  // of a busy engine, also since it became busy
  double streaming_head_share = 0;     // of all KV heads
  // Time in the selection of pages; unset: the device does not tell.
  double selector_seconds = 0;
  std::string failure = {};  // why it ended; empty while it runs
};

enum class RequestPhase : uint8_t { kQueue, kPrefill, kDecode };
std::string_view Name(RequestPhase phase);

class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds);
  void Observe(double value);
  void Write(std::string_view name,
             std::string_view labels,
             std::string_view help,
             std::string* out) const;

 private:
  std::vector<double> bounds_;   // ascending
  std::vector<int64_t> counts_;  // [bounds + 1]
  double sum_ = 0;
};

// Times of one finished request, in seconds.
struct RequestTimes {
  double queue = 0;
  double prefill = 0;
  double decode = 0;
};

class Metrics {
 public:
  Metrics(const std::string& model_name, int64_t max_model_len);

  // One step of the engine that computed this many tokens.
  void ObserveStep(int64_t tokens);
  // What an event adds to the counters: `now` minus `before`.
  void AddWork(const RequestStats& before, const RequestStats& now, int64_t prefill_tokens);
  void ObserveFirstToken(double seconds, const RequestStats& stats);
  void ObserveTokenGap(double seconds);
  void ObserveFinished(std::string_view reason,
                       const RequestTimes& times,
                       const RequestStats& stats,
                       int64_t max_tokens);
  void ObserveCancelled(RequestPhase phase);
  void ObserveRefused(std::string_view why);
  // A request that its client says it sent before: what waits too long comes again, and costs
  // twice.
  void ObserveRetry();
  void ObserveHttp(std::string_view handler, std::string_view method, int status);

  // `connections`: open ones now.
  std::string Render(const EngineSnapshot& engine, int64_t connections) const;

 private:
  const std::string labels_;  // {engine="0",model_name="..."} without the braces
  mutable std::mutex mutex_;
  int64_t prompt_tokens_ = 0;
  int64_t generation_tokens_ = 0;
  int64_t prefix_queries_ = 0;
  int64_t prefix_hits_ = 0;
  int64_t prefix_common_ = 0;
  std::map<std::string, int64_t, std::less<>> prefix_ends_;
  int64_t prefill_tokens_computed_ = 0;
  double pages_visited_ = 0;
  double pages_present_ = 0;
  int64_t tiles_visited_ = 0;
  int64_t tiles_present_ = 0;
  int64_t dense_steps_ = 0;
  int64_t sparse_steps_ = 0;
  int64_t selections_ = 0;
  int64_t logit_copies_ = 0;
  AuditStats audit_;
  std::array<int64_t, 3> cancelled_ = {};
  std::map<std::string, int64_t, std::less<>> finished_;
  int64_t retried_ = 0;
  std::map<std::string, int64_t, std::less<>> refused_;
  std::map<std::tuple<std::string, std::string, int>, int64_t> http_;
  Histogram first_token_;
  Histogram token_gap_;
  Histogram queue_time_;
  Histogram prefill_time_;
  Histogram decode_time_;
  Histogram inference_time_;
  Histogram e2e_time_;
  Histogram prompt_size_;
  Histogram answer_size_;
  Histogram max_tokens_;
  Histogram step_tokens_;
};

}  // namespace lserve
