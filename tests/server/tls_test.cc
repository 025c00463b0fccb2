// The server over TLS: answers, streams, and what it refuses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/x509.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#include <filesystem>
#include <memory>

#include "base/strings.h"
#include "tests/server/running_server.h"
#include "tests/server/tls_identity.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
using Identity = TlsIdentity;
namespace asio = boost::asio;

// Everything that comes back until the server closes.
std::string Ask(int port, const std::string& bytes, int newest_version = TLS1_3_VERSION) {
  asio::io_context context;
  asio::ssl::context tls(asio::ssl::context::tls_client);
  SSL_CTX_set_max_proto_version(tls.native_handle(), newest_version);
  asio::ssl::stream<asio::ip::tcp::socket> stream(context, tls);
  boost::system::error_code error;
  stream.next_layer().connect({asio::ip::address_v4::loopback(), static_cast<uint16_t>(port)},
                              error);
  stream.handshake(asio::ssl::stream_base::client, error);
  if (error) return StrCat("no handshake: ", error.message());
  asio::write(stream, asio::buffer(bytes), error);
  std::string reply;
  asio::read(stream, asio::dynamic_buffer(reply), error);
  return reply;
}

TEST(TlsTest, AnswersAndStreams) {
  const Identity identity("own");
  RunningServer server([&](EngineConfig&, ServerConfig& config) {
    config.address.tls_certificate = identity.certificate;
    config.address.tls_key = identity.key;
  });
  const std::string health =
      Ask(server.port(), "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(health, HasSubstr("HTTP/1.1 200 OK"));
  EXPECT_THAT(health, HasSubstr("{\"status\":\"ok\"}"));
  const std::string stream = Ask(
      server.port(),
      HttpClient::PostBytes(
          "/v1/chat/completions",
          ChatJson("The access code for cedar is 48213.\\n\\nWhat is the access code for cedar?",
                   R"(,"stream":true)"),
          "Connection: close\r\n"));
  EXPECT_THAT(stream, HasSubstr("data: [DONE]"));
  // TLS 1.1 is refused, and plain HTTP gets no answer; neither disturbs the next one.
  EXPECT_THAT(Ask(server.port(), "", TLS1_1_VERSION), HasSubstr("no handshake"));
  HttpClient plain(server.port());
  plain.Send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_TRUE(plain.ReadEnd(5));
  EXPECT_THAT(Ask(server.port(), "GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
              HasSubstr("200 OK"));
}

// A client that stays, and knows whom it talks to.
class TlsClient {
 public:
  explicit TlsClient(int port) : tls_(asio::ssl::context::tls_client), stream_(context_, tls_) {
    stream_.next_layer().connect({asio::ip::address_v4::loopback(), static_cast<uint16_t>(port)});
    stream_.handshake(asio::ssl::stream_base::client);
  }
  std::string server_name() {
    const std::unique_ptr<X509, decltype(&X509_free)> x509(
        SSL_get1_peer_certificate(stream_.native_handle()), X509_free);
    char name[64] = "";
    X509_NAME_get_text_by_NID(X509_get_subject_name(x509.get()), NID_commonName, name,
                              sizeof(name));
    return name;
  }
  std::string Health() {
    asio::write(stream_, asio::buffer(std::string("GET /health HTTP/1.1\r\nHost: x\r\n\r\n")));
    std::string reply;
    asio::read_until(stream_, asio::dynamic_buffer(reply), "}");
    return reply;
  }

 private:
  asio::io_context context_;
  asio::ssl::context tls_;
  asio::ssl::stream<asio::ip::tcp::socket> stream_;
};

TEST(TlsTest, ANewCertificateIsForNewConnections) {
  const Identity identity("renewed", "first");
  RunningServer server([&](EngineConfig&, ServerConfig& config) {
    config.address.tls_certificate = identity.certificate;
    config.address.tls_key = identity.key;
  });
  TlsClient old(server.port());
  EXPECT_EQ(old.server_name(), "first");
  EXPECT_THAT(old.Health(), HasSubstr("200 OK"));

  const Identity second("renewed", "second");  // the same files
  EXPECT_TRUE(server.ReloadCertificate().ok());
  TlsClient fresh(server.port());
  EXPECT_EQ(fresh.server_name(), "second");
  EXPECT_THAT(fresh.Health(), HasSubstr("200 OK"));
  EXPECT_THAT(old.Health(), HasSubstr("200 OK")) << "open connections live on";

  // A certificate without its key, as half a renewal leaves it.
  const Identity stranger("stranger");
  std::filesystem::copy_file(stranger.certificate, identity.certificate,
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(server.ReloadCertificate().message(), HasSubstr("--tls-key"));
  EXPECT_EQ(TlsClient(server.port()).server_name(), "second");
  EXPECT_THAT(fresh.Health(), HasSubstr("200 OK"));
}

TEST(TlsTest, WrongFilesAreNamed) {
  const Identity one("one"), other("other");
  const auto listen = [](const std::string& certificate, const std::string& key,
                         const std::string& uds = "") {
    return HttpServer::Listen(
               {.port = 0, .unix_socket = uds, .tls_certificate = certificate, .tls_key = key}, {})
        .status()
        .message();
  };
  EXPECT_EQ(listen(one.certificate, one.key), "");
  EXPECT_THAT(listen("/nowhere.pem", one.key), HasSubstr("--tls-cert /nowhere.pem: "));
  EXPECT_THAT(listen(one.certificate, other.key), HasSubstr("--tls-key"));
  EXPECT_THAT(listen(one.certificate, ""), HasSubstr("given alone"));
  EXPECT_THAT(listen(one.certificate, one.key, "/tmp/x.sock"), HasSubstr("--uds"));
}

}  // namespace
}  // namespace lserve
