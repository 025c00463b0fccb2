// Anthropic's Messages API and OpenAI's Responses API: answers, streams, tools and errors in the
// shapes that their clients read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/strings.h"
#include "tests/server/running_server.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

const char kQuestion[] =
    "The access code for cedar is 48213. Grass is green.\\n\\nWhat is the access code for cedar?";
const char kAnswer[] = "The access code for cedar is 48213.";

struct Event {
  std::string name;
  Json data;
};

std::vector<Event> NamedEvents(const std::string& body) {
  std::vector<Event> events;
  for (size_t at = body.find("event: "); at != std::string::npos;
       at = body.find("event: ", at + 1)) {
    const size_t end = body.find('\n', at);
    const size_t data = body.find("data: ", end);
    events.push_back({body.substr(at + 7, end - at - 7),
                      ParseJson(body.substr(data + 6, body.find('\n', data) - data - 6)).value()});
    EXPECT_EQ(At(events.back().data, "type"), Json(events.back().name));
  }
  std::erase_if(events, [](const Event& event) { return event.name == "ping"; });
  return events;
}

class ProtocolsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = new RunningServer([](EngineConfig&, ServerConfig& config) {
      config.service.default_max_tokens = 256;
      config.service.heartbeat_seconds = 0.01;
    });
  }
  static void TearDownTestSuite() { delete server_; }
  static HttpReply Messages(const std::string& more) {
    return Post(
        server_->port(), "/v1/messages",
        StrCat(R"({"max_tokens":200,"temperature":0,"messages":[{"role":"user","content":")",
               kQuestion, "\"}]", more, "}"),
        "anthropic-version: 2023-06-01\r\n");
  }
  static HttpReply Respond(const std::string& more) {
    return Post(server_->port(), "/v1/responses",
                StrCat(R"({"temperature":0,"input":")", kQuestion, "\"", more, "}"));
  }
  // googletest's fixtures of a suite are static.
  static RunningServer* server_;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)
};
// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables)
RunningServer* ProtocolsTest::server_ = nullptr;

TEST_F(ProtocolsTest, MessagesAnswer) {
  const HttpReply reply = Messages("");
  ASSERT_EQ(reply.status, 200) << reply.body;
  const Json body = ParsedBody(reply);
  EXPECT_THAT(At(body, "id").as_string(), StartsWith("msg_"));
  EXPECT_EQ(At(body, "type"), Json("message"));
  EXPECT_EQ(At(body, "role"), Json("assistant"));
  EXPECT_EQ(At(body, "content.0.type"), Json("text"));
  EXPECT_EQ(At(body, "content.0.text"), Json(kAnswer));
  EXPECT_EQ(At(body, "stop_reason"), Json("end_turn"));
  EXPECT_TRUE(At(body, "stop_sequence").is_null());
  EXPECT_GT(At(body, "usage.input_tokens").as_int(), 20);
  EXPECT_GT(At(body, "usage.output_tokens").as_int(), 5);
  const Json counted =
      ParsedBody(Post(server_->port(), "/v1/messages/count_tokens",
                      StrCat(R"({"messages":[{"role":"user","content":[{"type":"text","text":")",
                             kQuestion, "\"}]}]}")));
  EXPECT_EQ(
      At(counted, "input_tokens").as_int(),
      At(body, "usage.input_tokens").as_int() + At(body, "usage.cache_read_input_tokens").as_int());
}

TEST_F(ProtocolsTest, MessagesSayWhyTheyStopped) {
  const Json stopped = ParsedBody(Messages(R"(,"stop_sequences":["zzz"," cedar"])"));
  EXPECT_EQ(At(stopped, "content.0.text"), Json("The access code for"));
  EXPECT_EQ(At(stopped, "stop_reason"), Json("stop_sequence"));
  EXPECT_EQ(At(stopped, "stop_sequence"), Json(" cedar"));
  const Json cut =
      ParsedBody(Post(server_->port(), "/v1/messages",
                      R"({"max_tokens":1,"messages":[{"role":"user","content":"a"}]})"));
  EXPECT_EQ(At(cut, "stop_reason"), Json("max_tokens"));
}

