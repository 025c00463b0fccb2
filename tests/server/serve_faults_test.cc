// What happens to a process and to its clients: stopped and continued, killed and started again;
// connections that say half of something, or never read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <memory>
#include <thread>

#include "base/strings.h"
#include "tests/server/http_client.h"
#include "tests/server/running_server.h"
#include "tests/server/serve_process.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

const char kChat[] = "/v1/chat/completions";

std::string Stream(int max_tokens) {
  return ChatJson("hi", StrCat(R"(,"stream":true,"ignore_eos":true,"max_tokens":)", max_tokens));
}

TEST(ServeFaultsTest, AStoppedProcessGoesOnWhereItWas) {
  // It stands still for longer than the watchdog allows the engine.
  ServeProcess server({"--watchdog-timeout", "1", "--no-access-log"});
  ASSERT_GT(server.port(), 0) << server.err();
  HttpClient client(server.port());
  client.Send(HttpClient::PostBytes(kChat, Stream(600)));
  ASSERT_TRUE(client.ReadUntil("\"role\":\"assistant\""));
  server.Signal(SIGSTOP);
  HttpClient meanwhile(server.port());  // the kernel takes it
  meanwhile.Send(HttpClient::PostBytes(kChat, ChatJson("hi", R"(,"max_tokens":2)")));
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  server.Signal(SIGCONT);
  EXPECT_EQ(meanwhile.ReadReply().status, 200);
  const HttpReply stream = client.ReadReply();
  EXPECT_TRUE(stream.body.ends_with("data: [DONE]\n\n"));
  EXPECT_THAT(stream.body, HasSubstr(R"("finish_reason":"length")"));
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0) << server.err();
}

// The wall clock of a process, in seconds ahead of the machine's; see wall_clock_shim.cc.
class WallClock {
 public:
  WallClock() {
    const int fd = mkstemp(path_.data());
    EXPECT_GE(fd, 0);
    EXPECT_EQ(ftruncate(fd, sizeof(int64_t)), 0);
    void* memory = mmap(nullptr, sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EXPECT_NE(memory, MAP_FAILED);
    close(fd);
    ahead_ = static_cast<std::atomic<int64_t>*>(memory);
  }
  ~WallClock() {
    munmap(ahead_, sizeof(int64_t));
    std::filesystem::remove(path_);
  }
  WallClock(const WallClock&) = delete;
  WallClock& operator=(const WallClock&) = delete;

  void Set(int64_t seconds_ahead) { *ahead_ = seconds_ahead; }
  std::vector<std::pair<std::string, std::string>> environment() const {
    return {{"LD_PRELOAD", LS_WALL_CLOCK}, {"LS_WALL_CLOCK_FILE", path_}};
  }

 private:
  std::string path_ = testing::TempDir() + "lserve_clock_XXXXXX";
  std::atomic<int64_t>* ahead_ = nullptr;
};

// Everything that waits, ends or is refused goes by a clock that does not jump: with the watchdog,
// the limits and the deadlines at seconds, years forth and back change dates and nothing else.
TEST(ServeFaultsTest, AJumpOfTheClockIsSeenInDatesOnly) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's library must be the first that is loaded";
#endif
  constexpr int64_t kYear = 365 * 86400;
  WallClock clock;
  ServeProcess server({"--api-key", "sk-x", "--requests-per-minute-per-key", "4",
                       "--watchdog-timeout", "5", "--step-deadline", "5", "--no-access-log"},
                      clock.environment());
  ASSERT_GT(server.port(), 0) << server.err();
  const std::string key = "Authorization: Bearer sk-x\r\n";
  const auto created = [&](HttpClient& client) {
    const HttpReply reply = client.Post(kChat, ChatJson("hi", R"(,"max_tokens":2)"), key);
    EXPECT_EQ(reply.status, 200) << reply.body;
    return At(ParsedBody(reply), "created").as_int();
  };
  HttpClient stream(server.port()), kept(server.port());
  stream.Send(HttpClient::PostBytes(kChat, Stream(300), key));
  ASSERT_TRUE(stream.ReadUntil("\"role\":\"assistant\""));
  EXPECT_NEAR(created(kept), std::time(nullptr), 60);
  clock.Set(kYear);
  EXPECT_NEAR(created(kept), std::time(nullptr) + kYear, 60);
  clock.Set(-10 * kYear);
  EXPECT_NEAR(created(kept), std::time(nullptr) - 10 * kYear, 60);
  EXPECT_EQ(Get(server.port(), "/ready").status, 200);
  const HttpReply rest = stream.ReadReply();
  EXPECT_TRUE(rest.body.ends_with("data: [DONE]\n\n")) << rest.body;
  EXPECT_THAT(rest.body, HasSubstr(R"("finish_reason":"length")"));
  // The stream was the first of the four; a year does not fill the bucket.
  clock.Set(kYear);
  const HttpReply refused = kept.Post(kChat, ChatJson("hi", R"(,"max_tokens":2)"), key);
  EXPECT_EQ(refused.status, 429) << refused.body;
  EXPECT_LE(std::atoi(refused.headers.at("retry-after").c_str()), 15);
  server.Signal(SIGTERM);
  clock.Set(5 * kYear);
  EXPECT_EQ(server.Wait(), 0) << server.err();
}

