// HttpServer: HTTP/1.1 over TCP, with TLS if wanted, or a Unix socket (Boost.Beast and Asio, in
// http_server.cc and what it alone includes). It limits what a client can take: connections,
// header, body, time. It knows no route and no JSON but that of its own errors. Used by Server.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "server/exchange.h"
#include "server/http_reader.h"

namespace lserve {

struct HttpLimits {
  ReadLimits read = {};
  int connections = 1024;
  // For the whole header, from its first byte.
  double header_seconds = 10;
  // For the body: this, and a second more for every 64 KiB.
  double body_seconds = 30;
  // Between two requests of one connection.
  double idle_seconds = 75;
  // A client that takes nothing for this long is given up.
  double write_seconds = 30;
  // Bytes that wait for a slow client.
  size_t unsent_bytes = size_t{4} << 20;
};

struct HttpAddress {
  std::string host = "127.0.0.1";
  int port = 8000;               // 0: any free one
  std::string unix_socket = {};  // if set, instead of host and port
  // PEM files; both or none. Not with a Unix socket.
  std::string tls_certificate = {};
  std::string tls_key = {};
};

// What is known when an exchange is over.
struct ExchangeRecord {
  std::string method;
  std::string path;
  int status = 0;  // 0: the client left before there was one
  bool disconnected = false;
  double milliseconds = 0;
  uint64_t bytes_sent = 0;
  HttpHeaders notes;
};

struct HttpHooks {
  // On a worker thread; must answer sooner or later.
  std::function<void(std::shared_ptr<Exchange>)> handle;
  // On an I/O thread; must be quick.
  std::function<void(const ExchangeRecord&)> on_finished;
};

class HttpServer {
 public:
  // Binds and listens; requests are answered from Start() on.
  static Result<std::unique_ptr<HttpServer>> Listen(const HttpAddress& address,
                                                    const HttpLimits& limits);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  void Start(HttpHooks hooks);
  // Reads the certificate and its key again, for the connections from now on; open ones live on
  // with the old one, as does everything if the files are of no use (the error says why).
  // REQUIRES: TLS. On any thread.
  Status ReloadCertificate();
  // Connections close after their current answer; new ones still get one.
  void BeginDrain();
  // Closes everything and waits for the threads. No hook runs afterwards.
  void Stop();

  int port() const;             // 0: a Unix socket
  std::string address() const;  // "http://127.0.0.1:8000", "unix:/run/lserve.sock"
  int64_t connections() const;
  int64_t exchanges() const;  // being answered now

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lserve
