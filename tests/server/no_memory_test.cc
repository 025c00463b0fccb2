// A device without memory, seen by clients: who needs some hears so and may try again, the others
// are answered, and nothing is left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/faulty_backend.h"
#include "tests/server/http_client.h"
#include "tests/server/running_server.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

const char kChat[] = "/v1/chat/completions";

TEST(NoMemoryTest, WhoNeedsMemoryHearsThatThereIsNone) {
  Faults faults;
  EngineInputs inputs;
  inputs.wrap_backend = [&](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
    return std::make_unique<FaultyBackend>(std::move(inner), &faults);
  };
  RunningServer server(
      [](EngineConfig& engine, ServerConfig& config) {
        // Answers to prompts of more than 256 tokens need page lists.
        engine.attention.mode = AttentionMode::kSparse;
        engine.attention.token_budget = 256;
        engine.attention.recent_tokens = 64;
        config.service.prefix_caching = false;
      },
      std::move(inputs));
  const std::string question =
      "The access code for cedar is 48213.\n\nWhat is the access code for cedar?";
  const std::string longer = ChatJson(LongText(300));
  faults.allocations.Arm(1, Fault::kForEver);
  const HttpReply refused = Post(server.port(), kChat, longer);
  EXPECT_EQ(refused.status, 503) << refused.body;
  EXPECT_EQ(refused.headers.count("retry-after"), 1u);
  EXPECT_EQ(At(ParsedBody(refused), "error.code").as_string(), "out_of_memory");
  const HttpReply streamed =
      Post(server.port(), kChat, ChatJson(LongText(300), R"(,"stream":true)"));
  EXPECT_EQ(streamed.status, 200);
  EXPECT_THAT(streamed.body, HasSubstr("out_of_memory"));
  EXPECT_TRUE(streamed.body.ends_with("data: [DONE]\n\n")) << streamed.body;
  const HttpReply other = Post(server.port(), kChat, ChatJson(question));
  EXPECT_EQ(other.status, 200) << other.body;
  EXPECT_THAT(other.body, HasSubstr("48213"));
  EXPECT_EQ(Get(server.port(), "/ready").status, 200);
  faults.allocations.Disarm();
  EXPECT_EQ(Post(server.port(), kChat, longer).status, 200);
  EXPECT_TRUE(server.WaitFor([&] {
    const EngineSnapshot engine = server.snapshot();
    return engine.kv_bytes_in_use == 0 && engine.requests_running == 0;
  }));
}

}  // namespace
}  // namespace lserve
