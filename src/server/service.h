// Service: the routes. One call per HTTP request: who asks, for what, with which body; short
// answers are given here, a generation is started for long ones. It knows HTTP as Exchange only,
// and never calls the engine but through EngineThread. Used by Server.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "server/engine_thread.h"
#include "server/exchange.h"
#include "server/generation.h"
#include "server/key_limits.h"
#include "server/metrics.h"
#include "server/openai_replies.h"
#include "server/openai_types.h"
#include "server/output_grammar.h"

namespace lserve {

struct ServiceConfig {
  // What clients call the model; the first is what replies say. Never empty.
  std::vector<std::string> served_model_names;
  AccessKeys access;                         // at the start; see ReplaceKeys
  KeyLimits default_key_limits;              // of every API key without limits of its own
  std::vector<std::string> allowed_origins;  // CORS; "*": every page
  SamplingParams default_sampling;
  // Of a request that gives none; cut to what the context and the cache leave.
  int64_t default_max_tokens = 4096;
  std::optional<ChatDate> date;  // for templates that ask for it
  bool prefix_caching = true;
  bool priorities = true;  // else a request with another priority than 0 is refused
  double heartbeat_seconds = 1.0;
  // The engine counts as hung, and /ready fails, when a step takes longer.
  double step_deadline_seconds = 30.0;
};

class Service {
 public:
  // `engine` and `metrics` must outlive every exchange. `connections` counts the open ones.
  Service(ServiceConfig config,
          EngineThread* engine,
          Metrics* metrics,
          std::function<int64_t()> connections);

  // On any thread that may be kept busy for a while: long texts are tokenized here.
  void Handle(const std::shared_ptr<Exchange>& exchange) const;

  // The route's name for metrics, "other" for an unknown path, so that names stay bounded.
  static std::string HandlerName(std::string_view path);

  // From the next request on. What is being answered goes on, whatever its key. On any thread.
  void ReplaceKeys(AccessKeys access);
  // New requests are refused with 503 from now on, and /ready fails.
  void BeginDrain() { draining_ = true; }

 private:
  struct Call {
    std::shared_ptr<Exchange> exchange;
    HttpHeaders headers;                                 // of the response
    std::shared_ptr<const AccessKeys> access = nullptr;  // as when the request came
    const HttpRequest& request() const { return exchange->request(); }
  };

  std::shared_ptr<const AccessKeys> Access() const;
  static bool MayAsk(const HttpRequest& request, const AccessKeys& access);
  void Route(const Call& call) const;
  void Health(const Call& call) const;
  void Ready(const Call& call) const;
  void ResetPrefixCache(const Call& call) const;
  void Models(const Call& call, std::string_view id) const;
  void Chat(const Call& call) const;
  void Completions(const Call& call) const;
  void Messages(const Call& call) const;  // Anthropic's
  void CountTokens(const Call& call) const;
  void Responses(const Call& call) const;
  void Tokenize(const Call& call) const;
  void Detokenize(const Call& call) const;
  void ApplyTemplate(const Call& call) const;

  // What a generation needs beside its parameters.
  struct Answering {
    std::unique_ptr<ReplyFormat> format;
    std::vector<std::vector<int32_t>> prompts;  // token ids
    ToolStyle tool_style = ToolStyle::kDescribed;
    ToolOptions tools = {};
  };
  void Generate(const Call& call, const GenerationParams& params, Answering answering) const;
  // The answer to a conversation, said by `format`.
  void Converse(const Call& call, ChatBody body, std::unique_ptr<ReplyFormat> format) const;
  // The prompt of a conversation.
  std::optional<ApiError> TokenizeChat(const ChatBody& body, std::vector<int32_t>* out) const;
  std::string ModelName(const GenerationParams& params) const;
  std::optional<ApiError> MakeRequest(const GenerationParams& params,
                                      std::vector<int32_t> prompt,
                                      Request* out) const;
  // Whether the request's key has limits that hold for this server.
  static bool IsLimited(const Call& call);
  std::optional<ApiError> RefuseEarly(Call* call) const;
  // What the request's key allows; the headers go with every reply.
  std::optional<ApiError> TakeLease(const Call& call,
                                    const std::vector<Request>& requests,
                                    GenerationSetup* setup) const;
  std::optional<ApiError> CheckModel(const std::string& model) const;
  std::optional<ApiError> Render(const ChatBody& body, RenderedPrompt* out) const;
  Json ModelJson(const std::string& name) const;

  static void Send(const Call& call, const Json& json, int status = 200);
  static void SendError(const Call& call, const ApiError& error);

  mutable std::mutex access_mutex_;
  std::shared_ptr<const AccessKeys> access_;  // guarded by access_mutex_
  const ServiceConfig config_;
  EngineThread* const engine_;
  Metrics* const metrics_;
  const std::function<int64_t()> connections_;
  const int64_t started_at_;  // Unix seconds
  const ToolStyle tool_style_;
  const std::shared_ptr<KeyLimiter> key_limiter_;
  mutable OutputGrammars grammars_;  // thread-safe
  std::atomic<bool> draining_ = false;
};

}  // namespace lserve
