#include "server/metrics.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"

namespace lserve {
namespace {

// vLLM's bounds, which reach the 42 minutes that a prompt of 10^6 tokens may take.
std::vector<double> FirstTokenBounds() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
          1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
}
std::vector<double> TokenGapBounds() {
  return {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
          0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
}
std::vector<double> RequestBounds() {
  return {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
          30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
}
// 1, 2, 5, 10, ... up to `most`.
std::vector<double> TokenBounds(int64_t most) {
  std::vector<double> bounds;
  for (double power = 1;; power *= 10) {
    for (const double digit : {1.0, 2.0, 5.0}) {
      if (digit * power > static_cast<double>(most)) return bounds;
      bounds.push_back(digit * power);
    }
  }
}

// A label value: a quote or a line break in it would end the line.
std::string Escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out.push_back('\\');
    out.push_back(c == '\n' ? ' ' : c);
  }
  return out;
}

// What the later sums of a request's audited steps add to the earlier ones.
AuditStats Difference(const AuditStats& now, const AuditStats& before) {
  AuditStats more = now;  // with the lowest recalls, which do not add up
  more.steps -= before.steps;
  more.skipped_steps -= before.skipped_steps;
  more.retrieval_steps -= before.retrieval_steps;
  more.retrieval_recall -= before.retrieval_recall;
  more.same_top -= before.same_top;
  more.kl -= before.kl;
  more.streaming_steps -= before.streaming_steps;
  more.streaming_recall -= before.streaming_recall;
  more.seconds -= before.seconds;
  return more;
}

class Writer {
 public:
  explicit Writer(std::string labels) : labels_(std::move(labels)) {}

  void Head(std::string_view name, std::string_view type, std::string_view help) {
    out_ += StrCat("# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n");
  }
  template <class T>
  void Sample(std::string_view name, std::string_view more_labels, T value) {
    out_ +=
        StrCat(name, "{", labels_, more_labels.empty() ? "" : ",", more_labels, "} ", value, "\n");
  }
  template <class T>
  void Gauge(std::string_view name, T value, std::string_view help) {
    Head(name, "gauge", help);
    Sample(name, "", value);
  }
  template <class T>
  void Counter(std::string_view name, T value, std::string_view help) {
    Head(name, "counter", help);
    Sample(name, "", value);
  }
  // A summary without quantiles: a mean that dashboards take over any window.
  void Mean(std::string_view name, double sum, int64_t count, std::string_view help) {
    Head(name, "summary", help);
    Sample(StrCat(name, "_sum"), "", sum);
    Sample(StrCat(name, "_count"), "", count);
  }
  void Add(const Histogram& histogram, std::string_view name, std::string_view help) {
    histogram.Write(name, labels_, help, &out_);
  }
  // Of EngineConfig::audit_rate: all 0 without one.
  void Add(const AuditStats& audit) {
    Counter("lserve:audit_steps_total", audit.steps, "Decode steps that were audited.");
    Counter("lserve:audit_skipped_steps_total", audit.skipped_steps,
            "Steps whose audit found no room in the KV cache.");
    Counter("lserve:audit_seconds_total", audit.seconds, "What the audits cost.");
    Mean("lserve:audit_retrieval_recall", audit.retrieval_recall, audit.retrieval_steps,
         "Share of the attention that lies on the selected pages, of an audited step.");
    Mean("lserve:audit_streaming_recall", audit.streaming_recall, audit.streaming_steps,
         "The same for the window of the streaming heads.");
    Mean("lserve:audit_kl", audit.kl, audit.retrieval_steps,
         "Divergence of the answer with selected pages from that with every page, nats.");
    Counter("lserve:audit_same_top_total", audit.same_top,
            "Audited steps in which the most probable token was the same with every page.");
    if (audit.retrieval_steps > 0)
      Gauge("lserve:audit_retrieval_recall_lowest", audit.lowest_retrieval_recall,
            "Of one head in one step, since the start.");
    if (audit.streaming_steps > 0)
      Gauge("lserve:audit_streaming_recall_lowest", audit.lowest_streaming_recall,
            "Of one head in one step, since the start.");
  }
  std::string Take() { return std::move(out_); }

 private:
  std::string labels_;
  std::string out_;
};

}  // namespace

std::string_view Name(RequestPhase phase) {
  switch (phase) {
    case RequestPhase::kQueue:
      return "queue";
    case RequestPhase::kPrefill:
      return "prefill";
    case RequestPhase::kDecode:
      return "decode";
  }
  return "?";
}

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}

