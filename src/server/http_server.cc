#include "server/http_server.h"

#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "base/strings.h"
#include "server/api_error.h"
#include "server/deadline.h"
#include "server/http_head.h"
#include "server/http_reader.h"
#include "server/tls.h"
#include "server/unix_path.h"

namespace lserve {
namespace {

namespace asio = boost::asio;
using ErrorCode = boost::system::error_code;
using Protocol = asio::generic::stream_protocol;
using Acceptor = asio::basic_socket_acceptor<Protocol>;

// What a client may send ahead while its request is answered; beyond it, it has to wait.
constexpr size_t kReadAheadBytes = size_t{64} << 10;
// How long what a refused client still sends is thrown away, so that it reads the refusal before
// the connection is reset.
constexpr double kLingerSeconds = 2;
constexpr double kStopSeconds = 5;

class Connection;

// What all connections share.
struct Shared {
  explicit Shared(const HttpLimits& given) : limits(given) {}

  const HttpLimits limits;
  HttpHooks hooks;
  bool has_tls = false;
  asio::thread_pool workers{2};
  std::atomic<bool> draining = false;
  std::atomic<int64_t> exchanges = 0;
  std::mutex mutex;
  std::set<Connection*> connections;        // guarded by mutex
  std::shared_ptr<asio::ssl::context> tls;  // guarded by mutex; of connections from now on
};

// One request of a connection. It holds the connection alive; the connection holds it while it is
// being answered.
class HttpExchange : public Exchange, public std::enable_shared_from_this<HttpExchange> {
 public:
  HttpExchange(std::shared_ptr<Connection> connection,
               HttpRequest request,
               bool keep_alive,
               bool is_http10)
      : connection_(std::move(connection)),
        request_(std::move(request)),
        keep_alive_(keep_alive),
        is_http10_(is_http10) {}

  const HttpRequest& request() const override { return request_; }
  void Respond(HttpResponse response) override;
  void BeginStream(HttpResponse head, std::string heartbeat, double heartbeat_seconds) override;
  void Write(std::string bytes) override;
  void EndStream() override;
  void Note(std::string name, std::string value) override;
  void Post(std::function<void()> task) override;
  void OnDisconnect(std::function<void()> task) override;

 private:
  friend class Connection;
  enum class Phase : uint8_t { kWaiting, kStreaming, kEnded, kGone };

  // All below on the connection's strand.
  void SendPart(std::string_view bytes);
  void Beat();
  void ClientGone();
  ExchangeRecord Record() const;

  const std::shared_ptr<Connection> connection_;
  HttpRequest request_;
  const bool keep_alive_;
  const bool is_http10_;
  Phase phase_ = Phase::kWaiting;
  int status_ = 0;
  uint64_t bytes_sent_ = 0;
  std::string heartbeat_;
  double heartbeat_seconds_ = 0;
  bool wrote_since_beat_ = false;
  std::function<void()> on_disconnect_;
  HttpHeaders notes_;
  Stopwatch watch_;
};

// A client's connection. Everything but the constructor runs on its strand.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(asio::io_context& context, std::shared_ptr<Shared> shared)
      : shared_(std::move(shared)),
        strand_(asio::make_strand(context)),
        socket_(strand_),
        read_deadline_(strand_),
        write_deadline_(strand_),
        beat_timer_(strand_),
        buffer_(kReadAheadBytes),
        reader_(shared_->limits.read) {}
  ~Connection() {
    const std::lock_guard lock(shared_->mutex);
    shared_->connections.erase(this);
  }

  Protocol::socket& socket() { return socket_; }
  const Strand& strand() const { return strand_; }

  void Start() {
    if (!shared_->has_tls) return Serve();
    {
      const std::lock_guard lock(shared_->mutex);
      tls_context_ = shared_->tls;
    }
    tls_.emplace(socket_, *tls_context_);
    read_deadline_.Set(shared_->limits.header_seconds,
                       [self = shared_from_this()] { self->Close(); });
    tls_->async_handshake(asio::ssl::stream_base::server,
                          [self = shared_from_this()](const ErrorCode& error) {
                            // Plain HTTP on this port, most likely: there is no answer that both
                            // sides would understand.
                            if (error) return self->Close();
                            self->Serve();
                          });
  }