TEST_F(ProtocolsTest, MessagesStream) {
  const HttpReply reply = Messages(R"(,"stream":true)");
  EXPECT_THAT(reply.headers.at("content-type"), StartsWith("text/event-stream"));
  const std::vector<Event> events = NamedEvents(reply.body);
  ASSERT_GT(events.size(), 6u) << reply.body;
  EXPECT_EQ(events[0].name, "message_start");
  EXPECT_GT(At(events[0].data, "message.usage.input_tokens").as_int(), 20);
  EXPECT_EQ(events[1].name, "content_block_start");
  EXPECT_EQ(At(events[1].data, "content_block.type"), Json("text"));
  std::string text;
  for (size_t i = 2; i + 3 < events.size(); ++i) {
    EXPECT_EQ(events[i].name, "content_block_delta");
    EXPECT_EQ(At(events[i].data, "delta.type"), Json("text_delta"));
    text += At(events[i].data, "delta.text").as_string();
  }
  EXPECT_EQ(text, kAnswer);
  EXPECT_EQ(events[events.size() - 3].name, "content_block_stop");
  EXPECT_EQ(events[events.size() - 2].name, "message_delta");
  EXPECT_EQ(At(events[events.size() - 2].data, "delta.stop_reason"), Json("end_turn"));
  EXPECT_GT(At(events[events.size() - 2].data, "usage.output_tokens").as_int(), 5);
  EXPECT_EQ(events.back().name, "message_stop");
}

TEST_F(ProtocolsTest, MessagesCallTools) {
  const std::string tools =
      R"(,"tools":[{"name":"get","description":"d","input_schema":{"type":"object",
      "properties":{"n":{"type":"integer","minimum":1,"maximum":3}},"required":["n"]}}],
      "tool_choice":{"type":"tool","name":"get","disable_parallel_tool_use":true})";
  const Json body = ParsedBody(Messages(tools));
  EXPECT_EQ(At(body, "stop_reason"), Json("tool_use")) << WriteJson(body);
  EXPECT_EQ(At(body, "content.0.type"), Json("tool_use"));
  EXPECT_EQ(At(body, "content.0.name"), Json("get"));
  EXPECT_GE(At(body, "content.0.input.n").as_int(), 1);
  const std::vector<Event> events = NamedEvents(Messages(tools + R"(,"stream":true)").body);
  std::string input;
  for (const Event& event : events) {
    if (event.name == "content_block_start") {
      EXPECT_EQ(At(event.data, "content_block.type"), Json("tool_use"));
    }
    if (event.name != "content_block_delta") continue;
    EXPECT_EQ(At(event.data, "delta.type"), Json("input_json_delta"));
    input += At(event.data, "delta.partial_json").as_string();
  }
  EXPECT_EQ(ParseJson(input).value(), At(body, "content.0.input"));
  // And what came of it goes back in.
  const HttpReply next =
      Post(server_->port(), "/v1/messages",
           R"({"max_tokens":5,"system":[{"type":"text","text":"Be brief."}],"messages":[
      {"role":"user","content":"a"},{"role":"assistant","content":[{"type":"tool_use","id":"t1","name":"get","input":{"n":1}}]},
      {"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":[{"type":"text","text":"7"}]}]}]})");
  EXPECT_EQ(next.status, 200) << next.body;
}

TEST_F(ProtocolsTest, MessagesErrorsAreAnthropics) {
  const auto expect = [&](const HttpReply& reply, int status, const char* type,
                          const char* message) {
    EXPECT_EQ(reply.status, status) << reply.body;
    const Json body = ParsedBody(reply);
    EXPECT_EQ(At(body, "type"), Json("error"));
    EXPECT_EQ(At(body, "error.type"), Json(type));
    EXPECT_THAT(At(body, "error.message").as_string(), HasSubstr(message));
  };
  const auto post = [&](const std::string& json) {
    return Post(server_->port(), "/v1/messages", json);
  };
  expect(post(R"({"messages":[{"role":"user","content":"a"}]})"), 400, "invalid_request_error",
         "max_tokens is missing");
  expect(post(R"({"max_tokens":1,"messages":[{"role":"system","content":"a"}]})"), 400,
         "invalid_request_error", "messages[0]: role");
  expect(post(R"({"max_tokens":1,"messages":[{"role":"user","content":[{"type":"image"}]}]})"), 400,
         "invalid_request_error", "text only");
  expect(
      post(
          R"({"max_tokens":1,"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]})"),
      400, "invalid_request_error", "ends with one of the assistant");
  expect(Messages(R"(,"model":"claude-3")"), 404, "not_found_error", "does not exist");
  expect(Messages(R"(,"thinking":{"type":"enabled","budget_tokens":1024})"), 400,
         "invalid_request_error", "thinking");
  expect(Messages(R"(,"tools":[{"type":"web_search_20250305","name":"w"}])"), 400,
         "invalid_request_error", "runs no tools");
  expect(post("{"), 400, "invalid_request_error", "");
}

