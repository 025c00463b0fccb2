// Clients that break the rules of HTTP, or are slow: each gets a refusal or is closed, and the next
// client is served.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

#include "base/strings.h"
#include "server/http_server.h"
#include "tests/server/http_client.h"
#include "tests/server/running_server.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// The HTTP server alone, with a handler that says what it got.
class BadHttpTest : public testing::Test {
 protected:
  BadHttpTest() { Start({}); }

  void Start(const HttpAddress& address) {
    HttpLimits limits;
    limits.read.header_bytes = 4096;
    limits.read.header_count = 20;
    limits.read.body_bytes = 10000;
    limits.connections = 4;
    limits.header_seconds = 0.3;
    limits.body_seconds = 0.3;
    limits.idle_seconds = 0.6;
    HttpAddress bound = address;
    bound.port = 0;
    Result<std::unique_ptr<HttpServer>> server = HttpServer::Listen(bound, limits);
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = std::move(server).value();
    server_->Start({.handle =
                        [](const std::shared_ptr<Exchange>& exchange) {
                          const HttpRequest& request = exchange->request();
                          exchange->Respond({.content_type = "text/plain",
                                             .body = StrCat(request.method, " ", request.path, " ",
                                                            request.body)});
                        },
                    .on_finished = nullptr});
  }
  // What one connection gets for these bytes.
  HttpReply Raw(std::string_view bytes) {
    HttpClient client(server_->port());
    client.Send(bytes);
    return client.ReadReply(10);
  }
  void ExpectServes() { EXPECT_EQ(HttpClient(server_->port()).Get("/fine").body, "GET /fine "); }

  std::unique_ptr<HttpServer> server_;
};

TEST_F(BadHttpTest, NoHttp) {
  for (const char* bytes :
       {"hello\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "GET nopath HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
        "GET / HTTP/1.1\r\nA: b\r\nContent-Length: -1\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 1e9\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"}) {
    const HttpReply reply = Raw(bytes);
    EXPECT_EQ(reply.status, 400) << bytes;
    EXPECT_THAT(reply.body, StartsWith("{\"error\":{"));
  }
  ExpectServes();
}

TEST_F(BadHttpTest, TwoLengthsAreRefused) {
  EXPECT_EQ(
      Raw("POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
          .status,
      400);
  EXPECT_EQ(Raw("POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde").status,
            400);
  ExpectServes();
}

TEST_F(BadHttpTest, HeadersTooLargeOrTooMany) {
  EXPECT_EQ(Raw(StrCat("GET / HTTP/1.1\r\nA: ", std::string(5000, 'x'), "\r\n\r\n")).status, 431);
  std::string many = "GET / HTTP/1.1\r\n";
  for (int i = 0; i < 21; ++i) many += StrCat("H", i, ": x\r\n");
  EXPECT_EQ(Raw(many + "\r\n").status, 431);
  // An endless header is cut long before its end.
  HttpClient endless(server_->port());
  endless.Send("GET / HTTP/1.1\r\nA: ");
  for (int i = 0; i < 1000 && endless.Send(std::string(10000, 'x')); ++i) {
  }
  EXPECT_TRUE(endless.ReadEnd(10));
  ExpectServes();
}

TEST_F(BadHttpTest, BodiesTooLarge) {
  EXPECT_EQ(Raw(StrCat("POST / HTTP/1.1\r\nContent-Length: 10001\r\n\r\n")).status, 413);
  EXPECT_EQ(Raw("POST / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n").status, 413);
  std::string chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 11; ++i) chunked += StrCat("3e8\r\n", std::string(1000, 'x'), "\r\n");
  EXPECT_EQ(Raw(chunked + "0\r\n\r\n").status, 413);
  // The refusal arrives although the client goes on sending.
  EXPECT_EQ(
      Raw(StrCat("POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", std::string(1000000, 'x')))
          .status,
      413);
  ExpectServes();
}

