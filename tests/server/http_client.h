// A blocking HTTP/1.1 client on raw sockets, for tests that must also misbehave: send half a
// request, read slowly, leave in the middle.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace lserve {

struct HttpReply {
  int status = 0;                              // 0: the connection ended first
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // unchunked
};

class HttpClient {
 public:
  // Connects to 127.0.0.1.
  explicit HttpClient(int port);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  bool Send(std::string_view bytes);
  // The next reply, or what came of it until the connection ended or `seconds` passed.
  HttpReply ReadReply(double seconds = 60, bool is_head = false);
  // Reads until `text` has been received (true) or the connection ends.
  bool ReadUntil(std::string_view text, double seconds = 60);
  // Whether the server closes within `seconds`.
  bool ReadEnd(double seconds = 60);
  const std::string& received() const { return received_; }
  void Close();
  // Leaves with a reset instead of a goodbye.
  void Reset();
  void SmallReceiveBuffer();

  HttpReply Get(const std::string& path, const std::string& headers = "");
  HttpReply Post(const std::string& path, const std::string& json, const std::string& headers = "");
  static std::string PostBytes(const std::string& path,
                               const std::string& json,
                               const std::string& headers = "");

 private:
  bool ReadSome(double seconds);

  int fd_ = -1;
  std::string received_;
};

HttpReply Get(int port, const std::string& path, const std::string& headers = "");
HttpReply Post(int port,
               const std::string& path,
               const std::string& json,
               const std::string& headers = "");

// The value of a sample in Prometheus text whose line begins with `name`, summed over labels that
// contain `label`; nothing if there is none.
std::optional<double> MetricValue(const std::string& text,
                                  std::string_view name,
                                  std::string_view label = "");

}  // namespace lserve