  // On any thread.
  void CloseIfIdle() {
    asio::post(strand_, [self = shared_from_this()] {
      if (!self->exchange_ && !self->close_after_write_ && !self->busy_reading_) self->Close();
    });
  }
  void Abort() {
    asio::post(strand_, [self = shared_from_this()] { self->Gone(); });
  }

 private:
  friend class HttpExchange;

  void Serve() {
    BeginRequest();
    Read();
  }

  // One read and one write may be outstanding, with TLS as without.
  template <class Handler>
  void ReadSome(const asio::mutable_buffer& buffer, Handler handler) {
    if (tls_) return tls_->async_read_some(buffer, std::move(handler));
    socket_.async_read_some(buffer, std::move(handler));
  }
  template <class Handler>
  void WriteSome(const asio::const_buffer& buffer, Handler handler) {
    if (tls_) return tls_->async_write_some(buffer, std::move(handler));
    socket_.async_write_some(buffer, std::move(handler));
  }

  void BeginRequest() {
    reader_.Begin();
    busy_reading_ = false;
    SetReadDeadline(shared_->limits.idle_seconds);
  }

  void SetReadDeadline(double seconds) {
    read_deadline_.Set(seconds, [self = shared_from_this()] {
      if (!self->busy_reading_ || self->lingering_) return self->Close();
      self->Refuse({.http_status = 408,
                    .message = "the request took too long to arrive",
                    .code = "timeout"});
    });
  }

  void Read() {
    if (reading_ || !socket_.is_open()) return;
    const size_t room = kReadAheadBytes - buffer_.size();
    if (room == 0) return;  // resumed when the next request begins
    reading_ = true;
    ReadSome(buffer_.prepare(std::min<size_t>(room, 16384)),
             [self = shared_from_this()](const ErrorCode& error, size_t bytes) {
               self->reading_ = false;
               if (error) return self->Gone();
               self->buffer_.commit(bytes);
               if (self->lingering_) self->buffer_.consume(self->buffer_.size());
               self->Process();
               self->Read();
             });
  }

  // Parses what is there, as far as no request is being answered.
  void Process() {
    while (!exchange_ && !close_after_write_ && !lingering_ && buffer_.size() > 0) {
      if (!busy_reading_) {
        busy_reading_ = true;
        SetReadDeadline(shared_->limits.header_seconds);
      }
      const auto bytes = buffer_.data();
      const HttpReader::Progress progress =
          reader_.Read({static_cast<const char*>(bytes.data()), bytes.size()});
      buffer_.consume(progress.used);
      if (progress.refused) return Refuse(*progress.refused);
      if (progress.header_ended) {
        SetReadDeadline(shared_->limits.body_seconds +
                        static_cast<double>(reader_.body_bytes()) / 65536);
        if (reader_.expects_continue()) Send("HTTP/1.1 100 Continue\r\n\r\n");
      }
      if (progress.done) {
        Dispatch();
      } else if (progress.needs_more) {
        return;
      }
    }
  }

  void Dispatch() {
    read_deadline_.Cancel();
    busy_reading_ = false;
    ReadRequest read = reader_.Take();
    exchange_ = std::make_shared<HttpExchange>(shared_from_this(), std::move(read.request),
                                               read.keep_alive, read.is_http10);
    ++shared_->exchanges;
    asio::post(shared_->workers, [shared = shared_, exchange = exchange_] {
      try {
        shared->hooks.handle(exchange);
      } catch (const std::exception& problem) {
        // Our own code throws nothing; the standard library does when memory is out.
        LogError(StrCat("a request failed: ", problem.what()));
        const ApiError error = {.http_status = 500,
                                .message = "the request failed; is there enough free memory?",
                                .code = "internal_error"};
        exchange->Respond({.status = 500, .body = WriteJson(error.ToJson())});
      }
    });
  }

  // An answer without an exchange: to what could not be read as a request.
  void Refuse(const ApiError& error) {
    read_deadline_.Cancel();
    const HttpResponse response = {.status = error.http_status, .body = WriteJson(error.ToJson())};
    Send(ResponseHead(response, {.keep_alive = false}) + response.body);
    CloseAfterWrite();
    if (shared_->hooks.on_finished) {
      shared_->hooks.on_finished({.method = "?",
                                  .path = "?",
                                  .status = error.http_status,
                                  .notes = {{"error", error.code}}});
    }
  }

