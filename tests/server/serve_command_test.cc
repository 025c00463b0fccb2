// The program itself: starts, says where it listens, answers, and ends as a supervisor expects.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/clock.h"
#include "base/strings.h"
#include "tests/server/http_client.h"
#include "tests/server/running_server.h"
#include "tests/server/serve_process.h"
#include "tests/server/tls_identity.h"

namespace lserve {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

const char kChat[] = R"({"messages":[{"role":"user","content":"hi"}],"max_tokens":3})";

TEST(ServeCommandTest, AnswersLogsAndEndsOnSigterm) {
  ServeProcess server({"--api-key", "sk-x", "--alias", "other"});
  ASSERT_GT(server.port(), 0) << server.err();
  EXPECT_EQ(Get(server.port(), "/health").status, 200);
  EXPECT_EQ(Post(server.port(), "/v1/chat/completions", kChat).status, 401);
  EXPECT_EQ(
      Post(server.port(), "/v1/chat/completions", kChat, "Authorization: Bearer sk-x\r\n").status,
      200);
  EXPECT_THAT(Get(server.port(), "/v1/models", "Authorization: Bearer sk-x\r\n").body,
              HasSubstr(R"("id":"other")"));
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0) << server.err();
  EXPECT_THAT(server.err(), HasSubstr(R"("path":"/v1/chat/completions","status":200)"));
  EXPECT_EQ(server.err().find("sk-x"), std::string::npos) << "keys are not logged";
}

// What would one tune? What was chosen is said before the first request.
TEST(ServeCommandTest, AStartWithoutFlagsSaysWhatWasChosen) {
  const ServeProcess server({}, {}, ServeProcess::Size::kDefault);
  ASSERT_GT(server.port(), 0) << server.err();
  EXPECT_THAT(server.err(),
              ContainsRegex("lserve: needle on (cpu, (generic|avx2|avx512|avx512bf16), [0-9]+ "
                            "threads?|cuda.*), context 262,144 tokens, KV cache [0-9.]+ [MGT]iB "
                            "\\(bf16\\), memory at most [0-9.]+ [MGT]iB\n"));
  EXPECT_THAT(server.err(),
              ContainsRegex("lserve: up to 8 requests at a time in steps of (512|8,192) tokens, "
                            "attention auto: dense below 8,192, then 4,096 tokens read per token "
                            "of an answer, 12 of 24 KV heads stream\n"));
}

TEST(ServeCommandTest, ASecondSignalEndsARunningStream) {
  ServeProcess server({"--no-access-log"});
  ASSERT_GT(server.port(), 0) << server.err();
  HttpClient client(server.port());
  client.Send(HttpClient::PostBytes(
      "/v1/chat/completions",
      R"({"messages":[{"role":"user","content":"hi"}],"stream":true,"ignore_eos":true,"max_tokens":8000})"));
  ASSERT_TRUE(client.ReadUntil("\"role\":\"assistant\""));
  server.Signal(SIGTERM);
  const Stopwatch watch;
  // Two signals at once would be one.
  while (Get(server.port(), "/ready").status == 200 && watch.seconds() < 10) {
  }
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0) << server.err();
  EXPECT_LT(watch.seconds(), 20) << "of the 30 that --shutdown-timeout would have given";
}

// What was promised outlives the process: prefixes on disk.
TEST(ServeCommandTest, ARestartAfterKillFindsThePrefixOnDisk) {
  std::string dir = testing::TempDir() + "lserve_tier_XXXXXX";
  ASSERT_NE(mkdtemp(dir.data()), nullptr);
  const std::string body = ChatJson(
      LongText(900), R"(,"max_tokens":8,"temperature":0,"logprobs":true,"top_logprobs":2)");
  const auto ask = [&](const ServeProcess& server) {
    const HttpReply reply = Post(server.port(), "/v1/chat/completions", body);
    EXPECT_EQ(reply.status, 200) << reply.body;
    return ParsedBody(reply);
  };
  const auto on_disk = [&](const ServeProcess& server) {
    const std::string metrics = Get(server.port(), "/metrics").body;
    const size_t at = metrics.find("tier=\"disk\"} ");
    return at == std::string::npos ? 0.0 : std::atof(metrics.c_str() + at + 13);
  };
  Json first, second;
  {
    ServeProcess server({"--kv-disk-dir", dir});
    ASSERT_GT(server.port(), 0) << server.err();
    first = ask(server);
    const Stopwatch watch;
    // The first file is all that a prompt of this length needs.
    while (on_disk(server) == 0 && watch.seconds() < 10) ask(server);
    server.Signal(SIGKILL);
    EXPECT_EQ(server.Wait(), -1);
  }
  {
    ServeProcess server({"--kv-disk-dir", dir});
    ASSERT_GT(server.port(), 0) << server.err();
    EXPECT_GT(on_disk(server), 0);
    second = ask(server);
  }
  std::filesystem::remove_all(dir);
  EXPECT_EQ(At(first, "usage.prompt_tokens_details.cached_tokens"), Json(0));
  EXPECT_GT(At(second, "usage.prompt_tokens_details.cached_tokens").as_int(), 1024);
  EXPECT_EQ(At(first, "choices"), At(second, "choices")) << "tokens and their probabilities";
}

TEST(ServeCommandTest, APortInUseIsOneLineAndStatusOne) {
  ServeProcess first({});
  ASSERT_GT(first.port(), 0) << first.err();
  ServeProcess second({"--port", StrCat(first.port())});
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.err(), HasSubstr("lserve: error: cannot listen at 127.0.0.1:"));
}