TEST_F(BadHttpTest, SlowClientsAreToldOrClosed) {
  HttpClient half_header(server_->port());
  half_header.Send("GET / HT");
  EXPECT_EQ(half_header.ReadReply(10).status, 408);
  HttpClient half_body(server_->port());
  half_body.Send("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_EQ(half_body.ReadReply(10).status, 408);
  HttpClient idle(server_->port());
  EXPECT_TRUE(idle.ReadEnd(10));
  EXPECT_EQ(idle.received(), "");
  ExpectServes();
}

TEST_F(BadHttpTest, KeepAlivePipeliningAndContinue) {
  HttpClient client(server_->port());
  EXPECT_EQ(client.Get("/a").body, "GET /a ");
  EXPECT_EQ(client.Post("/b?query=1", "xyz").body, "POST /b xyz");
  client.Send(
      "GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(client.ReadReply().body, "GET /1 ");
  EXPECT_EQ(client.ReadReply().body, "GET /2 ");
  const HttpReply last = client.ReadReply();
  EXPECT_EQ(last.body, "GET /3 ");
  EXPECT_EQ(last.headers.at("connection"), "close");
  EXPECT_TRUE(client.ReadEnd(10));

  HttpClient waits(server_->port());
  waits.Send("POST /c HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  ASSERT_TRUE(waits.ReadUntil("HTTP/1.1 100 Continue\r\n\r\n", 10));
  waits.Send("ok");
  EXPECT_TRUE(waits.ReadUntil("POST /c ok", 10));

  HttpClient old(server_->port());
  old.Send("GET /old HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.ReadReply().body, "GET /old ");
  EXPECT_TRUE(old.ReadEnd(10));
}

TEST_F(BadHttpTest, ConnectionsAreCounted) {
  {
    std::vector<std::unique_ptr<HttpClient>> clients;
    for (int i = 0; i < 4; ++i) {
      clients.push_back(std::make_unique<HttpClient>(server_->port()));
      ASSERT_EQ(clients.back()->Get("/x").status, 200);
    }
    HttpClient fifth(server_->port());
    EXPECT_EQ(fifth.ReadReply(10).status, 503);
  }
  const Stopwatch watch;
  while (server_->connections() > 0 && watch.seconds() < 10)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  ExpectServes();
}

TEST_F(BadHttpTest, AUnixSocketServesAndIsRemovedAfterwards) {
  const std::string path = StrCat("/tmp/lserve_test_", getpid(), ".sock");
  Start({.host = {}, .unix_socket = path});
  EXPECT_EQ(server_->port(), 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string request = "GET /u HTTP/1.0\r\n\r\n";
  ASSERT_EQ(send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string received;
  char bytes[512];
  for (ssize_t n = 0; (n = recv(fd, bytes, sizeof(bytes), 0)) > 0;)
    received.append(bytes, static_cast<size_t>(n));
  close(fd);
  EXPECT_THAT(received, HasSubstr("GET /u "));
  // A second server may not take it over while it is in use.
  EXPECT_THAT(HttpServer::Listen({.host = {}, .unix_socket = path}, {}).status().message(),
              HasSubstr("in use"));
  server_.reset();
  EXPECT_NE(access(path.c_str(), F_OK), 0);
}

TEST_F(BadHttpTest, AnAddressInUseIsAnError) {
  const Result<std::unique_ptr<HttpServer>> second =
      HttpServer::Listen({.host = "127.0.0.1", .port = server_->port()}, {});
  EXPECT_THAT(second.status().message(), HasSubstr("cannot listen at 127.0.0.1:"));
  EXPECT_THAT(HttpServer::Listen({.host = "no.such.host.invalid"}, {}).status().message(),
              HasSubstr("--host"));
}

TEST(ContentTypeTest, OnlyJsonIsRead) {
  RunningServer server;
  HttpClient client(server.port());
  client.Send(
      "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: "
      "2\r\n\r\n{}");
  EXPECT_EQ(client.ReadReply().status, 415);
  client.Send(
      "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: Application/JSON; "
      "charset=utf-8\r\nContent-Length: 2\r\n\r\n{}");
  EXPECT_EQ(client.ReadReply().status, 400);
}

}  // namespace
}  // namespace lserve