void Histogram::Observe(double value) {
  const auto bound = std::lower_bound(bounds_.begin(), bounds_.end(), value);
  ++counts_[static_cast<size_t>(bound - bounds_.begin())];
  sum_ += value;
}

void Histogram::Write(std::string_view name,
                      std::string_view labels,
                      std::string_view help,
                      std::string* out) const {
  *out += StrCat("# HELP ", name, " ", help, "\n# TYPE ", name, " histogram\n");
  int64_t total = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    total += counts_[i];
    const std::string bound = i < bounds_.size() ? StrCat(bounds_[i]) : "+Inf";
    *out += StrCat(name, "_bucket{", labels, ",le=\"", bound, "\"} ", total, "\n");
  }
  *out +=
      StrCat(name, "_sum{", labels, "} ", sum_, "\n", name, "_count{", labels, "} ", total, "\n");
}

Metrics::Metrics(const std::string& model_name, int64_t max_model_len)
    : labels_(StrCat("engine=\"0\",model_name=\"", Escaped(model_name), "\"")),
      first_token_(FirstTokenBounds()),
      token_gap_(TokenGapBounds()),
      queue_time_(RequestBounds()),
      prefill_time_(RequestBounds()),
      decode_time_(RequestBounds()),
      inference_time_(RequestBounds()),
      e2e_time_(RequestBounds()),
      prompt_size_(TokenBounds(max_model_len)),
      answer_size_(TokenBounds(max_model_len)),
      max_tokens_(TokenBounds(max_model_len)),
      step_tokens_(TokenBounds(65536)) {}

void Metrics::ObserveStep(int64_t tokens) {
  const std::lock_guard lock(mutex_);
  step_tokens_.Observe(static_cast<double>(tokens));
}

void Metrics::AddWork(const RequestStats& before, const RequestStats& now, int64_t prefill_tokens) {
  const std::lock_guard lock(mutex_);
  prefill_tokens_computed_ += prefill_tokens;
  generation_tokens_ += now.completion_tokens - before.completion_tokens;
  // Stats carry means per decode step.
  const auto total = [](double mean, const RequestStats& stats) {
    return mean * static_cast<double>(stats.dense_steps + stats.sparse_steps);
  };
  pages_visited_ += total(now.pages_visited, now) - total(before.pages_visited, before);
  pages_present_ += total(now.pages_present, now) - total(before.pages_present, before);
  tiles_visited_ += now.prefill_tiles_visited - before.prefill_tiles_visited;
  tiles_present_ += now.prefill_tiles_present - before.prefill_tiles_present;
  dense_steps_ += now.dense_steps - before.dense_steps;
  sparse_steps_ += now.sparse_steps - before.sparse_steps;
  selections_ += now.selections - before.selections;
  logit_copies_ += now.logit_copies - before.logit_copies;
  audit_.Add(Difference(now.audit, before.audit));
}

void Metrics::ObserveFirstToken(double seconds, const RequestStats& stats) {
  const std::lock_guard lock(mutex_);
  first_token_.Observe(seconds);
  prompt_tokens_ += stats.prompt_tokens;
  prefix_queries_ += stats.prompt_tokens;
  prefix_hits_ += stats.cached_tokens;
  prefix_common_ += stats.prefix.common;
  ++prefix_ends_[std::string(Name(stats.prefix.end))];
}

void Metrics::ObserveTokenGap(double seconds) {
  const std::lock_guard lock(mutex_);
  token_gap_.Observe(seconds);
}

void Metrics::ObserveFinished(std::string_view reason,
                              const RequestTimes& times,
                              const RequestStats& stats,
                              int64_t max_tokens) {
  const std::lock_guard lock(mutex_);
  ++finished_[std::string(reason)];
  queue_time_.Observe(times.queue);
  prefill_time_.Observe(times.prefill);
  decode_time_.Observe(times.decode);
  inference_time_.Observe(times.prefill + times.decode);
  e2e_time_.Observe(times.queue + times.prefill + times.decode);
  prompt_size_.Observe(static_cast<double>(stats.prompt_tokens));
  answer_size_.Observe(static_cast<double>(stats.completion_tokens));
  max_tokens_.Observe(static_cast<double>(max_tokens));
}

void Metrics::ObserveCancelled(RequestPhase phase) {
  const std::lock_guard lock(mutex_);
  ++cancelled_[static_cast<size_t>(phase)];
}

