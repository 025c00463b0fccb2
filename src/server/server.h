// Server: an engine behind HTTP: engine thread, service, HTTP server and the rules by which they
// start, drain and end. Used by `lserve serve` and the server tests.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "lserve/engine.h"
#include "server/engine_thread.h"
#include "server/http_server.h"
#include "server/metrics.h"
#include "server/service.h"

namespace lserve {

struct ServerConfig {
  HttpAddress address;
  // body_bytes is derived from the context length.
  HttpLimits http;
  QueueLimits queue;
  ServiceConfig service;
  // After SIGTERM, requests in flight get this long.
  double drain_seconds = 30;
  // A busy engine without a step for this long counts as dead: Run() ends with an error. 0: never.
  double watchdog_seconds = 300;
  // A JSON line per request, without prompts or answers. On any thread; unset: none.
  std::function<void(const std::string&)> access_log;
};

// Bytes of a request whose prompt is as long as the context allows: JSON may write a character in
// six bytes ("\u00e9"), and a token id with its comma in eight.
size_t BodyLimit(int64_t max_model_len);

class Server {
 public:
  // Takes the engine over and answers from now on. Needs a tokenizer.
  static Result<std::unique_ptr<Server>> Start(std::unique_ptr<Engine> engine, ServerConfig config);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // As HttpServer's.
  Status ReloadCertificate() { return http_->ReloadCertificate(); }
  // As Service's.
  void ReplaceKeys(AccessKeys access) { service_.ReplaceKeys(std::move(access)); }

  // Until `signals()`, asked some 50 times a second, is 1 and what was in flight has ended (or the
  // drain time is over), or 2. An error: the engine failed or hangs; then the process should end
  // without destroying this, for its thread may never return.
  Status Run(const std::function<int()>& signals);

  int port() const { return http_->port(); }
  std::string address() const { return http_->address(); }
  EngineSnapshot snapshot() const { return engine_.snapshot(); }

 private:
  Server(std::unique_ptr<Engine> engine, ServerConfig config, std::unique_ptr<HttpServer> http);
  void Finished(const ExchangeRecord& record);
  Status CheckEngine();

  const ServerConfig config_;
  // Exchanges refer to what stands below: HTTP ends first, by ~Server.
  std::unique_ptr<HttpServer> http_;
  Metrics metrics_;
  EngineThread engine_;
  Service service_;
  Stopwatch since_check_;    // of the engine, by Run()
  Stopwatch since_resumed_;  // Run() or, if the process was stopped, that
};

}  // namespace lserve