  void ExchangeEnded(bool keep_alive) {
    FinishExchange();
    if (!keep_alive) return CloseAfterWrite();
    BeginRequest();
    Process();
    Read();
  }

  void FinishExchange() {
    beat_timer_.Cancel();
    const std::shared_ptr<HttpExchange> exchange = std::move(exchange_);
    exchange_.reset();
    --shared_->exchanges;
    if (shared_->hooks.on_finished) shared_->hooks.on_finished(exchange->Record());
  }

  void Send(std::string_view bytes) {
    if (!socket_.is_open()) return;
    if (unsent_.size() + bytes.size() > shared_->limits.unsent_bytes && !unsent_.empty()) {
      // It reads slower than the model writes, by megabytes.
      return Gone();
    }
    unsent_ += bytes;
    if (writing_.empty()) WriteMore();
  }

  void WriteMore() {
    if (writing_.empty()) {
      writing_.swap(unsent_);
      written_ = 0;
    }
    if (writing_.empty()) {
      write_deadline_.Cancel();
      if (close_after_write_) Linger();
      return;
    }
    write_deadline_.Set(shared_->limits.write_seconds,
                        [self = shared_from_this()] { self->Gone(); });
    WriteSome(asio::buffer(writing_.data() + written_, writing_.size() - written_),
              [self = shared_from_this()](const ErrorCode& error, size_t bytes) {
                if (error) {
                  self->writing_.clear();
                  return self->Gone();
                }
                self->written_ += bytes;
                if (self->written_ == self->writing_.size()) self->writing_.clear();
                self->WriteMore();
              });
  }

  void CloseAfterWrite() {
    close_after_write_ = true;
    if (writing_.empty() && unsent_.empty()) Linger();
  }

  void Linger() {
    if (lingering_ || !socket_.is_open()) return;
    lingering_ = true;
    // Without TLS's own goodbye, which would wait for the other side's: lengths and last chunks
    // tell a client what is whole.
    ErrorCode ignored;
    socket_.shutdown(Protocol::socket::shutdown_send, ignored);
    buffer_.consume(buffer_.size());
    SetReadDeadline(kLingerSeconds);
    Read();
  }

  // The client left, or is given up.
  void Gone() {
    Close();
    if (!exchange_) return;
    const std::shared_ptr<HttpExchange> exchange = exchange_;
    exchange->ClientGone();
    FinishExchange();
  }

  void Close() {
    read_deadline_.Cancel();
    write_deadline_.Cancel();
    beat_timer_.Cancel();
    ErrorCode ignored;
    socket_.close(ignored);
  }