void Metrics::ObserveRefused(std::string_view why) {
  const std::lock_guard lock(mutex_);
  ++refused_[std::string(why)];
}

void Metrics::ObserveRetry() {
  const std::lock_guard lock(mutex_);
  ++retried_;
}

void Metrics::ObserveHttp(std::string_view handler, std::string_view method, int status) {
  const std::lock_guard lock(mutex_);
  ++http_[{std::string(handler), std::string(method), status}];
}

std::string Metrics::Render(const EngineSnapshot& engine, int64_t connections) const {
  const std::lock_guard lock(mutex_);
  Writer out(labels_);
  out.Gauge("vllm:num_requests_running", engine.requests_running,
            "Requests in the engine's batches.");
  out.Gauge("vllm:num_requests_waiting", engine.requests_waiting,
            "Requests that wait for their first step.");
  const double usage = engine.kv_budget_bytes == 0
                           ? 0.0
                           : static_cast<double>(engine.kv_bytes_in_use) /
                                 static_cast<double>(engine.kv_budget_bytes);
  out.Gauge("vllm:kv_cache_usage_perc", usage,
            "Share of the KV cache in use, 0 to 1, kept prefixes included.");
  out.Counter("vllm:prefix_cache_queries_total", prefix_queries_,
              "Prompt tokens looked up in the prefix cache.");
  out.Counter("vllm:prefix_cache_hits_total", prefix_hits_,
              "Prompt tokens found there, not computed again.");
  out.Counter(
      "vllm:num_preemptions_total", engine.preemptions,
      "Times that a running request gave its KV pages back and waits to be computed again.");
  out.Counter("vllm:prompt_tokens_total", prompt_tokens_,
              "Prompt tokens of requests that got a first token.");
  out.Counter("vllm:generation_tokens_total", generation_tokens_, "Tokens drawn.");
  out.Head("vllm:request_success_total", "counter", "Requests that finished, by reason.");
  for (const auto& [reason, count] : finished_) {
    out.Sample("vllm:request_success_total", StrCat("finished_reason=\"", reason, "\""), count);
  }
  out.Add(first_token_, "vllm:time_to_first_token_seconds", "From arrival to the first token.");
  out.Add(token_gap_, "vllm:inter_token_latency_seconds", "Between two tokens of an answer.");
  out.Add(e2e_time_, "vllm:e2e_request_latency_seconds", "From arrival to the last token.");
  out.Add(queue_time_, "vllm:request_queue_time_seconds", "Before the first step.");
  out.Add(prefill_time_, "vllm:request_prefill_time_seconds",
          "From the first step to the first token.");
  out.Add(decode_time_, "vllm:request_decode_time_seconds", "From the first to the last token.");
  out.Add(inference_time_, "vllm:request_inference_time_seconds", "Prefill and decode.");
  out.Add(prompt_size_, "vllm:request_prompt_tokens", "Tokens of a prompt.");
  out.Add(answer_size_, "vllm:request_generation_tokens", "Tokens of an answer.");
  out.Add(max_tokens_, "vllm:request_params_max_tokens", "max_tokens of a request.");
  out.Add(step_tokens_, "vllm:iteration_tokens_total", "Tokens of an engine step.");
  out.Head("http_requests_total", "counter", "HTTP requests answered.");
  for (const auto& [key, count] : http_) {
    const auto& [handler, method, status] = key;
    out.Sample("http_requests_total",
               StrCat("handler=\"", Escaped(handler), "\",method=\"", Escaped(method),
                      "\",status=\"", status, "\""),
               count);
  }

  out.Counter("lserve:pages_visited_total", pages_visited_,
              "KV pages read in decode, per layer and KV head.");
  out.Counter("lserve:pages_present_total", pages_present_,
              "KV pages that dense attention would have read.");
  out.Counter("lserve:prefill_tiles_visited_total", tiles_visited_,
              "Attention tiles computed in prefill.");
  out.Counter("lserve:prefill_tiles_present_total", tiles_present_,
              "Attention tiles of dense prefill.");
  out.Counter("lserve:decode_steps_dense_total", dense_steps_,
              "Decode steps that read every page.");
  out.Counter("lserve:decode_steps_sparse_total", sparse_steps_,
              "Decode steps that left pages out.");
  out.Counter("lserve:selections_total", selections_, "Decode steps in which pages were chosen.");
  out.Counter("lserve:logit_copies_total", logit_copies_,
              "Steps whose logits were copied to the host: log probabilities, audits.");
  out.Counter("lserve:selector_seconds_total", engine.selector_seconds,
              "Time in which pages were chosen.");
  out.Gauge("lserve:streaming_head_share", engine.streaming_head_share,
            "Share of the KV heads that read a window only.");
  out.Add(audit_);
  out.Counter("lserve:prefill_tokens_computed_total", prefill_tokens_computed_,
              "Prompt tokens computed.");
  out.Counter("lserve:prefix_common_tokens_total", prefix_common_,
              "Prompt tokens that a kept prefix shares, resumable or not.");
  out.Head("lserve:prefix_lookups_total", "counter",
           "Prompts by why their common beginning with the nearest kept prefix ends.");
  for (const auto& [end, count] : prefix_ends_)
    out.Sample("lserve:prefix_lookups_total", StrCat("end=\"", end, "\""), count);
  out.Counter("lserve:tokens_recomputed_total", engine.recomputed_tokens,
              "Tokens computed again after a preemption.");
  out.Head("lserve:kv_bytes", "gauge", "Bytes of KV pages held, by element type and tier.");
  out.Sample("lserve:kv_bytes", StrCat("dtype=\"", engine.kv_dtype, "\",tier=\"device\""),
             engine.kv_bytes_in_use);
  const std::pair<const char*, const KvTierStats*> tiers[] = {{"host", &engine.host},
                                                              {"disk", &engine.disk}};
  const auto by_tier = [&](const char* name, auto member) {
    for (const auto& [tier, stats] : tiers)
      out.Sample(name, StrCat("tier=\"", tier, "\""), stats->*member);
  };
  for (const auto& [tier, stats] : tiers) {
    out.Sample("lserve:kv_bytes", StrCat("dtype=\"", engine.kv_dtype, "\",tier=\"", tier, "\""),
               stats->bytes);
  }
  out.Head("lserve:kv_tier_loaded_tokens_total", "counter",
           "Prompt tokens read from a tier instead of being computed.");
  by_tier("lserve:kv_tier_loaded_tokens_total", &KvTierStats::loaded_tokens);
  out.Head("lserve:kv_tier_refused_total", "counter",
           "Files that were damaged, cut off or foreign.");
  by_tier("lserve:kv_tier_refused_total", &KvTierStats::refused);
  out.Head("lserve:kv_tier_slow_total", "counter",
           "Times that a prompt was computed since a tier took too long to read its prefix.");
  by_tier("lserve:kv_tier_slow_total", &KvTierStats::slow);
  out.Head("lserve:kv_tier_dropped_total", "counter",
           "Prefixes that a tier did not keep: it was too small, too slow or full.");
  by_tier("lserve:kv_tier_dropped_total", &KvTierStats::dropped);
  out.Gauge("lserve:kv_bytes_in_use", engine.kv_bytes_in_use,
            "Bytes of KV pages held, kept prefixes included.");
  out.Gauge("lserve:kv_bytes_budget", engine.kv_budget_bytes, "Bytes that the KV cache may take.");
  out.Gauge("lserve:tokens_waiting", engine.tokens_waiting,
            "Prompt tokens of the waiting requests.");
  out.Counter("lserve:steps_total", engine.steps, "Engine steps.");
  out.Gauge("lserve:seconds_since_last_step", engine.seconds_since_last_step,
            "0 while there is no work: the detector of a hang.");
  out.Gauge("lserve:connections", connections, "Open HTTP connections.");
  out.Head("lserve:requests_cancelled_total", "counter", "Requests whose client left, by phase.");
  for (const RequestPhase phase :
       {RequestPhase::kQueue, RequestPhase::kPrefill, RequestPhase::kDecode}) {
    out.Sample("lserve:requests_cancelled_total", StrCat("phase=\"", Name(phase), "\""),
               cancelled_[static_cast<size_t>(phase)]);
  }
  out.Counter("lserve:requests_retried_total", retried_,
              "Requests that their client sent before (x-stainless-retry-count).");
  out.Head("lserve:requests_refused_total", "counter",
           "Requests turned away by the queue or by their key's limits.");
  for (const auto& [why, count] : refused_) {
    out.Sample("lserve:requests_refused_total", StrCat("reason=\"", why, "\""), count);
  }
  return out.Take();
}

}  // namespace lserve
