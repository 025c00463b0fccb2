// A server that never computes for a client that left, that bounds what waits, that ends as it was
// asked to: pages come back, counters add up, other clients get right answers meanwhile.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "base/strings.h"
#include "tests/server/running_server.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

const char kChat[] = "/v1/chat/completions";
// Three tokens a word: at 128 tokens a step, hundreds of steps.
constexpr int kLongWords = 8000;

// Without kept prefixes, an idle server holds no page.
void NoPrefixes(EngineConfig&, ServerConfig& config) {
  config.service.prefix_caching = false;
}

bool IsIdle(const RunningServer& server) {
  const EngineSnapshot engine = server.snapshot();
  return !engine.busy && engine.kv_bytes_in_use == 0 && engine.requests_running == 0 &&
         engine.requests_waiting == 0 && engine.tokens_waiting == 0;
}

class CancelTest : public testing::TestWithParam<bool> {};

TEST_P(CancelTest, ADisconnectInPrefillStopsTheWorkWithinAStep) {
  const std::string more = GetParam() ? R"(,"stream":true,"max_tokens":4)" : R"(,"max_tokens":4)";
  RunningServer server(NoPrefixes);
  HttpClient client(server.port());
  ASSERT_TRUE(client.Send(HttpClient::PostBytes(kChat, ChatJson(LongText(kLongWords), more))));
  ASSERT_TRUE(server.WaitFor([&] { return server.snapshot().steps >= 3; }));
  client.Close();
  ASSERT_TRUE(server.WaitFor([&] { return server.Metric("lserve:requests_cancelled_total") > 0; }));
  EXPECT_EQ(server.Metric("lserve:requests_cancelled_total", "prefill"), 1);
  // Counted when the engine's thread took the cancellation; the step after it computes nothing.
  ASSERT_TRUE(server.WaitFor([&] { return IsIdle(server); }));
  const double computed = server.Metric("lserve:prefill_tokens_computed_total");
  EXPECT_LT(computed, kLongWords);  // of about three times as many
  EXPECT_EQ(server.Metric("vllm:generation_tokens_total"), 0);
  ASSERT_FALSE(server.log().empty());
  std::string log;
  for (const std::string& line : server.log()) log += line;
  EXPECT_THAT(log, HasSubstr(R"("disconnected":true)"));
}
INSTANTIATE_TEST_SUITE_P(Streaming, CancelTest, testing::Bool());

TEST(CancelInOtherPhasesTest, InTheQueueAndInDecode) {
  RunningServer server([](EngineConfig& engine, ServerConfig& config) {
    NoPrefixes(engine, config);
    engine.max_num_seqs = 1;
  });
  HttpClient first(server.port());
  first.Send(HttpClient::PostBytes(
      kChat, ChatJson("hi", R"(,"stream":true,"ignore_eos":true,"max_tokens":30000)")));
  ASSERT_TRUE(first.ReadUntil("\"role\":\"assistant\""));
  HttpClient second(server.port());
  second.Send(HttpClient::PostBytes(kChat, ChatJson("hi")));
  ASSERT_TRUE(server.WaitFor([&] { return server.snapshot().requests_waiting == 1; }));
  second.Reset();
  ASSERT_TRUE(server.WaitFor(
      [&] { return server.Metric("lserve:requests_cancelled_total", "queue") == 1; }));
  EXPECT_EQ(server.snapshot().requests_waiting, 0);
  first.Close();
  ASSERT_TRUE(server.WaitFor(
      [&] { return server.Metric("lserve:requests_cancelled_total", "decode") == 1; }));
  ASSERT_TRUE(server.WaitFor([&] { return IsIdle(server); }));
}

