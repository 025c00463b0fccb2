#include "server/service.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/strings.h"
#include "base/wall_time.h"
#include "lserve/version.h"
#include "server/anthropic_replies.h"
#include "server/anthropic_types.h"
#include "server/auth.h"
#include "server/body_fields.h"
#include "server/ids.h"
#include "server/responses_replies.h"
#include "server/responses_types.h"

namespace lserve {
namespace {

struct RouteInfo {
  std::string_view path;
  std::string_view method;
};
constexpr RouteInfo kRoutes[] = {
    {"/health", "GET"},
    {"/ready", "GET"},
    {"/version", "GET"},
    {"/metrics", "GET"},
    {"/v1/models", "GET"},
    {"/v1/chat/completions", "POST"},
    {"/v1/completions", "POST"},
    {"/tokenize", "POST"},
    {"/detokenize", "POST"},
    {"/apply-template", "POST"},
    {"/reset_prefix_cache", "POST"},
    {"/v1/messages", "POST"},
    {"/v1/messages/count_tokens", "POST"},
    {"/v1/responses", "POST"},
};
constexpr std::string_view kModelPrefix = "/v1/models/";
// What peers have and this server does not: said by name, so that nobody looks for a typing error.
constexpr std::string_view kNotImplemented[] = {"/v1/embeddings",
                                                "/v1/audio/speech",
                                                "/v1/audio/transcriptions",
                                                "/v1/images/generations",
                                                "/v1/moderations",
                                                "/v1/files",
                                                "/v1/batches",
                                                "/v1/rerank",
                                                "/rerank",
                                                "/score",
                                                "/v1/score"};

const RouteInfo* FindRoute(std::string_view path) {
  for (const RouteInfo& route : kRoutes) {
    if (route.path == path) return &route;
  }
  return nullptr;
}

// Probes come without a key; everything else is closed by default.
bool IsPublic(std::string_view path) {
  return path == "/health" || path == "/ready";
}

// The client's own id if it can stand in a header and a log, else a new one.
std::string RequestIdFor(const HttpRequest& request) {
  const std::string_view given = request.Header("x-request-id");
  const bool usable = !given.empty() && given.size() <= 128 &&
                      std::all_of(given.begin(), given.end(), [](unsigned char c) {
                        return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
                      });
  return usable ? std::string(given) : RandomName("req-");
}

bool IsJsonType(std::string_view content_type) {
  constexpr std::string_view kJson = "application/json";
  const std::string_view type = content_type.substr(0, content_type.find(';'));
  const size_t end = type.find_last_not_of(" \t");
  const std::string_view trimmed = type.substr(0, end == std::string_view::npos ? 0 : end + 1);
  return std::equal(trimmed.begin(), trimmed.end(), kJson.begin(), kJson.end(),
                    [](unsigned char a, unsigned char b) { return std::tolower(a) == b; });
}

ApiError TooLong(int64_t prompt, std::optional<int64_t> answer, int64_t longest) {
  const int64_t total = prompt + answer.value_or(1);
  // OpenAI's wording, which clients search for, and llama.cpp's two numbers, which others read.
  return {.http_status = 400,
          .message =
              StrCat("This model's maximum context length is ", longest,
                     " tokens. However, you requested ", total, " tokens (", prompt,
                     " in the prompt, ", answer.value_or(1),
                     " in the completion). Please reduce the length of the prompt or completion."),
          .code = "context_length_exceeded",
          .param = "messages",
          .extra = {{"n_prompt_tokens", Json(prompt)}, {"n_ctx", Json(longest)}}};
}

ApiError FromRefusal(const Refusal& refusal) {
  ApiError error = {.message = refusal.message, .retry_after_seconds = refusal.retry_after_seconds};
  switch (refusal.why) {
    case Refusal::Why::kRequests:
    case Refusal::Why::kTokens:
      error.http_status = 429;
      error.code = "rate_limit_exceeded";
      break;
    case Refusal::Why::kDraining:
      error.http_status = 503;
      error.code = "shutting_down";
      break;
    case Refusal::Why::kFailed:
      error.http_status = 503;
      error.code = "engine_failed";
      break;
  }
  return error;
}

// The protocol of a path: its errors look different.
bool IsAnthropic(std::string_view path) {
  return path == "/v1/messages" || path.starts_with("/v1/messages/");
}

// What changes the server for everybody: an admin's key opens it, no other, and without one nobody.
bool IsAdmin(std::string_view path) {
  return path == "/reset_prefix_cache";
}

// What keys' limits are about.
bool Generates(std::string_view path) {
  return path == "/v1/chat/completions" || path == "/v1/completions" || path == "/v1/messages" ||
         path == "/v1/responses";
}

// Reads the body of a POST with one of the parsers of bodies.
template <class Parse>
std::optional<ApiError> ReadBodyWith(const HttpRequest& request, const Parse& parse) {
  if (!IsJsonType(request.Header("content-type"))) {
    // Also keeps pages of other sites out, which may send text/plain without asking first.
    return ApiError{.http_status = 415,
                    .message =
                        "the content type is not application/json; send the header "
                        "Content-Type: application/json",
                    .code = "unsupported_media_type"};
  }
  Result<Json> json = ParseJson(request.body);
  if (!json.ok()) return ApiError{.message = json.status().message(), .code = "invalid_json"};
  return parse(json.value());
}
template <class Body>
std::optional<ApiError> ReadBody(const HttpRequest& request, Body* out) {
  return ReadBodyWith(request, [&](const Json& json) { return ParseBody(json, out); });
}

}  // namespace

Service::Service(ServiceConfig config,
                 EngineThread* engine,
                 Metrics* metrics,
                 std::function<int64_t()> connections)
    : access_(std::make_shared<const AccessKeys>(std::move(config.access))),
      config_(std::move(config)),
      engine_(engine),
      metrics_(metrics),
      connections_(std::move(connections)),
      started_at_(UnixSeconds()),
      tool_style_(ToolStyleOf(engine->engine().tokenizer()->ChatTemplateSource())),
      key_limiter_(std::make_shared<KeyLimiter>(config_.default_key_limits,
                                                access_->limits,
                                                [since = Stopwatch()] { return since.seconds(); })),
      grammars_(engine->engine().tokenizer(), engine->engine().info().end_tokens) {}

std::string Service::HandlerName(std::string_view path) {
  if (FindRoute(path) != nullptr) return std::string(path);
  return path.starts_with(kModelPrefix) ? "/v1/models/{id}" : "other";
}

void Service::Send(const Call& call, const Json& json, int status) {
  call.exchange->Respond({.status = status, .body = WriteJson(json), .headers = call.headers});
}

void Service::SendError(const Call& call, const ApiError& error) {
  HttpHeaders headers = call.headers;
  if (error.retry_after_seconds > 0)
    headers.emplace_back("Retry-After", StrCat(error.retry_after_seconds));
  // openai's clients would try again what can never work.
  if (error.http_status == 501) headers.emplace_back("x-should-retry", "false");
  call.exchange->Note("error", error.code);
  const bool is_anthropic = IsAnthropic(call.request().path);
  const Json body = is_anthropic ? AnthropicErrorJson(error) : error.ToJson();
  call.exchange->Respond(
      {.status = error.http_status, .body = WriteJson(body), .headers = std::move(headers)});
}

void Service::Handle(const std::shared_ptr<Exchange>& exchange) const {
  const HttpRequest& request = exchange->request();
  const std::string id = RequestIdFor(request);
  exchange->Note("request_id", id);
  Call call{exchange, CorsHeaders(request.Header("origin"), config_.allowed_origins), Access()};
  const bool page_allowed = !call.headers.empty();
  call.headers.emplace_back("x-request-id", id);
  if (request.method == "OPTIONS") {
    // A preflight carries no key.
    if (page_allowed) {
      for (auto& header : PreflightHeaders(request)) call.headers.push_back(std::move(header));
    }
    return exchange->Respond({.status = 204, .headers = call.headers});
  }
  if (!MayAsk(request, *call.access)) {
    call.headers.emplace_back("WWW-Authenticate", "Bearer");
    return SendError(
        call,
        {.http_status = 401,
         .message = "the API key is missing or wrong; send the header Authorization: Bearer KEY",
         .code = "invalid_api_key"});
  }
  const std::string_view retry = request.Header("x-stainless-retry-count");
  if (retry.find_first_of("123456789") == 0) metrics_->ObserveRetry();
  Route(call);
}

std::shared_ptr<const AccessKeys> Service::Access() const {
  const std::lock_guard lock(access_mutex_);
  return access_;
}

void Service::ReplaceKeys(AccessKeys access) {
  auto replacement = std::make_shared<const AccessKeys>(std::move(access));
  key_limiter_->Replace(*replacement);
  const std::lock_guard lock(access_mutex_);
  access_ = std::move(replacement);
}

bool Service::MayAsk(const HttpRequest& request, const AccessKeys& access) {
  if (IsPublic(request.path)) return true;
  const std::string_view key = PresentedKey(request);
  if (IsKnownKey(key, access.admin)) return true;
  return IsAdmin(request.path) ? false : access.api.empty() || IsKnownKey(key, access.api);
}

void Service::Route(const Call& call) const {
  const std::string& path = call.request().path;
  const std::string& method = call.request().method;
  const bool is_model = path.starts_with(kModelPrefix) && path.size() > kModelPrefix.size();
  const RouteInfo* route = FindRoute(path);
  if (route == nullptr && !is_model) {
    const bool known = std::find(std::begin(kNotImplemented), std::end(kNotImplemented), path) !=
                       std::end(kNotImplemented);
    if (known) {
      return SendError(call, {.http_status = 501,
                              .message = StrCat(path, " is not implemented in lserve ", kVersion,
                                                "; see /v1/chat/completions"),
                              .code = "not_implemented"});
    }
    return SendError(call,
                     {.http_status = 404,
                      .message = StrCat("there is no ", ShownValue(Json(path)),
                                        "; see /v1/models, /v1/chat/completions, /v1/completions"),
                      .code = "not_found"});
  }
  const std::string_view expected = is_model ? "GET" : route->method;
  if (method != expected && !(method == "HEAD" && expected == "GET")) {
    Call with_allow = call;
    with_allow.headers.emplace_back("Allow", std::string(expected));
    return SendError(with_allow,
                     {.http_status = 405,
                      .message = StrCat(path, " is asked with ", ShownValue(Json(method)),
                                        ", expected ", expected),
                      .code = "method_not_allowed"});
  }
  Call limited = call;
  if (const auto error = RefuseEarly(&limited)) return SendError(limited, *error);
  if (is_model) return Models(call, std::string_view(path).substr(kModelPrefix.size()));
  if (path == "/health") return Health(call);
  if (path == "/ready") return Ready(call);
  if (path == "/version") return Send(call, Json(Json::Object{{"version", Json(kVersion)}}));
  if (path == "/metrics") {
    return call.exchange->Respond({.content_type = "text/plain; version=0.0.4; charset=utf-8",
                                   .body = metrics_->Render(engine_->snapshot(), connections_()),
                                   .headers = call.headers});
  }
  if (path == "/v1/models") return Models(call, "");
  if (path == "/v1/chat/completions") return Chat(call);
  if (path == "/v1/completions") return Completions(call);
  if (path == "/reset_prefix_cache") return ResetPrefixCache(call);
  if (path == "/v1/messages") return Messages(call);
  if (path == "/v1/messages/count_tokens") return CountTokens(call);
  if (path == "/v1/responses") return Responses(call);
  if (path == "/tokenize") return Tokenize(call);
  if (path == "/detokenize") return Detokenize(call);
  return ApplyTemplate(call);
}

void Service::Health(const Call& call) const {
  Send(call, Json(Json::Object{{"status", Json("ok")}}));
}

void Service::Ready(const Call& call) const {
  const EngineSnapshot engine = engine_->snapshot();
  std::string why;
  if (!engine.failure.empty()) {
    why = StrCat("the engine has failed: ", engine.failure);
  } else if (draining_) {
    why = "the server is shutting down";
  } else if (engine.seconds_since_last_step > config_.step_deadline_seconds) {
    why = StrCat("no engine step for ", static_cast<int64_t>(engine.seconds_since_last_step), " s");
  }
  const std::string status = why.empty() ? "ready" : why;
  Send(call,
       Json(Json::Object{{"status", Json(status)},
                         {"seconds_since_last_step", Json(engine.seconds_since_last_step)}}),
       why.empty() ? 200 : 503);
}

void Service::ResetPrefixCache(const Call& call) const {
  engine_->DropPrefixes();
  Send(call, Json(Json::Object{{"status", Json("ok")}}));
}

Json Service::ModelJson(const std::string& name) const {
  return Json(Json::Object{{"id", Json(name)},
                           {"object", Json("model")},
                           {"created", Json(started_at_)},
                           {"owned_by", Json("lserve")},
                           {"max_model_len", Json(engine_->engine().info().max_model_len)}});
}

void Service::Models(const Call& call, std::string_view id) const {
  if (!id.empty()) {
    if (const std::optional<ApiError> error = CheckModel(std::string(id)))
      return SendError(call, *error);
    return Send(call, ModelJson(std::string(id)));
  }
  Json::Array list;
  for (const std::string& name : config_.served_model_names) list.push_back(ModelJson(name));
  Send(call, Json(Json::Object{{"object", Json("list")}, {"data", Json(std::move(list))}}));
}

std::optional<ApiError> Service::CheckModel(const std::string& model) const {
  const std::vector<std::string>& names = config_.served_model_names;
  if (model.empty() || std::find(names.begin(), names.end(), model) != names.end())
    return std::nullopt;
  return ApiError{.http_status = 404,
                  .message = StrCat("the model ", ShownValue(Json(model)),
                                    " does not exist; this server has ", names[0]),
                  .code = "model_not_found",
                  .param = "model"};
}

std::optional<ApiError> Service::Render(const ChatBody& body, RenderedPrompt* out) const {
  ChatRequest request;
  request.messages = MessagesForTemplate(tool_style_, body.messages, body.tools);
  request.tools = ToolsForTemplate(tool_style_, body.tools);
  request.extra = body.template_arguments;
  request.add_generation_prompt = body.add_generation_prompt;
  request.date = config_.date;
  Result<RenderedPrompt> rendered = engine_->engine().tokenizer()->RenderChat(request);
  if (!rendered.ok()) return BadField("messages", rendered.status().message());
  *out = std::move(rendered).value();
  return std::nullopt;
}

void Service::Chat(const Call& call) const {
  ChatBody body;
  if (const auto error = ReadBody(call.request(), &body)) return SendError(call, *error);
  if (const auto error = CheckModel(body.params.model)) return SendError(call, *error);
  auto format = MakeOpenAiReplies({.kind = ReplyKind::kChat,
                                   .id = RandomName("chatcmpl-"),
                                   .created = UnixSeconds(),
                                   .model = ModelName(body.params),
                                   .include_usage = body.params.include_usage,
                                   .return_progress = body.params.return_progress,
                                   .scores = body.params.top_logprobs.has_value()},
                                  *engine_->engine().tokenizer());
  Converse(call, std::move(body), std::move(format));
}

void Service::Converse(const Call& call, ChatBody body, std::unique_ptr<ReplyFormat> format) const {
  Answering answering;
  answering.prompts.resize(1);
  if (const auto error = TokenizeChat(body, &answering.prompts[0])) return SendError(call, *error);
  answering.format = std::move(format);
  answering.tool_style = tool_style_;
  answering.tools = std::move(body.tools);
  Generate(call, body.params, std::move(answering));
}

void Service::Messages(const Call& call) const {
  ChatBody body;
  const auto parse = [&](const Json& json) { return ParseMessagesBody(json, false, &body); };
  if (const auto error = ReadBodyWith(call.request(), parse)) return SendError(call, *error);
  if (const auto error = CheckModel(body.params.model)) return SendError(call, *error);
  auto format = MakeAnthropicReplies(ModelName(body.params));
  Converse(call, std::move(body), std::move(format));
}

void Service::CountTokens(const Call& call) const {
  ChatBody body;
  const auto parse = [&](const Json& json) { return ParseMessagesBody(json, true, &body); };
  if (const auto error = ReadBodyWith(call.request(), parse)) return SendError(call, *error);
  if (const auto error = CheckModel(body.params.model)) return SendError(call, *error);
  std::vector<int32_t> tokens;
  if (const auto error = TokenizeChat(body, &tokens)) return SendError(call, *error);
  Send(call, Json(Json::Object{{"input_tokens", Json(static_cast<int64_t>(tokens.size()))}}));
}

void Service::Responses(const Call& call) const {
  ChatBody body;
  const auto parse = [&](const Json& json) { return ParseResponsesBody(json, &body); };
  if (const auto error = ReadBodyWith(call.request(), parse)) return SendError(call, *error);
  if (const auto error = CheckModel(body.params.model)) return SendError(call, *error);
  auto format = MakeResponsesReplies(ModelName(body.params), body);
  Converse(call, std::move(body), std::move(format));
}

std::optional<ApiError> Service::TokenizeChat(const ChatBody& body,
                                              std::vector<int32_t>* out) const {
  RenderedPrompt rendered;
  if (auto error = Render(body, &rendered)) return error;
  Result<std::vector<TokenId>> tokens = engine_->engine().tokenizer()->EncodeChat(rendered);
  if (!tokens.ok()) return BadField("messages", tokens.status().message());
  *out = std::move(tokens).value();
  return std::nullopt;
}

std::string Service::ModelName(const GenerationParams& params) const {
  return params.model.empty() ? config_.served_model_names[0] : params.model;
}

void Service::Completions(const Call& call) const {
  CompletionBody body;
  if (const auto error = ReadBody(call.request(), &body)) return SendError(call, *error);
  if (const auto error = CheckModel(body.params.model)) return SendError(call, *error);
  const Tokenizer& tokenizer = *engine_->engine().tokenizer();
  Answering answering;
  std::vector<std::string> echoes;
  for (CompletionPrompt& given : body.prompts) {
    std::vector<int32_t> prompt;
    std::string echo;
    if (given.token_ids.empty()) {
      Result<std::vector<TokenId>> tokens = tokenizer.Encode(given.text);
      if (!tokens.ok()) return SendError(call, BadField("prompt", tokens.status().message()));
      prompt = std::move(tokens).value();
      if (body.echo) echo = std::move(given.text);
    } else {
      // Before decoding, for an id beyond the vocabulary is the client's mistake.
      prompt = std::move(given.token_ids);
      if (body.echo) {
        Result<std::string> text = tokenizer.Decode(prompt);
        if (!text.ok()) return SendError(call, BadField("prompt", text.status().message()));
        echo = std::move(text).value();
      }
    }
    answering.prompts.push_back(std::move(prompt));
    if (body.echo) echoes.insert(echoes.end(), static_cast<size_t>(body.params.n), echo);
  }
  answering.format = MakeOpenAiReplies({.kind = ReplyKind::kCompletion,
                                        .id = RandomName("cmpl-"),
                                        .created = UnixSeconds(),
                                        .model = ModelName(body.params),
                                        .include_usage = body.params.include_usage,
                                        .return_progress = body.params.return_progress,
                                        .scores = body.params.top_logprobs.has_value(),
                                        .echoes = std::move(echoes)},
                                       tokenizer);
  Generate(call, body.params, std::move(answering));
}

std::optional<ApiError> Service::MakeRequest(const GenerationParams& params,
                                             std::vector<int32_t> prompt,
                                             Request* out) const {
  const Engine& engine = engine_->engine();
  Request request;
  request.prompt = std::move(prompt);
  SamplingParams& sampling = request.sampling;
  sampling = config_.default_sampling;
  sampling.temperature = params.temperature.value_or(sampling.temperature);
  sampling.top_p = params.top_p.value_or(sampling.top_p);
  sampling.min_p = params.min_p.value_or(sampling.min_p);
  sampling.repetition_penalty = params.repetition_penalty.value_or(sampling.repetition_penalty);
  sampling.presence_penalty = params.presence_penalty.value_or(sampling.presence_penalty);
  sampling.frequency_penalty = params.frequency_penalty.value_or(sampling.frequency_penalty);
  if (params.top_k) sampling.top_k = static_cast<int>(*params.top_k);
  sampling.seed = params.seed ? static_cast<uint64_t>(*params.seed) : RandomBits();
  sampling.logit_bias = params.logit_bias;
  request.min_tokens = params.min_tokens;
  request.ignore_eos = params.ignore_eos;
  request.stop = params.stop;
  request.stop_token_ids = params.stop_token_ids;
  request.cache_salt = params.cache_salt;
  request.priority = params.priority;
  if (!config_.priorities && params.priority != 0) {
    return BadField("priority", StrCat("priority is ", params.priority,
                                       ", expected 0: this server serves in order of arrival "
                                       "(--scheduling-policy fcfs)"));
  }
  if (params.attention || params.token_budget) {
    AttentionSettings attention = engine.config().attention;
    attention.mode = params.attention.value_or(attention.mode);
    attention.token_budget = params.token_budget.value_or(attention.token_budget);
    if (const std::vector<std::string> problems = attention.Problems(); !problems.empty()) {
      return BadField("sparse", problems.front());
    }
    request.attention = attention;
  }
  const int64_t length = static_cast<int64_t>(request.prompt.size());
  const int64_t longest = engine.info().max_model_len;
  const int64_t room = longest - length;
  if (room < params.max_tokens.value_or(1)) return TooLong(length, params.max_tokens, longest);
  request.max_tokens = params.max_tokens.value_or(
      std::max<int64_t>({1, std::min(config_.default_max_tokens, room), params.min_tokens}));
  if (config_.prefix_caching) request.keep_prefix = length;
  Status status = engine.Check(request);
  // The client asked for no length: the cache decides, as long as there is some answer.
  while (status.code() == Code::kOutOfMemory && !params.max_tokens && request.max_tokens > 16) {
    request.max_tokens /= 2;
    status = engine.Check(request);
  }
  if (!status.ok()) return FromEngineStatus(status);
  *out = std::move(request);
  return std::nullopt;
}

void Service::Generate(const Call& call,
                       const GenerationParams& params,
                       Answering answering) const {
  std::shared_ptr<TokenMasker> masker;
  if (const auto error =
          grammars_.Find(params.format, answering.tools, answering.tool_style, &masker))
    return SendError(call, *error);
  std::vector<Request> requests;
  for (std::vector<int32_t>& prompt : answering.prompts) {
    Request request;
    if (const auto error = MakeRequest(params, std::move(prompt), &request))
      return SendError(call, *error);
    for (int i = 0; i < params.n; ++i) {
      requests.push_back(request);
      requests.back().sampling.seed += static_cast<uint64_t>(i);
      if (masker != nullptr)
        requests.back().constraint = std::make_shared<GrammarConstraint>(masker);
    }
  }
  // With one prompt and several choices, the others start where the first one's kept prefix ends.
  const bool first_alone = config_.prefix_caching && answering.prompts.size() == 1 && params.n > 1;
  GenerationSetup setup;
  setup.exchange = call.exchange;
  setup.engine = engine_;
  setup.format = std::move(answering.format);
  setup.headers = call.headers;
  setup.stream = params.stream;
  setup.choices_per_prompt = static_cast<size_t>(params.n);
  setup.stop_token_ids = params.stop_token_ids;
  setup.tool_style = answering.tool_style;
  setup.tools = std::move(answering.tools);
  setup.heartbeat_seconds = config_.heartbeat_seconds;
  if (const auto error = TakeLease(call, requests, &setup))
    return SendError({call.exchange, std::move(setup.headers)}, *error);
  if (const auto refusal = Generation::Start(std::move(setup), std::move(requests), first_alone,
                                             params.top_logprobs)) {
    SendError(call, FromRefusal(*refusal));
  }
}

bool Service::IsLimited(const Call& call) {
  return !call.access->api.empty() && !IsKnownKey(PresentedKey(call.request()), call.access->admin);
}

std::optional<ApiError> Service::RefuseEarly(Call* call) const {
  if (!Generates(call->request().path) || !IsLimited(*call)) return std::nullopt;
  std::optional<KeyAdmission> refusal = key_limiter_->RefuseEarly(PresentedKey(call->request()));
  if (!refusal) return std::nullopt;
  for (auto& header : refusal->headers) call->headers.push_back(std::move(header));
  metrics_->ObserveRefused(refusal->refused_by);
  return std::move(refusal->error);
}

std::optional<ApiError> Service::TakeLease(const Call& call,
                                           const std::vector<Request>& requests,
                                           GenerationSetup* setup) const {
  if (!IsLimited(call)) return std::nullopt;
  int64_t tokens = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    // A prompt counts once, whatever the number of its choices.
    if (i % setup->choices_per_prompt == 0)
      tokens += static_cast<int64_t>(requests[i].prompt.size());
    tokens += requests[i].max_tokens;
  }
  KeyAdmission admission = key_limiter_->Admit(PresentedKey(call.request()), tokens);
  for (auto& header : admission.headers) setup->headers.push_back(std::move(header));
  setup->lease = std::move(admission.lease);
  if (admission.refused_by.empty()) return std::nullopt;
  metrics_->ObserveRefused(admission.refused_by);
  return std::move(admission.error);
}

