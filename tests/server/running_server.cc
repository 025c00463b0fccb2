#include "tests/server/running_server.h"

#include <chrono>
#include <cstdlib>
#include <sstream>

#include "base/clock.h"
#include "base/strings.h"

namespace lserve {

RunningServer::RunningServer(const Change& change, EngineInputs inputs) {
  EngineConfig engine_config;
  engine_config.model_dir = LS_SOURCE_DIR "/models/needle";
  engine_config.num_threads = 2;
  engine_config.kv_cache_bytes = size_t{256} << 20;
  engine_config.max_model_len = 32768;
  engine_config.max_num_batched_tokens = 128;
  ServerConfig server_config;
  server_config.address.port = 0;
  server_config.drain_seconds = 30;
  server_config.service.default_sampling.temperature = 0;
  server_config.service.default_max_tokens = 32;
  server_config.access_log = [this](const std::string& line) {
    const std::lock_guard lock(mutex_);
    log_.push_back(line);
  };
  if (change) change(engine_config, server_config);
  Result<std::unique_ptr<Engine>> engine = Engine::Create(engine_config, std::move(inputs));
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  Result<std::unique_ptr<Server>> server = Server::Start(std::move(engine).value(), server_config);
  EXPECT_TRUE(server.ok()) << server.status().message();
  server_ = std::move(server).value();
  thread_ = std::thread([this] { status_ = server_->Run([this] { return signals_.load(); }); });
}

RunningServer::~RunningServer() {
  signals_ = 2;
  if (thread_.joinable()) thread_.join();
  server_.reset();  // before the log that its threads write to
}

Status RunningServer::Ended() {
  if (thread_.joinable()) thread_.join();
  return status_;
}

double RunningServer::Metric(std::string_view name, std::string_view label) const {
  const HttpReply reply = Get(port(), "/metrics");
  EXPECT_EQ(reply.status, 200);
  const std::optional<double> value = MetricValue(reply.body, name, label);
  EXPECT_TRUE(value.has_value()) << name;
  return value.value_or(-1);
}

bool RunningServer::WaitFor(const std::function<bool()>& done) const {
  const Stopwatch watch;
  while (watch.seconds() < 60) {
    if (done()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return false;
}

std::vector<std::string> RunningServer::log() const {
  const std::lock_guard lock(mutex_);
  return log_;
}

std::string ChatJson(const std::string& content, const std::string& more) {
  return StrCat(R"({"model":"needle","messages":[{"role":"user","content":)",
                WriteJson(Json(content)), "}]", more, "}");
}

std::string LongText(int words) {
  std::string text;
  for (int i = 0; i < words; ++i) text += StrCat("word", i % 97, i % 11 == 10 ? ". " : " ");
  return text;
}

Json ParsedBody(const HttpReply& reply) {
  Result<Json> json = ParseJson(reply.body);
  EXPECT_TRUE(json.ok()) << json.status().message() << ": " << reply.body;
  return json.ok() ? std::move(json).value() : Json();
}

Json At(const Json& json, std::string_view path) {
  const Json* at = &json;
  while (!path.empty()) {
    const size_t dot = path.find('.');
    const std::string name(path.substr(0, dot));
    path = dot == std::string_view::npos ? "" : path.substr(dot + 1);
    if (at->is_array()) {
      const size_t index = static_cast<size_t>(std::atoi(name.c_str()));
      if (index >= at->as_array().size()) return Json();
      at = &at->as_array()[index];
    } else {
      at = at->Find(name);
    }
    if (at == nullptr) return Json();
  }
  return *at;
}

std::vector<std::string> SseEvents(const std::string& body) {
  std::vector<std::string> events;
  std::istringstream lines(body);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("data: ")) events.push_back(line.substr(6));
  }
  return events;
}

}  // namespace lserve
