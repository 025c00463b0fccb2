#include "server/server.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "base/json.h"
#include "base/strings.h"
#include "base/wall_time.h"

namespace lserve {
namespace {

constexpr auto kPollPeriod = std::chrono::milliseconds(20);
// What aborted requests get to hear why.
constexpr double kAbortSeconds = 2;

std::string LogLine(const ExchangeRecord& record) {
  Json::Object line = {{"time", Json(static_cast<double>(UnixMilliseconds()) / 1e3)},
                       {"method", Json(record.method)},
                       {"path", Json(record.path.substr(0, 200))},
                       {"status", Json(record.status)},
                       {"ms", Json(record.milliseconds)},
                       {"bytes", Json(static_cast<int64_t>(record.bytes_sent))}};
  if (record.disconnected) line.emplace_back("disconnected", Json(true));
  for (const auto& [name, value] : record.notes) line.emplace_back(name, Json(value));
  // Paths are bytes from outside: escaped, they can not break the line.
  return WriteJson(Json(std::move(line)), {.ascii_only = true});
}

}  // namespace

size_t BodyLimit(int64_t max_model_len) {
  constexpr size_t kBytesPerToken = 32;
  return (size_t{1} << 20) + static_cast<size_t>(max_model_len) * kBytesPerToken;
}

Server::Server(std::unique_ptr<Engine> engine,
               ServerConfig config,
               std::unique_ptr<HttpServer> http)
    : config_(std::move(config)),
      http_(std::move(http)),
      metrics_(config_.service.served_model_names[0], engine->info().max_model_len),
      engine_(std::move(engine), config_.queue, &metrics_),
      service_(config_.service, &engine_, &metrics_, [this] { return http_->connections(); }) {
  http_->Start(
      {.handle = [this](const std::shared_ptr<Exchange>& exchange) { service_.Handle(exchange); },
       .on_finished = [this](const ExchangeRecord& record) { Finished(record); }});
}

Server::~Server() {
  http_->Stop();
}

Result<std::unique_ptr<Server>> Server::Start(std::unique_ptr<Engine> engine, ServerConfig config) {
  if (engine->tokenizer() == nullptr) {
    return Status(
        Code::kInvalidArgument,
        StrCat(
            engine->config().model_dir,
            ": has no tokenizer.json, expected one, for requests are text; add the model's file"));
  }
  if (config.service.served_model_names.empty())
    config.service.served_model_names = {engine->info().model};
  config.http.read.body_bytes = BodyLimit(engine->info().max_model_len);
  std::unique_ptr<HttpServer> http = LS_TRY(HttpServer::Listen(config.address, config.http));
  return std::unique_ptr<Server>(new Server(std::move(engine), std::move(config), std::move(http)));
}

void Server::Finished(const ExchangeRecord& record) {
  metrics_.ObserveHttp(Service::HandlerName(record.path),
                       record.method == "GET" || record.method == "POST" ? record.method : "other",
                       record.status);
  if (config_.access_log) config_.access_log(LogLine(record));
}

Status Server::CheckEngine() {
  const EngineSnapshot engine = engine_.snapshot();
  if (!engine.failure.empty())
    return Status(Code::kDeviceLost, StrCat("the engine has failed: ", engine.failure));
  const double limit = config_.watchdog_seconds;
  // A process that was stopped (SIGSTOP, a suspended machine) made no step meanwhile, and did not
  // look either: the engine's time begins anew.
  if (since_check_.seconds() > limit / 2) since_resumed_ = Stopwatch();
  since_check_ = Stopwatch();
  if (limit <= 0 || std::min(engine.seconds_since_last_step, since_resumed_.seconds()) < limit)
    return Status();
  return Status(
      Code::kDeviceLost,
      StrCat("no engine step for ", static_cast<int64_t>(engine.seconds_since_last_step),
             " s, expected one within ", static_cast<int64_t>(config_.watchdog_seconds),
             " s (--watchdog-timeout); ", engine.requests_running, " requests run, ",
             engine.requests_waiting, " wait, ", engine.kv_bytes_in_use, " of ",
             engine.kv_budget_bytes, " KV bytes are in use, ", engine.steps, " steps were made"));
}

Status Server::Run(const std::function<int()>& signals) {
  since_check_ = since_resumed_ = Stopwatch();
  while (signals() == 0) {
    LS_TRY(CheckEngine());
    std::this_thread::sleep_for(kPollPeriod);
  }
  service_.BeginDrain();
  engine_.Drain();
  http_->BeginDrain();
  const Stopwatch watch;
  while (http_->exchanges() > 0 && signals() < 2 && watch.seconds() < config_.drain_seconds) {
    LS_TRY(CheckEngine());
    std::this_thread::sleep_for(kPollPeriod);
  }
  // Streams that are still open hear why they end.
  engine_.AbortAll("the server is shutting down");
  const Stopwatch last;
  while (http_->exchanges() > 0 && last.seconds() < kAbortSeconds)
    std::this_thread::sleep_for(kPollPeriod);
  return Status();
}

}  // namespace lserve
