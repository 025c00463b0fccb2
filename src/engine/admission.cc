#include "engine/admission.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"

namespace lserve {

int SparePages(const EngineParts& parts) {
  return parts.config.audit_rate > 0 ? 2 : 1;
}

Status CheckRequest(const EngineParts& parts,
                    const Request& request,
                    const AttentionSettings& attention) {
  std::vector<std::string> problems = request.sampling.Problems();
  for (std::string& problem : attention.Problems()) problems.push_back(std::move(problem));
  const int64_t size = static_cast<int64_t>(request.prompt.size());
  if (size == 0) problems.push_back("the prompt has 0 tokens, expected at least 1");
  if (size >= parts.info.max_model_len) {
    problems.push_back(StrCat("the prompt has ", size, " tokens, expected fewer than ",
                              parts.info.max_model_len,
                              "; shorten it or raise --max-model-len if the model allows"));
  }
  if (request.max_tokens < 1) {
    problems.push_back(StrCat("max_tokens is ", request.max_tokens, ", expected at least 1"));
  }
  if (request.keep_prefix < 0 || request.keep_prefix > size) {
    problems.push_back(StrCat("keep_prefix is ", request.keep_prefix, ", expected 0 to ", size));
  }
  if (!request.stop.empty() && parts.tokenizer == nullptr) {
    problems.push_back("stop strings need a tokenizer, and the model directory has none");
  }
  if (request.min_tokens < 0 || request.min_tokens > request.max_tokens) {
    problems.push_back(StrCat("min_tokens is ", request.min_tokens, ", expected 0 to max_tokens (",
                              request.max_tokens, ")"));
  }
  for (const auto& [token, bias] : request.sampling.logit_bias) {
    if (token >= 0 && token < parts.model_config.vocab_size) continue;
    problems.push_back(StrCat("logit_bias names token ", token, ", expected 0 to ",
                              parts.model_config.vocab_size - 1));
    break;
  }
  const bool is_free =
      request.forced_tokens.empty() && request.min_tokens == 0 && !request.ignore_eos;
  if (request.constraint != nullptr && !is_free) {
    problems.push_back(
        "an output format is given beside min_tokens, ignore_eos or forced tokens, expected it "
        "alone: it says where the answer ends");
  }
  const auto check_tokens = [&](const char* what, const std::vector<int32_t>& tokens) {
    const auto beyond = std::find_if(tokens.begin(), tokens.end(), [&](int32_t token) {
      return token < 0 || token >= parts.model_config.vocab_size;
    });
    if (beyond == tokens.end()) return;
    problems.push_back(StrCat(what, *beyond, " at position ", beyond - tokens.begin(),
                              ", expected 0 to ", parts.model_config.vocab_size - 1,
                              "; are the tokens from the same model?"));
  };
  check_tokens("token ", request.prompt);
  check_tokens("forced token ", request.forced_tokens);
  const int64_t num_forced = static_cast<int64_t>(request.forced_tokens.size());
  if (size + num_forced > parts.info.max_model_len) {
    problems.push_back(StrCat("the prompt and its forced tokens are ", size + num_forced,
                              " tokens, expected at most ", parts.info.max_model_len,
                              "; shorten them or raise --max-model-len if the model allows"));
  }
  return problems.empty() ? Status() : Status(Code::kInvalidArgument, problems.front());
}

Status CheckFits(const EngineParts& parts,
                 const Request& request,
                 const AttentionSettings& attention,
                 int64_t max_tokens) {
  const auto bytes_for = [&](int64_t tokens) {
    const SequenceCache::Need need =
        WorstCasePages(attention, tokens, parts.config.max_num_batched_tokens);
    size_t bytes = 0;
    for (const Way way : kWays) {
      bytes += static_cast<size_t>(need.pages[Index(way)] + SparePages(parts)) *
               parts.pool->page_bytes(way);
    }
    return bytes;
  };
  // Each way rounds up to whole granules.
  const size_t slack =
      size_t{2} * std::max(size_t{2} << 20, std::max(parts.pool->page_bytes(Way::kRetrieval),
                                                     parts.pool->page_bytes(Way::kStreaming)));
  const auto fits = [&](int64_t tokens) {
    return bytes_for(tokens) + slack <= parts.pool->budget_bytes();
  };
  const int64_t total = static_cast<int64_t>(request.prompt.size()) + max_tokens;
  if (fits(total)) return Status();
  int64_t low = 0, high = total;  // the longest that fits is in [low, high)
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return Status(
      Code::kOutOfMemory,
      StrCat("prompt and answer of ", total, " tokens need ", bytes_for(total) >> 20,
             " MiB of KV cache (", parts.info.kv_dtype, "), the cache has ",
             parts.pool->budget_bytes() >> 20, " MiB; at most ", low,
             " tokens fit: shorten it, raise --kv-cache-bytes or try --kv-cache-dtype int8"));
}

int64_t MaxTokens(const EngineParts& parts, const Request& request) {
  if (!request.forced_tokens.empty()) return static_cast<int64_t>(request.forced_tokens.size());
  const int64_t room = parts.info.max_model_len - static_cast<int64_t>(request.prompt.size());
  return std::min(request.max_tokens, room);
}

}  // namespace lserve