TEST(ServeCommandTest, AFileOfOptionsAndTheCommandLineAbove) {
  const std::string file = testing::TempDir() + "serve_config.json";
  const auto write = [&](const std::string& text) {
    std::ofstream(file) << text;
    return file;
  };
  {
    ServeProcess server(
        {"--config",
         write(R"({"served-model-name":["one","two"],"max-model-len":4096,"no-access-log":true,
                                       "api-key":[],"seed":null,"port":1})")});
    ASSERT_GT(server.port(), 1) << server.err();
    const std::string models = Get(server.port(), "/v1/models").body;
    EXPECT_THAT(models, HasSubstr(R"("id":"two")"));
    EXPECT_THAT(models, HasSubstr(R"("max_model_len":4096)"));
  }
  ServeProcess wrong({"--config", write(R"({"servd-model-name":"x"})")});
  EXPECT_EQ(wrong.Wait(), 2);
  EXPECT_THAT(
      wrong.err(),
      HasSubstr(
          "\"servd-model-name\" is no option of serve, expected perhaps --served-model-name"));
}

TEST(ServeCommandTest, LimitsStandInTheKeyFile) {
  const std::string file = testing::TempDir() + "serve_keys";
  std::ofstream(file) << "# of the team\nsk-a\nsk-b requests-per-minute=1\n";
  ServeProcess server({"--api-key-file", file, "--requests-per-minute-per-key", "100"});
  ASSERT_GT(server.port(), 0) << server.err();
  for (const auto& [key, limit] : {std::pair("sk-a", "100"), std::pair("sk-b", "1")}) {
    const HttpReply reply = Post(server.port(), "/v1/chat/completions", kChat,
                                 StrCat("Authorization: Bearer ", key, "\r\n"));
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.headers.at("x-ratelimit-limit-requests"), limit);
  }
  std::ofstream(file) << "sk-a request=1\n";
  ServeProcess wrong({"--api-key-file", file});
  EXPECT_EQ(wrong.Wait(), 2);
  EXPECT_THAT(wrong.err(), HasSubstr("line 1: after the key comes request"));
  EXPECT_EQ(wrong.err().find("sk-a"), std::string::npos) << "keys are not shown";
  ServeProcess alone({"--max-requests-per-key", "1"});
  EXPECT_EQ(alone.Wait(), 2);
  EXPECT_THAT(alone.err(), HasSubstr("without a key"));
}

TEST(ServeCommandTest, AHangUpReadsTheCertificateAgain) {
  const TlsIdentity identity("hangup");
  ServeProcess server({"--tls-cert", identity.certificate, "--tls-key", identity.key});
  ASSERT_GT(server.port(), 0) << server.err();
  server.Signal(SIGHUP);
  EXPECT_TRUE(server.ReadUntil("new connections get the certificate")) << server.err();
  std::ofstream(identity.key) << "no key";
  server.Signal(SIGHUP);
  EXPECT_TRUE(server.ReadUntil("the certificate stays as it was: --tls-key ")) << server.err();
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0) << server.err();
}

TEST(ServeCommandTest, AHangUpReadsTheKeysAgain) {
  const std::string file = testing::TempDir() + "serve_new_keys";
  const std::string admin_file = testing::TempDir() + "serve_new_admin_keys";
  const auto write = [&](const std::string& keys, const std::string& admin_keys) {
    std::ofstream(file) << keys;
    std::ofstream(admin_file) << admin_keys;
  };
  write("sk-old\n", "sk-admin\n");
  ServeProcess server({"--api-key-file", file, "--admin-key-file", admin_file, "--no-access-log"});
  ASSERT_GT(server.port(), 0) << server.err();
  const auto ask = [&](std::string_view key) {
    return Get(server.port(), "/v1/models", StrCat("Authorization: Bearer ", key, "\r\n")).status;
  };
  EXPECT_EQ(ask("sk-new"), 401);

  write("sk-new requests-per-minute=3\n", "sk-admin\n");
  server.Signal(SIGHUP);
  ASSERT_TRUE(server.ReadUntil("(API keys: 1, admin keys: 1)")) << server.err();
  EXPECT_EQ(ask("sk-new"), 200);
  EXPECT_EQ(ask("sk-old"), 401);
  EXPECT_EQ(Post(server.port(), "/v1/chat/completions", kChat, "Authorization: Bearer sk-new\r\n")
                .headers.at("x-ratelimit-limit-requests"),
            "3");

  // What is wrong anywhere changes nothing, and is said.
  const std::pair<const char*, const char*> wrong[] = {
      {"sk-third request=1\n", "line 1: after the key comes request..., expected requests=N"},
      {"# nobody\n", "holds no key"}};
  for (const auto& [keys, why] : wrong) {
    write(keys, "sk-admin-new\n");
    server.Signal(SIGHUP);
    ASSERT_TRUE(server.ReadUntil("the keys stay as they were: ")) << server.err();
    EXPECT_THAT(server.err(), HasSubstr(StrCat(file, keys[0] == '#' ? ": " : ", ", why)));
    EXPECT_EQ(ask("sk-new"), 200);
    EXPECT_EQ(ask("sk-admin"), 200);
    EXPECT_EQ(ask("sk-admin-new"), 401) << "all or nothing";
  }
  std::filesystem::remove(file);
  server.Signal(SIGHUP);
  ASSERT_TRUE(server.ReadUntil("No such file")) << server.err();
  EXPECT_EQ(ask("sk-new"), 200);
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0) << server.err();
  EXPECT_EQ(server.err().find("sk-"), std::string::npos) << "keys are not logged";
}

TEST(ServeCommandTest, AnEmptyKeyFileIsRefused) {
  ServeProcess server({"--api-key-file", "/dev/null"});
  EXPECT_EQ(server.port(), 0);
  EXPECT_EQ(server.Wait(), 2);
  EXPECT_THAT(server.err(), HasSubstr("holds no key"));
}

}  // namespace
}  // namespace lserve