  const std::shared_ptr<Shared> shared_;
  const Strand strand_;
  Protocol::socket socket_;
  std::shared_ptr<asio::ssl::context> tls_context_;
  std::optional<asio::ssl::stream<Protocol::socket&>> tls_;
  Deadline read_deadline_;
  Deadline write_deadline_;
  Deadline beat_timer_;
  boost::beast::flat_buffer buffer_;
  HttpReader reader_;
  std::shared_ptr<HttpExchange> exchange_;
  std::string unsent_;
  std::string writing_;
  size_t written_ = 0;
  bool busy_reading_ = false;  // a request has begun to arrive
  bool reading_ = false;       // an async_read_some is outstanding
  bool close_after_write_ = false;
  bool lingering_ = false;
};

void HttpExchange::Post(std::function<void()> task) {
  asio::post(connection_->strand(),
             [self = shared_from_this(), task = std::move(task)] { task(); });
}

void HttpExchange::OnDisconnect(std::function<void()> task) {
  asio::post(connection_->strand(), [self = shared_from_this(), task = std::move(task)]() mutable {
    if (self->phase_ == Phase::kGone) {
      task();
    } else if (self->phase_ != Phase::kEnded) {
      self->on_disconnect_ = std::move(task);
    }
  });
}

void HttpExchange::Note(std::string name, std::string value) {
  // At once where that is possible: what OnDisconnect's task notes belongs into the record.
  asio::dispatch(connection_->strand(), [self = shared_from_this(), name = std::move(name),
                                         value = std::move(value)]() mutable {
    if (self->phase_ == Phase::kEnded) return;
    self->notes_.emplace_back(std::move(name), std::move(value));
  });
}

void HttpExchange::Respond(HttpResponse response) {
  asio::post(connection_->strand(), [self = shared_from_this(), response = std::move(response)] {
    if (self->phase_ != Phase::kWaiting) return;
    const bool keep_alive = self->keep_alive_ && !self->connection_->shared_->draining;
    std::string bytes = ResponseHead(response, {.keep_alive = keep_alive});
    if (self->request_.method != "HEAD") bytes += response.body;
    self->status_ = response.status;
    self->bytes_sent_ = bytes.size();
    self->connection_->Send(bytes);
    if (self->phase_ == Phase::kGone) return;  // found out by sending
    self->phase_ = Phase::kEnded;
    self->on_disconnect_ = nullptr;
    self->connection_->ExchangeEnded(keep_alive);
  });
}

void HttpExchange::BeginStream(HttpResponse head, std::string heartbeat, double heartbeat_seconds) {
  asio::post(connection_->strand(), [self = shared_from_this(), head = std::move(head),
                                     heartbeat = std::move(heartbeat),
                                     heartbeat_seconds]() mutable {
    if (self->phase_ != Phase::kWaiting) return;
    self->phase_ = Phase::kStreaming;
    self->status_ = head.status;
    self->heartbeat_ = std::move(heartbeat);
    self->heartbeat_seconds_ = heartbeat_seconds;
    const bool keep_alive =
        self->keep_alive_ && !self->is_http10_ && !self->connection_->shared_->draining;
    const BodyFraming framing = self->is_http10_ ? BodyFraming::kClose : BodyFraming::kChunked;
    const std::string bytes = ResponseHead(head, {.framing = framing, .keep_alive = keep_alive});
    self->bytes_sent_ += bytes.size();
    self->connection_->Send(bytes);
    self->Beat();
  });
}

void HttpExchange::Write(std::string bytes) {
  asio::post(connection_->strand(), [self = shared_from_this(), bytes = std::move(bytes)] {
    if (self->phase_ != Phase::kStreaming || bytes.empty()) return;
    self->wrote_since_beat_ = true;
    self->SendPart(bytes);
  });
}

void HttpExchange::EndStream() {
  asio::post(connection_->strand(), [self = shared_from_this()] {
    if (self->phase_ != Phase::kStreaming) return;
    if (!self->is_http10_) self->connection_->Send(kLastChunk);
    if (self->phase_ == Phase::kGone) return;
    self->phase_ = Phase::kEnded;
    self->on_disconnect_ = nullptr;
    // The head said keep-alive unless the server was draining then; a client that then finds the
    // connection closed opens another one.
    self->connection_->ExchangeEnded(self->keep_alive_ && !self->is_http10_ &&
                                     !self->connection_->shared_->draining);
  });
}

void HttpExchange::SendPart(std::string_view bytes) {
  const std::string framed = is_http10_ ? std::string(bytes) : HttpChunk(bytes);
  bytes_sent_ += framed.size();
  connection_->Send(framed);
}

void HttpExchange::Beat() {
  if (heartbeat_.empty() || phase_ != Phase::kStreaming) return;
  connection_->beat_timer_.Set(heartbeat_seconds_, [self = shared_from_this()] {
    if (self->phase_ != Phase::kStreaming) return;
    const bool quiet = !std::exchange(self->wrote_since_beat_, false);
    // A client that is behind needs no sign of life.
    if (quiet && self->connection_->writing_.empty()) self->SendPart(self->heartbeat_);
    self->Beat();
  });
}

void HttpExchange::ClientGone() {
  if (phase_ == Phase::kEnded || phase_ == Phase::kGone) return;
  phase_ = Phase::kGone;
  if (const std::function<void()> task = std::exchange(on_disconnect_, nullptr)) task();
}

ExchangeRecord HttpExchange::Record() const {
  return {.method = request_.method,
          .path = request_.path,
          .status = status_,
          .disconnected = phase_ == Phase::kGone,
          .milliseconds = watch_.milliseconds(),
          .bytes_sent = bytes_sent_,
          .notes = notes_};
}

}  // namespace

