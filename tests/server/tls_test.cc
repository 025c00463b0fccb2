// The server over TLS: answers, streams, and what it refuses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#include <cstdio>
#include <memory>

#include "base/strings.h"
#include "tests/server/running_server.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
namespace asio = boost::asio;

// A key and a certificate that it has signed itself, as PEM files.
struct Identity {
  std::string certificate;
  std::string key;

  explicit Identity(const std::string& name)
      : certificate(StrCat(testing::TempDir(), "tls_test_", name, ".crt")),
        key(StrCat(testing::TempDir(), "tls_test_", name, ".key")) {
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> pair(EVP_EC_gen("P-256"),
                                                                   EVP_PKEY_free);
    const std::unique_ptr<X509, decltype(&X509_free)> x509(X509_new(), X509_free);
    ASN1_INTEGER_set(X509_get_serialNumber(x509.get()), 1);
    X509_gmtime_adj(X509_getm_notBefore(x509.get()), -60);
    X509_gmtime_adj(X509_getm_notAfter(x509.get()), 3600);
    X509_set_pubkey(x509.get(), pair.get());
    X509_NAME* subject = X509_get_subject_name(x509.get());
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
    X509_set_issuer_name(x509.get(), subject);
    X509_sign(x509.get(), pair.get(), EVP_sha256());
    FILE* file = std::fopen(certificate.c_str(), "w");
    PEM_write_X509(file, x509.get());
    std::fclose(file);
    file = std::fopen(key.c_str(), "w");
    PEM_write_PrivateKey(file, pair.get(), nullptr, nullptr, 0, nullptr, nullptr);
    std::fclose(file);
  }
};

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