void Service::Tokenize(const Call& call) const {
  TokenizeBody body;
  if (const auto error = ReadBody(call.request(), &body)) return SendError(call, *error);
  if (const auto error = CheckModel(body.model)) return SendError(call, *error);
  const Tokenizer& tokenizer = *engine_->engine().tokenizer();
  Result<std::vector<TokenId>> tokens = std::vector<TokenId>();
  if (body.text) {
    EncodeOptions options;
    options.add_special_tokens = body.add_special_tokens;
    tokens = tokenizer.Encode(*body.text, options);
  } else {
    RenderedPrompt rendered;
    if (const auto error = Render(body.chat, &rendered)) return SendError(call, *error);
    tokens = tokenizer.EncodeChat(rendered);
  }
  if (!tokens.ok())
    return SendError(call, BadField(body.text ? "prompt" : "messages", tokens.status().message()));
  Json::Array ids, strings;
  for (const TokenId id : tokens.value()) {
    ids.emplace_back(int64_t{id});
    if (body.return_token_strings) strings.emplace_back(tokenizer.IdToToken(id).value_or(""));
  }
  Json::Object reply = {{"count", Json(static_cast<int64_t>(ids.size()))},
                        {"max_model_len", Json(engine_->engine().info().max_model_len)},
                        {"tokens", Json(std::move(ids))}};
  if (body.return_token_strings) reply.emplace_back("token_strs", Json(std::move(strings)));
  Send(call, Json(std::move(reply)));
}

void Service::Detokenize(const Call& call) const {
  DetokenizeBody body;
  if (const auto error = ReadBody(call.request(), &body)) return SendError(call, *error);
  if (const auto error = CheckModel(body.model)) return SendError(call, *error);
  Result<std::string> text =
      engine_->engine().tokenizer()->Decode(body.tokens, /*skip_special=*/false);
  if (!text.ok()) return SendError(call, BadField("tokens", text.status().message()));
  // vLLM's name, and llama.cpp's.
  Send(call, Json(Json::Object{{"prompt", Json(text.value())}, {"content", Json(text.value())}}));
}

void Service::ApplyTemplate(const Call& call) const {
  ChatBody body;
  if (const auto error = ReadBody(call.request(), &body)) return SendError(call, *error);
  if (const auto error = CheckModel(body.params.model)) return SendError(call, *error);
  RenderedPrompt rendered;
  if (const auto error = Render(body, &rendered)) return SendError(call, *error);
  Send(call, Json(Json::Object{{"prompt", Json(std::move(rendered.text))}}));
}

}  // namespace lserve