struct HttpServer::Impl {
  explicit Impl(const HttpLimits& limits)
      : shared(std::make_shared<Shared>(limits)), acceptor(context), retry(context) {}

  Status ListenAt(const Protocol::endpoint& endpoint, const std::string& shown) {
    ErrorCode error;
    acceptor.open(endpoint.protocol(), error);
    if (!error && unix_path.empty())
      acceptor.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor.bind(endpoint, error);
    if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (!error) return Status();
    ErrorCode ignored;
    acceptor.close(ignored);
    return Status(Code::kIoError, StrCat("cannot listen at ", shown, ": ", error.message(),
                                         "; choose another --host, --port or --uds"));
  }

  void Accept() {
    auto connection = std::make_shared<Connection>(context, shared);
    acceptor.async_accept(connection->socket(), [this, connection](const ErrorCode& error) {
      if (error == asio::error::operation_aborted || !acceptor.is_open()) return;
      if (error) {
        // Out of file descriptors, most likely: some will come back.
        LogWarning(StrCat("cannot accept a connection: ", error.message()));
        retry.expires_after(std::chrono::milliseconds(100));
        retry.async_wait([this](const ErrorCode& aborted) {
          if (!aborted) Accept();
        });
        return;
      }
      Admit(connection);
      Accept();
    });
  }

  void Admit(const std::shared_ptr<Connection>& connection) {
    const int fd = connection->socket().native_handle();
    if (unix_path.empty()) {
      const int on = 1;
      const unsigned give_up_ms = static_cast<unsigned>(shared->limits.write_seconds * 1000);
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
      // Heartbeats that nobody acknowledges: the client's machine is gone.
      setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &give_up_ms, sizeof(give_up_ms));
    }
    bool is_full = false;
    {
      const std::lock_guard lock(shared->mutex);
      is_full = static_cast<int>(shared->connections.size()) >= shared->limits.connections;
      if (!is_full) shared->connections.insert(connection.get());
    }
    if (is_full && shared->has_tls) return;  // a handshake would take the room that lacks
    if (is_full) {
      const ApiError error = {.http_status = 503,
                              .message = StrCat("the server has ", shared->limits.connections,
                                                " connections, its most; try again later"),
                              .code = "too_many_connections"};
      const HttpResponse response = {
          .status = 503, .body = WriteJson(error.ToJson()), .headers = {{"Retry-After", "1"}}};
      const std::string bytes = ResponseHead(response, {.keep_alive = false}) + response.body;
      // Fits the empty send buffer of a new connection.
      [[maybe_unused]] const ssize_t sent =
          send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      return;
    }
    asio::post(connection->strand(), [connection] { connection->Start(); });
  }

  std::vector<std::shared_ptr<Connection>> AllConnections() const;

  std::shared_ptr<Shared> shared;
  asio::io_context context;
  Acceptor acceptor;
  asio::steady_timer retry;
  std::string unix_path;
  HttpAddress address;
  std::vector<std::thread> threads;
};

