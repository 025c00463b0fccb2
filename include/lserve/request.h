// Request and what comes back: plain data between the caller and the engine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "attention/attention_settings.h"
#include "base/status.h"
#include "lserve/token_constraint.h"
#include "tensor/matrix.h"

namespace lserve {

struct AttentionView;  // engine/attention_probe.h

using RequestId = int64_t;

// How the next token is drawn. The penalties act first, then temperature, then the cuts top-k,
// top-p, min-p in this order, as transformers does.
struct SamplingParams {
  double temperature = 1.0;  // 0: the most probable token (ties: the lowest id)
  int top_k = 0;             // 0: off
  double top_p = 1.0;
  double min_p = 0.0;               // of the most probable token's probability
  double repetition_penalty = 1.0;  // on prompt and answer; > 1 discourages
  double presence_penalty = 0.0;    // on the answer, once per token
  double frequency_penalty = 0.0;   // on the answer, per occurrence
  uint64_t seed = 0;
  // Added to the logits of these tokens before everything else.
  std::vector<std::pair<int32_t, float>> logit_bias = {};

  std::vector<std::string> Problems() const;
};

struct Request {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int64_t max_tokens = 256;
  int64_t min_tokens = 0;  // before these, neither an end-of-text nor a stop token is drawn
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> stop;  // the text ends before the first of these; needs a tokenizer
  // Unset: the engine's settings. Dense and sparse requests share a batch.
  std::optional<AttentionSettings> attention;
  // Keeps the first `keep_prefix` tokens of the prompt in the cache, while it is prefilled, for
  // later requests that start with the same tokens. They can begin at multiples of 2048 tokens, 256
  // tokens before the end of what is kept (another question about the same document differs
  // there), and at its end; with block-sparse prefill at the last whole tile of 128. 0: keeps
  // nothing.
  int64_t keep_prefix = 0;
  // Keeps the pages that streaming heads no longer see, as dense attention does, so that
  // on_attention can say what they hold. Costs memory, changes no answer. Off if a prefix that
  // serves the request has dropped them.
  bool keep_streaming_pages = false;
  // Lower values come first (vLLM's `priority`): in the queue, in the share of a step, and when
  // pages or places run out, where a higher value is preempted. Of equal ones the older comes
  // first, and who has waited comes before better ones that are newer
  // (EngineConfig::priority_ageing_seconds).
  int64_t priority = 0;
  // Only requests with the same salt share prefixes, so that nobody can find out by the time to
  // the first token what others have asked.
  std::string cache_salt;
  // If not empty, the answer's tokens: nothing is drawn, penalties and stops are off, and the
  // answer ends with the last of them. Each is still computed by a decode step, so that
  // on_token_logits shows what decode says about a known text.
  std::vector<int32_t> forced_tokens;
  // If set, decides which tokens may come next; of this request alone, for it keeps its place. Not
  // together with forced_tokens, min_tokens or ignore_eos, which say something else.
  std::shared_ptr<TokenConstraint> constraint;
  // If set, gets the logits of every prompt position that is computed, in order and once: `logits`
  // is float, [count, vocab], in host memory. An error cancels the request.
  std::function<Status(int64_t first_position, const ConstMatrix& logits)> on_prompt_logits;
  // If set, gets the logits [vocab] that each token of the answer is drawn from, before penalties.
  std::function<void(std::span<const float> logits)> on_token_logits;
  // If set, called in every layer of every step that computes tokens of this request, right after
  // their attention; again where a preempted request is computed again. An error is the engine's
  // end.
  std::function<Status(const AttentionView& view)> on_attention;
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kError };
std::string_view Name(FinishReason reason);  // "stop", "length", ...

// What audited decode steps say (EngineConfig::audit_rate): sums over steps, so that requests add
// up. A recall is the share of a query's attention that lies on keys it was shown, mean over heads.
struct AuditStats {
  int64_t steps = 0;          // that were audited
  int64_t skipped_steps = 0;  // that should have been, but the cache had no page for it
  // Steps in which retrieval heads read selected pages: their recall, and how far the logits are
  // from those of a pass that reads every page, given this cache.
  int64_t retrieval_steps = 0;
  double retrieval_recall = 0;
  double lowest_retrieval_recall = 1;  // of one head in one step
  int64_t same_top = 0;                // the most probable token is the same
  double kl = 0;                       // KL(every page || selected), nats
  // Steps in which the streaming heads' pages were all kept (a request that is audited keeps them).
  int64_t streaming_steps = 0;
  double streaming_recall = 0;
  double lowest_streaming_recall = 1;
  double seconds = 0;  // what it cost

  void Add(const AuditStats& other);
};

// Why a prompt's common beginning with what the prefix cache holds ends where it does.
enum class PrefixEnd : uint8_t {
  kNone,      // nothing that is kept begins like the prompt
  kWhole,     // the whole prompt is kept
  kEnds,      // the kept prefix ends there
  kDiffers,   // the kept prefix goes on with another token
  kSettings,  // it is kept, but under other attention settings, which give other keys and values
};
std::string_view Name(PrefixEnd end);  // "none", "whole", "ends", ...

// What the prefix cache had for a prompt. Only prefixes of the same salt are told of.
struct PrefixMatch {
  PrefixEnd end = PrefixEnd::kNone;
  int64_t common = 0;   // leading tokens that the nearest kept prefix shares; it diverges there
  int64_t nearest = 0;  // tokens of that prefix
};

// Counters of one request. Pages count (layer, KV head) pairs, so that a streaming and a retrieval
// head weigh the same; tiles are (layer, KV head, 128 queries, 128 keys). What a preempted request
// computes again is counted again.
struct RequestStats {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt, not computed again
  // Where the prompt parts from what was kept. cached_tokens is less than `common` where the
  // common beginning can not be resumed at its end: the next token must be computed, and streaming
  // heads need the pages of their window.
  PrefixMatch prefix;
  int64_t completion_tokens = 0;
  double ttft_ms = 0;                         // from Add() to the first token
  std::optional<double> decode_ms_per_token;  // after the first token; unset without a decode step
  uint64_t kv_bytes = 0;                      // most that it held
  double pages_visited = 0;                   // mean per decode step
  double pages_present = 0;
  int64_t prefill_tiles_visited = 0;
  int64_t prefill_tiles_present = 0;
  int64_t tile_selections = 0;    // query tiles that read a selected list of key tiles
  int64_t dense_steps = 0;        // decode steps in which every page was read
  int64_t sparse_steps = 0;       // the others
  int64_t selections = 0;         // decode steps in which the selector ran
  int64_t preemptions = 0;        // times that its pages were taken back
  int64_t recomputed_tokens = 0;  // of prompt and answer, for that reason
  // Steps whose logits were copied to the host, since on_token_logits or an audit looks at them.
  // Tokens are drawn where the logits are.
  int64_t logit_copies = 0;
  AuditStats audit;
};

// What one engine step did to one request.
struct RequestEvent {
  RequestId id = 0;
  int64_t prefill_done = 0;           // prompt tokens in the cache
  std::optional<int32_t> token = {};  // drawn in this step
  std::string text = {};  // complete UTF-8 that may be shown now; empty without a tokenizer
  std::optional<FinishReason> finished = {};
  std::string stop_string = {};  // that ended the answer, if one did
  Status error = {};             // with kError
  RequestStats stats = {};       // final when finished
};

}  // namespace lserve