TEST(LoadTest, RandomDisconnectsLoseNoPageAndNoAnswer) {
  RunningServer server(NoPrefixes);
  // The question every client asks, after documents of different lengths.
  const auto question = [](int code, int words) {
    return StrCat("The access code for cedar is ", code, ". ", LongText(words),
                  "\n\nWhat is the access code for cedar?");
  };
  const Json alone = ParsedBody(Post(server.port(), kChat, ChatJson(question(48213, 40))));
  const std::string expected = At(alone, "choices.0.message.content").as_string();
  ASSERT_THAT(expected, HasSubstr("48213"));

  constexpr int kClients = 24;
  constexpr int kRounds = 4;
  std::atomic<int> answered = 0, left = 0;
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      std::mt19937 random(static_cast<unsigned>(c));
      for (int round = 0; round < kRounds; ++round) {
        HttpClient client(server.port());
        if (random() % 2 == 0) {
          // Leaves at some moment, with or without a goodbye.
          client.Send(HttpClient::PostBytes(
              kChat, ChatJson(question(1234, static_cast<int>(random() % 400)),
                              random() % 2 == 0 ? R"(,"stream":true)" : "")));
          std::this_thread::sleep_for(std::chrono::milliseconds(random() % 30));
          if (random() % 2 == 0) client.Reset();
          ++left;
          continue;
        }
        const HttpReply reply = client.Post(kChat, ChatJson(question(48213, 40)));
        EXPECT_EQ(reply.status, 200) << reply.body;
        if (reply.status != 200) continue;
        EXPECT_EQ(At(ParsedBody(reply), "choices.0.message.content"), Json(expected));
        ++answered;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(answered + left, kClients * kRounds);
  ASSERT_TRUE(server.WaitFor([&] { return IsIdle(server); }));
  EXPECT_EQ(server.Metric("vllm:num_requests_running"), 0);
  EXPECT_TRUE(server.WaitFor([&] { return server.Metric("lserve:connections") == 1; }));
}

TEST(QueueTest, AFullQueueSaysWhenToComeBack) {
  RunningServer server([](EngineConfig& engine, ServerConfig& config) {
    NoPrefixes(engine, config);
    engine.max_num_seqs = 1;
    config.queue.max_requests = 2;
    config.queue.max_tokens = 400;
  });
  HttpClient running(server.port());
  running.Send(HttpClient::PostBytes(
      kChat, ChatJson("hi", R"(,"stream":true,"ignore_eos":true,"max_tokens":30000)")));
  ASSERT_TRUE(running.ReadUntil("\"role\":\"assistant\""));
  HttpClient waiting(server.port());
  waiting.Send(HttpClient::PostBytes(kChat, ChatJson("hi")));
  ASSERT_TRUE(server.WaitFor([&] { return server.snapshot().requests_waiting == 1; }));

  const HttpReply by_tokens = Post(server.port(), kChat, ChatJson(LongText(500)));
  EXPECT_EQ(by_tokens.status, 429) << by_tokens.body;
  const HttpReply by_count = Post(server.port(), kChat, ChatJson("hi", R"(,"n":2)"));
  EXPECT_EQ(by_count.status, 429);
  EXPECT_GE(std::atoi(by_count.headers.at("retry-after").c_str()), 1);
  EXPECT_EQ(At(ParsedBody(by_count), "error.code"), Json("rate_limit_exceeded"));
  EXPECT_EQ(At(ParsedBody(by_count), "error.type"), Json("rate_limit_error"));
  EXPECT_EQ(server.Metric("lserve:requests_refused_total"), 2);

  running.Close();  // and the one that waited is answered
  EXPECT_EQ(waiting.ReadReply().status, 200);
}

TEST(RetryTest, WhatAClientSendsAgainIsCounted) {
  RunningServer server;
  const std::string ask = ChatJson("hi", R"(,"max_tokens":1)");
  Post(server.port(), kChat, ask, "x-stainless-retry-count: 0\r\n");
  EXPECT_EQ(server.Metric("lserve:requests_retried_total"), 0);
  Post(server.port(), kChat, ask, "x-stainless-retry-count: 1\r\n");
  EXPECT_EQ(server.Metric("lserve:requests_retried_total"), 1);
}

// Asks beside a prompt of about 190 steps, which must still be read when the answer is there.
void ExpectFewStepsBesideALongPrompt(const std::string& members) {
  RunningServer server(NoPrefixes);
  HttpClient slow(server.port());
  slow.Send(HttpClient::PostBytes(
      kChat, ChatJson(LongText(kLongWords), R"(,"stream":true,"max_tokens":1)")));
  ASSERT_TRUE(server.WaitFor([&] { return server.snapshot().steps >= 2; }));
  const double before = server.Metric("lserve:steps_total");
  EXPECT_EQ(Post(server.port(), kChat, ChatJson("hi", members)).status, 200);
  // A step for its prompt and each further token; the rest is what ran while we asked.
  EXPECT_LT(server.Metric("lserve:steps_total") - before, 60);
  EXPECT_EQ(server.Metric("vllm:num_requests_running"), 1);
}

TEST(FairnessTest, AShortPromptOvertakesALongOne) {
  ExpectFewStepsBesideALongPrompt(R"(,"max_tokens":2)");
}

TEST(FairnessTest, EveryStepOfALongPromptCarriesTheTokenOfAStream) {
  ExpectFewStepsBesideALongPrompt(R"(,"ignore_eos":true,"max_tokens":8)");
}

TEST(SlowReaderTest, IsGivenUpAndCostsNoOneElse) {
  RunningServer server([](EngineConfig& engine, ServerConfig& config) {
    NoPrefixes(engine, config);
    config.http.unsent_bytes = 16384;
    config.http.write_seconds = 0.3;
  });
  HttpClient slow(server.port());
  slow.SmallReceiveBuffer();
  // Far more bytes than the sockets' buffers hold; and it never reads.
  slow.Send(HttpClient::PostBytes(
      kChat,
      ChatJson(
          "hi",
          R"(,"stream":true,"ignore_eos":true,"max_tokens":30000,"logprobs":true,"top_logprobs":20)")));
  EXPECT_TRUE(server.WaitFor([&] { return server.snapshot().requests_running == 1; }));
  EXPECT_EQ(Post(server.port(), kChat, ChatJson("hi")).status, 200);
  EXPECT_TRUE(server.WaitFor([&] { return IsIdle(server); }));
  EXPECT_EQ(server.Metric("lserve:requests_cancelled_total", "decode"), 1);
}

TEST(DrainTest, WhatRunsIsFinishedAndNewRequestsAreRefused) {
  RunningServer server;
  HttpClient running(server.port());
  running.Send(HttpClient::PostBytes(
      kChat, ChatJson("hi", R"(,"stream":true,"ignore_eos":true,"max_tokens":400)")));
  ASSERT_TRUE(running.ReadUntil("\"role\":\"assistant\""));
  HttpClient idle(server.port());
  ASSERT_EQ(idle.Get("/health").status, 200);
  server.Signal();
  EXPECT_TRUE(idle.ReadEnd()) << "an idle connection is closed";
  const HttpReply ready = Get(server.port(), "/ready");
  EXPECT_EQ(ready.status, 503);
  EXPECT_EQ(ready.headers.at("connection"), "close");
  EXPECT_EQ(Get(server.port(), "/health").status, 200);
  const HttpReply refused = Post(server.port(), kChat, ChatJson("hi"));
  EXPECT_EQ(refused.status, 503);
  EXPECT_TRUE(refused.headers.contains("retry-after"));
  const HttpReply reply = running.ReadReply();
  EXPECT_TRUE(reply.body.ends_with("data: [DONE]\n\n"));
  EXPECT_THAT(reply.body, HasSubstr(R"("finish_reason":"length")"));
  EXPECT_TRUE(server.Ended().ok());
}

TEST(DrainTest, TheDeadlineAndASecondSignalEndStreamsWithAnError) {
  for (const bool by_signal : {false, true}) {
    RunningServer server(
        [&](EngineConfig&, ServerConfig& config) { config.drain_seconds = by_signal ? 60 : 0.2; });
    HttpClient running(server.port());
    running.Send(HttpClient::PostBytes(kChat, ChatJson(LongText(kLongWords), R"(,"stream":true)")));
    ASSERT_TRUE(running.ReadUntil("\r\n\r\n"));
    server.Signal();
    if (by_signal) server.Signal();
    EXPECT_TRUE(server.Ended().ok());
    const HttpReply reply = running.ReadReply();
    EXPECT_THAT(reply.body, HasSubstr(R"("code":"shutting_down")")) << by_signal;
    EXPECT_TRUE(reply.body.ends_with("data: [DONE]\n\n"));
  }
}

TEST(WatchdogTest, AStepThatTakesTooLongFailsReadinessAndThenTheServer) {
  RunningServer server([](EngineConfig& engine, ServerConfig& config) {
    engine.device = "reference";  // slow enough for any deadline
    config.service.step_deadline_seconds = 0.05;
    config.watchdog_seconds = 0.5;
  });
  HttpClient client(server.port());
  client.Send(HttpClient::PostBytes(kChat, ChatJson(LongText(200), R"(,"max_tokens":1)")));
  EXPECT_TRUE(server.WaitFor([&] { return Get(server.port(), "/ready").status == 503; }));
  EXPECT_EQ(Get(server.port(), "/health").status, 200);
  const Status status = server.Ended();
  EXPECT_EQ(status.code(), Code::kDeviceLost);
  EXPECT_THAT(status.message(), HasSubstr("no engine step"));
}

}  // namespace
}  // namespace lserve
