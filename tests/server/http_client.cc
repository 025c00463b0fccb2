#include "tests/server/http_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <sstream>

#include "base/clock.h"
#include "base/strings.h"

namespace lserve {

HttpClient::HttpClient(int port) {
  fd_ = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) Close();
}

HttpClient::~HttpClient() {
  Close();
}

void HttpClient::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void HttpClient::Reset() {
  const linger now = {.l_onoff = 1, .l_linger = 0};
  setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
  Close();
}

void HttpClient::SmallReceiveBuffer() {
  const int bytes = 4096;
  setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
}

bool HttpClient::Send(std::string_view bytes) {
  while (!bytes.empty() && fd_ >= 0) {
    const ssize_t n = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return bytes.empty();
}

bool HttpClient::ReadSome(double seconds) {
  if (fd_ < 0 || seconds <= 0) return false;
  pollfd wait = {.fd = fd_, .events = POLLIN, .revents = 0};
  if (poll(&wait, 1, static_cast<int>(seconds * 1e3)) <= 0) return false;
  char bytes[16384];
  const ssize_t n = recv(fd_, bytes, sizeof(bytes), 0);
  if (n <= 0) {
    Close();
    return false;
  }
  received_.append(bytes, static_cast<size_t>(n));
  return true;
}

bool HttpClient::ReadUntil(std::string_view text, double seconds) {
  const Stopwatch watch;
  while (received_.find(text) == std::string::npos) {
    if (!ReadSome(seconds - watch.seconds())) return false;
  }
  return true;
}

bool HttpClient::ReadEnd(double seconds) {
  const Stopwatch watch;
  while (ReadSome(seconds - watch.seconds())) {
  }
  return fd_ < 0;
}

HttpReply HttpClient::ReadReply(double seconds, bool is_head) {
  const Stopwatch watch;
  HttpReply reply;
  if (!ReadUntil("\r\n\r\n", seconds)) return reply;
  const size_t head_end = received_.find("\r\n\r\n") + 4;
  std::istringstream head(received_.substr(0, head_end));
  std::string line;
  std::getline(head, line);
  reply.status = line.size() > 12 ? std::atoi(line.c_str() + 9) : 0;
  while (std::getline(head, line) && line.size() > 1) {
    const size_t colon = line.find(':');
    std::string name = line.substr(0, colon);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    reply.headers[name] = line.substr(colon + 2, line.size() - colon - 3);  // without ": " and \r
  }
  received_.erase(0, head_end);
  if (is_head || reply.status == 204) return reply;
  if (reply.headers.contains("content-length")) {
    const size_t length = static_cast<size_t>(std::atoll(reply.headers["content-length"].c_str()));
    while (received_.size() < length && ReadSome(seconds - watch.seconds())) {
    }
    reply.body = received_.substr(0, length);
    received_.erase(0, length);
    return reply;
  }
  if (reply.headers.contains("transfer-encoding")) {
    for (;;) {
      if (!ReadUntil("\r\n", seconds - watch.seconds())) return reply;
      const size_t line_end = received_.find("\r\n");
      const size_t size = std::strtoul(received_.c_str(), nullptr, 16);
      while (received_.size() < line_end + 2 + size + 2 && ReadSome(seconds - watch.seconds())) {
      }
      reply.body += received_.substr(line_end + 2, size);
      received_.erase(0, line_end + 2 + size + 2);
      if (size == 0) return reply;
    }
  }
  ReadEnd(seconds - watch.seconds());
  reply.body = received_;
  return reply;
}

std::string HttpClient::PostBytes(const std::string& path,
                                  const std::string& json,
                                  const std::string& headers) {
  return StrCat("POST ", path, " HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n",
                headers, "Content-Length: ", json.size(), "\r\n\r\n", json);
}

HttpReply HttpClient::Post(const std::string& path,
                           const std::string& json,
                           const std::string& headers) {
  Send(PostBytes(path, json, headers));
  return ReadReply();
}

HttpReply HttpClient::Get(const std::string& path, const std::string& headers) {
  Send(StrCat("GET ", path, " HTTP/1.1\r\nHost: test\r\n", headers, "\r\n"));
  return ReadReply();
}

HttpReply Get(int port, const std::string& path, const std::string& headers) {
  return HttpClient(port).Get(path, headers);
}
HttpReply Post(int port,
               const std::string& path,
               const std::string& json,
               const std::string& headers) {
  return HttpClient(port).Post(path, json, headers);
}

std::optional<double> MetricValue(const std::string& text,
                                  std::string_view name,
                                  std::string_view label) {
  std::optional<double> total;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(std::string(name) + "{") || line.find(label) == std::string::npos)
      continue;
    total = total.value_or(0) + std::atof(line.substr(line.rfind(' ') + 1).c_str());
  }
  return total;
}

}  // namespace lserve