std::vector<std::shared_ptr<Connection>> HttpServer::Impl::AllConnections() const {
  std::vector<std::shared_ptr<Connection>> all;
  const std::lock_guard lock(shared->mutex);
  for (Connection* connection : shared->connections) {
    // Null: on its way out.
    if (auto alive = connection->weak_from_this().lock()) all.push_back(std::move(alive));
  }
  return all;
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() {
  try {
    Stop();
  } catch (...) {
    // A lock or a thread that the system refuses, at the very end: nobody is left to be told.
  }
}

Result<std::unique_ptr<HttpServer>> HttpServer::Listen(const HttpAddress& address,
                                                       const HttpLimits& limits) {
  auto impl = std::make_unique<Impl>(limits);
  impl->address = address;
  const bool has_tls = !address.tls_certificate.empty() || !address.tls_key.empty();
  if (has_tls && (address.tls_certificate.empty() || address.tls_key.empty())) {
    return Status(Code::kInvalidArgument,
                  "one of --tls-cert and --tls-key is given alone, expected both or none");
  }
  if (has_tls && !address.unix_socket.empty()) {
    return Status(Code::kInvalidArgument,
                  "--tls-cert is given beside --uds, expected one of them: a Unix socket does not "
                  "leave the machine");
  }
  if (has_tls) impl->shared->tls = LS_TRY(MakeTlsContext(address.tls_certificate, address.tls_key));
  impl->shared->has_tls = has_tls;
  if (!address.unix_socket.empty()) {
    // sun_path holds 107 bytes and the ending zero.
    if (address.unix_socket.size() > 107) {
      return Status(Code::kInvalidArgument,
                    StrCat("--uds has ", address.unix_socket.size(),
                           " bytes, expected at most 107; choose a shorter path"));
    }
    LS_TRY(FreeUnixPath(address.unix_socket));
    impl->unix_path = address.unix_socket;
    LS_TRY(impl->ListenAt(asio::local::stream_protocol::endpoint(address.unix_socket),
                          impl->unix_path));
  } else {
    asio::ip::tcp::resolver resolver(impl->context);
    ErrorCode error;
    const auto found = resolver.resolve(
        address.host, StrCat(address.port),
        asio::ip::tcp::resolver::passive | asio::ip::tcp::resolver::numeric_service, error);
    if (error || found.empty()) {
      return Status(Code::kInvalidArgument,
                    StrCat("--host ", address.host, ": ", error.message(),
                           "; expected an address of this machine, as 127.0.0.1"));
    }
    LS_TRY(impl->ListenAt(found.begin()->endpoint(), StrCat(address.host, ":", address.port)));
  }
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

void HttpServer::Start(HttpHooks hooks) {
  impl_->shared->hooks = std::move(hooks);
  impl_->Accept();
  for (int i = 0; i < 2; ++i) {
    impl_->threads.emplace_back([this] { impl_->context.run(); });
  }
}

Status HttpServer::ReloadCertificate() {
  LS_CHECK(impl_->shared->has_tls);
  std::shared_ptr<asio::ssl::context> fresh =
      LS_TRY(MakeTlsContext(impl_->address.tls_certificate, impl_->address.tls_key));
  const std::lock_guard lock(impl_->shared->mutex);
  impl_->shared->tls.swap(fresh);
  return Status();
}

void HttpServer::BeginDrain() {
  impl_->shared->draining = true;
  for (const auto& connection : impl_->AllConnections()) connection->CloseIfIdle();
}

void HttpServer::Stop() {
  if (impl_->threads.empty()) return;
  // Tells the exchanges that their clients are gone, then lets the posted tasks run out.
  asio::post(impl_->context, [impl = impl_.get()] {
    ErrorCode ignored;
    impl->acceptor.close(ignored);
    impl->retry.cancel();
  });
  for (const auto& connection : impl_->AllConnections()) connection->Abort();
  impl_->shared->workers.join();
  // Aborted connections go as soon as their last handler has run; a job that still holds one lets
  // it go at the engine's next step. A hung engine must not hold the end up.
  const Stopwatch watch;
  while (connections() > 0 && watch.seconds() < kStopSeconds) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  impl_->context.stop();
  for (std::thread& thread : impl_->threads) thread.join();
  impl_->threads.clear();
  if (!impl_->unix_path.empty()) unlink(impl_->unix_path.c_str());
}

int HttpServer::port() const {
  if (!impl_->unix_path.empty()) return 0;
  ErrorCode error;
  const Protocol::endpoint local = impl_->acceptor.local_endpoint(error);
  if (error) return 0;
  asio::ip::tcp::endpoint tcp;
  std::memcpy(tcp.data(), local.data(), std::min<size_t>(local.size(), tcp.capacity()));
  return tcp.port();
}

std::string HttpServer::address() const {
  if (!impl_->unix_path.empty()) return StrCat("unix:", impl_->unix_path);
  const std::string& host = impl_->address.host;
  const bool is_v6 = host.find(':') != std::string::npos;
  return StrCat(impl_->shared->has_tls ? "https://" : "http://", is_v6 ? "[" : "", host,
                is_v6 ? "]" : "", ":", port());
}

int64_t HttpServer::connections() const {
  const std::lock_guard lock(impl_->shared->mutex);
  return static_cast<int64_t>(impl_->shared->connections.size());
}

int64_t HttpServer::exchanges() const {
  return impl_->shared->exchanges;
}

}  // namespace lserve