TEST(ServeFaultsTest, AKilledServerStartsAgainOnItsPort) {
  int port = 0;
  std::unique_ptr<HttpClient> client;
  {
    ServeProcess server({});
    port = server.port();
    ASSERT_GT(port, 0) << server.err();
    client = std::make_unique<HttpClient>(port);
    client->Send(HttpClient::PostBytes(kChat, Stream(8000)));
    ASSERT_TRUE(client->ReadUntil("\"role\":\"assistant\""));
    server.Signal(SIGKILL);
    EXPECT_EQ(server.Wait(), -1);
  }
  EXPECT_TRUE(client->ReadEnd()) << "the client hears of it at once";
  // With the old connection still in the system.
  ServeProcess again({"--port", StrCat(port)});
  EXPECT_EQ(again.port(), port) << again.err();
  EXPECT_EQ(Post(port, kChat, ChatJson("hi", R"(,"max_tokens":2)")).status, 200);
}

TEST(ServeFaultsTest, AKilledServerStartsAgainOnItsSocket) {
  const std::string path = StrCat("/tmp/lserve_faults_", getpid(), ".sock");
  {
    ServeProcess server({"--uds", path});
    ASSERT_TRUE(server.listens()) << server.err();
    server.Signal(SIGKILL);
    EXPECT_EQ(server.Wait(), -1);
  }
  EXPECT_TRUE(std::filesystem::exists(path)) << "nobody was left to remove it";
  ServeProcess again({"--uds", path});
  ASSERT_TRUE(again.listens()) << again.err();
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  const std::string_view ask = "GET /health HTTP/1.0\r\n\r\n";
  EXPECT_EQ(write(fd, ask.data(), ask.size()), static_cast<ssize_t>(ask.size()));
  std::string reply(512, '\0');
  reply.resize(static_cast<size_t>(std::max<ssize_t>(0, read(fd, reply.data(), reply.size()))));
  close(fd);
  EXPECT_THAT(reply, HasSubstr("200 OK"));
  again.Signal(SIGTERM);
  EXPECT_EQ(again.Wait(), 0);
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(ServeFaultsTest, HalfRequestsAndSlowReadersCostNobodyElse) {
  constexpr int kEach = 4;
  RunningServer server([](EngineConfig& engine, ServerConfig& config) {
    engine.max_num_seqs = 2 * kEach;
    config.service.prefix_caching = false;
    config.http.unsent_bytes = 16384;
    config.http.write_seconds = 0.5;
    config.http.header_seconds = 1;
    config.http.body_seconds = 1;
  });
  const std::string question =
      ChatJson("The access code for cedar is 48213.\n\nWhat is the access code for cedar?");
  std::vector<std::unique_ptr<HttpClient>> half, slow;
  for (int i = 0; i < kEach; ++i) {
    half.push_back(std::make_unique<HttpClient>(server.port()));
    const std::string whole = HttpClient::PostBytes(kChat, question);
    // In the header, or in the body.
    half.back()->Send(std::string_view(whole).substr(0, i % 2 == 0 ? 30 : whole.size() - 10));
    slow.push_back(std::make_unique<HttpClient>(server.port()));
    slow.back()->SmallReceiveBuffer();
    slow.back()->Send(HttpClient::PostBytes(
        kChat,
        ChatJson(
            "hi",
            R"(,"stream":true,"ignore_eos":true,"max_tokens":20000,"logprobs":true,"top_logprobs":20)")));
  }
  for (int i = 0; i < 4; ++i) {
    const HttpReply reply = Post(server.port(), kChat, question);
    EXPECT_EQ(reply.status, 200);
    EXPECT_THAT(reply.body, HasSubstr("48213"));
  }
  // Each slow reader is given up once the little that waits for it is full: that is the bound.
  EXPECT_TRUE(server.WaitFor(
      [&] { return server.Metric("lserve:requests_cancelled_total", "decode") == kEach; }));
  for (const auto& client : half) EXPECT_TRUE(client->ReadEnd(10));
  EXPECT_TRUE(server.WaitFor([&] {
    const EngineSnapshot engine = server.snapshot();
    return engine.kv_bytes_in_use == 0 && engine.requests_running == 0;
  }));
  EXPECT_TRUE(server.WaitFor([&] { return server.Metric("lserve:connections") == 1; }));
}

}  // namespace
}  // namespace lserve