TEST_F(ProtocolsTest, ResponsesAnswer) {
  const HttpReply reply = Respond(R"(,"store":false,"reasoning":{"effort":"low"})");
  ASSERT_EQ(reply.status, 200) << reply.body;
  const Json body = ParsedBody(reply);
  EXPECT_THAT(At(body, "id").as_string(), StartsWith("resp_"));
  EXPECT_EQ(At(body, "object"), Json("response"));
  EXPECT_EQ(At(body, "status"), Json("completed"));
  EXPECT_EQ(At(body, "output.0.content.0.type"), Json("output_text"));
  EXPECT_EQ(At(body, "output.0.content.0.text"), Json(kAnswer));
  EXPECT_GT(At(body, "usage.total_tokens").as_int(), 20);
  const Json cut = ParsedBody(Respond(R"(,"max_output_tokens":2)"));
  EXPECT_EQ(At(cut, "status"), Json("incomplete"));
  EXPECT_EQ(At(cut, "incomplete_details.reason"), Json("max_output_tokens"));
  const Json formed = ParsedBody(
      Respond(R"(,"text":{"format":{"type":"json_schema","name":"x","schema":{"enum":["a",1]}}})"));
  const std::string text = At(formed, "output.0.content.0.text").as_string();
  EXPECT_TRUE(text == "\"a\"" || text == "1") << text;
}

TEST_F(ProtocolsTest, ResponsesStream) {
  const std::vector<Event> events = NamedEvents(Respond(R"(,"stream":true)").body);
  ASSERT_GT(events.size(), 8u);
  std::string text;
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(At(events[i].data, "sequence_number"), Json(static_cast<int64_t>(i)));
    if (events[i].name == "response.output_text.delta")
      text += At(events[i].data, "delta").as_string();
  }
  EXPECT_EQ(text, kAnswer);
  EXPECT_EQ(events[0].name, "response.created");
  EXPECT_EQ(events[1].name, "response.in_progress");
  EXPECT_EQ(events[2].name, "response.output_item.added");
  EXPECT_EQ(events[3].name, "response.content_part.added");
  EXPECT_EQ(events.back().name, "response.completed");
  EXPECT_EQ(At(events.back().data, "response.output.0.content.0.text"), Json(kAnswer));
}

TEST_F(ProtocolsTest, ResponsesCallTools) {
  const std::string tools =
      R"(,"tools":[{"type":"function","name":"get","parameters":{"type":"object",
      "properties":{"n":{"enum":[1,2]}},"required":["n"]}}],"tool_choice":"required","parallel_tool_calls":false)";
  const Json body = ParsedBody(Respond(tools));
  EXPECT_EQ(At(body, "output.0.type"), Json("function_call")) << WriteJson(body);
  EXPECT_EQ(At(body, "output.0.name"), Json("get"));
  const std::vector<Event> events = NamedEvents(Respond(tools + R"(,"stream":true)").body);
  std::string arguments;
  for (const Event& event : events) {
    if (event.name == "response.function_call_arguments.delta")
      arguments += At(event.data, "delta").as_string();
  }
  EXPECT_EQ(Json(arguments), At(body, "output.0.arguments"));
  const HttpReply next = Post(
      server_->port(), "/v1/responses",
      R"({"max_output_tokens":5,"input":[{"role":"user","content":[{"type":"input_text","text":"a"}]},
      {"type":"function_call","call_id":"c","name":"get","arguments":"{\"n\":1}"},{"type":"function_call_output","call_id":"c","output":"7"}]})");
  EXPECT_EQ(next.status, 200) << next.body;
}

TEST_F(ProtocolsTest, ResponsesRefuseWhatNeedsAMemory) {
  for (const char* more :
       {R"(,"previous_response_id":"resp_1")", R"(,"store":true)", R"(,"background":true)",
        R"(,"tools":[{"type":"web_search"}])", R"(,"truncation":"auto")"}) {
    const HttpReply reply = Respond(more);
    EXPECT_EQ(reply.status, 400) << more << reply.body;
    EXPECT_TRUE(At(ParsedBody(reply), "error.message").is_string());
  }
}

}  // namespace
}  // namespace lserve
