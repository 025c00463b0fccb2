// Exchange: one HTTP request and the way its answer goes back. The HTTP server implements it, the
// service uses it; so neither knows the other. No JSON here, and no engine.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace lserve {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;
  std::string path;     // without the query
  HttpHeaders headers;  // names in lower case
  std::string body;

  // The first header of that name, or "".
  std::string_view Header(std::string_view lower_case_name) const {
    for (const auto& [name, value] : headers) {
      if (name == lower_case_name) return value;
    }
    return {};
  }
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body = {};
  HttpHeaders headers = {};
};

// Every method may be called on any thread. What is sent after the client left is dropped.
class Exchange {
 public:
  virtual ~Exchange() = default;

  virtual const HttpRequest& request() const = 0;

  // A whole response; or BeginStream, any number of Write, EndStream.
  virtual void Respond(HttpResponse response) = 0;
  // Sends the head at once. Whenever `heartbeat_seconds` pass without a byte, `heartbeat` is sent.
  virtual void BeginStream(HttpResponse head, std::string heartbeat, double heartbeat_seconds) = 0;
  virtual void Write(std::string bytes) = 0;
  virtual void EndStream() = 0;

  // A line for the access log: what HTTP does not know ("prompt_tokens", "12").
  virtual void Note(std::string name, std::string value) = 0;

  // Runs `task` after everything that was posted before; tasks of one exchange never overlap.
  virtual void Post(std::function<void()> task) = 0;
  // Calls `task` once, as a posted one, when the client has left before the answer ended (at once
  // if it already has).
  virtual void OnDisconnect(std::function<void()> task) = 0;
};

}  // namespace lserve
