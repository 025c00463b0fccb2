// A server with the bundled model on a free port of this machine, run by a thread of the test.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/json.h"
#include "engine/engine_inputs.h"
#include "server/server.h"
#include "tests/server/http_client.h"

namespace lserve {

class RunningServer {
 public:
  using Change = std::function<void(EngineConfig&, ServerConfig&)>;
  explicit RunningServer(const Change& change = {}, EngineInputs inputs = {});
  ~RunningServer();
  RunningServer(const RunningServer&) = delete;
  RunningServer& operator=(const RunningServer&) = delete;

  int port() const { return server_->port(); }
  EngineSnapshot snapshot() const { return server_->snapshot(); }
  double Metric(std::string_view name, std::string_view label = "") const;
  // Polls until `done`, at most 60 s.
  bool WaitFor(const std::function<bool()>& done) const;
  Status ReloadCertificate() { return server_->ReloadCertificate(); }
  void ReplaceKeys(AccessKeys access) { server_->ReplaceKeys(std::move(access)); }
  // As a SIGTERM does.
  void Signal() { ++signals_; }
  // Waits for Server::Run to end.
  Status Ended();
  std::vector<std::string> log() const;

 private:
  std::unique_ptr<Server> server_;
  std::atomic<int> signals_ = 0;
  Status status_;
  mutable std::mutex mutex_;
  std::vector<std::string> log_;
  std::thread thread_;
};

// A chat body with one user message; `more` are further members, each with a leading comma.
std::string ChatJson(const std::string& content, const std::string& more = "");
// `words` words, about two tokens each.
std::string LongText(int words);
Json ParsedBody(const HttpReply& reply);
// The member at a path such as "choices.0.message.content", or null.
Json At(const Json& json, std::string_view path);
// The data of each event of a stream, comments left out.
std::vector<std::string> SseEvents(const std::string& body);

}  // namespace lserve
