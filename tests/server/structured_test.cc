// Answers that keep to a form: response_format and tools. The bundled model can not write JSON of
// its own: what comes out right here is the mask's doing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/strings.h"
#include "tests/server/running_server.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

const char kQuestion[] =
    "The access code for cedar is 48213. Grass is green.\n\nWhat is the access code for cedar?";
const char kAnswer[] = "The access code for cedar is 48213.";
const char kTools[] =
    R"(,"tools":[{"type":"function","function":{"name":"get_code","description":"d","parameters":
       {"type":"object","properties":{"name":{"enum":["cedar","oak"]},"count":{"type":"integer","minimum":1,"maximum":9}},
        "required":["name","count"],"additionalProperties":false}}},
      {"type":"function","function":{"name":"stop"}}])";

class StructuredTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = new RunningServer(
        [](EngineConfig&, ServerConfig& config) { config.service.default_max_tokens = 256; });
  }
  static void TearDownTestSuite() { delete server_; }
  static HttpReply Ask(const std::string& more) {
    return Post(server_->port(), "/v1/chat/completions", ChatJson(kQuestion, more));
  }
  static void ExpectRefused(const std::string& more,
                            const std::string& param,
                            const std::string& message) {
    const HttpReply reply = Ask(more);
    EXPECT_EQ(reply.status, 400) << reply.body;
    EXPECT_EQ(At(ParsedBody(reply), "error.param"), Json(param)) << reply.body;
    EXPECT_THAT(At(ParsedBody(reply), "error.message").as_string(), HasSubstr(message));
  }
  static void ExpectCall(const Json& call) {
    EXPECT_THAT(At(call, "id").as_string(), testing::StartsWith("call_"));
    EXPECT_EQ(At(call, "type"), Json("function"));
    const Json arguments = ParseJson(At(call, "function.arguments").as_string()).value();
    if (At(call, "function.name") == Json("stop")) {
      EXPECT_EQ(arguments, Json(Json::Object{}));
      return;
    }
    EXPECT_EQ(At(call, "function.name"), Json("get_code"));
    EXPECT_TRUE(At(arguments, "name") == Json("cedar") || At(arguments, "name") == Json("oak"));
    EXPECT_GE(At(arguments, "count").as_int(), 1);
    EXPECT_LE(At(arguments, "count").as_int(), 9);
  }
  // googletest's fixtures of a suite are static.
  static RunningServer* server_;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)
};
// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables)
RunningServer* StructuredTest::server_ = nullptr;

TEST_F(StructuredTest, AnswersAreOfTheSchema) {
  const std::string format =
      R"(,"response_format":{"type":"json_schema","json_schema":{"name":"x","strict":true,"schema":
         {"type":"object","properties":{"name":{"type":"string","maxLength":12},"code":{"type":"integer","minimum":0,"maximum":99999},
          "kind":{"enum":["tree","stone"]}},"required":["name","code","kind"],"additionalProperties":false}}})";
  for (const char* more : {R"(,"temperature":0)", R"(,"temperature":1.7,"seed":1)",
                           R"(,"temperature":2,"seed":2,"n":2)"}) {
    const HttpReply reply = Ask(format + more);
    ASSERT_EQ(reply.status, 200) << reply.body;
    const Json body = ParsedBody(reply);
    const Json choices = At(body, "choices");
    for (const Json& choice : choices.as_array()) {
      EXPECT_EQ(At(choice, "finish_reason"), Json("stop"));
      const std::string text = At(choice, "message.content").as_string();
      const Result<Json> json = ParseJson(text);
      ASSERT_TRUE(json.ok()) << text;
      ASSERT_EQ(json.value().as_object().size(), 3u);
      EXPECT_TRUE(At(json.value(), "name").is_string());
      EXPECT_LE(At(json.value(), "code").as_int(), 99999);
      EXPECT_TRUE(At(json.value(), "kind") == Json("tree") ||
                  At(json.value(), "kind") == Json("stone"));
    }
  }
  EXPECT_EQ(server_->Metric("lserve:logit_copies_total"), 0) << "masks act where the logits are";
}

TEST_F(StructuredTest, JsonObjectAndStream) {
  const HttpReply reply = Ask(
      R"(,"stream":true,"max_tokens":400,"temperature":1,"seed":3,"response_format":{"type":"json_object"})");
  ASSERT_EQ(reply.status, 200) << reply.body;
  std::string text, reason;
  for (const std::string& event : SseEvents(reply.body)) {
    if (event == "[DONE]") break;
    const Json chunk = ParseJson(event).value();
    const Json piece = At(chunk, "choices.0.delta.content");
    if (piece.is_string()) text += piece.as_string();
    const Json end = At(chunk, "choices.0.finish_reason");
    if (end.is_string()) reason = end.as_string();
  }
  ASSERT_EQ(text[0], '{');
  if (reason == "stop") {
    EXPECT_TRUE(ParseJson(text).ok()) << text;
  } else {
    EXPECT_EQ(reason, "length");
  }
}

TEST_F(StructuredTest, CompletionsTakeAFormat) {
  const Json body = ParsedBody(Post(
      server_->port(), "/v1/completions",
      R"({"prompt":"x","response_format":{"type":"json_schema","json_schema":{"schema":{"enum":[true,null]}}}})"));
  const std::string text = At(body, "choices.0.text").as_string();
  EXPECT_TRUE(text == "true" || text == "null") << text;
}

TEST_F(StructuredTest, RequiredAndNamedToolsAreCalled) {
  for (const char* choice :
       {R"("required")", R"({"type":"function","function":{"name":"get_code"}})"}) {
    for (const char* more : {R"(,"temperature":0,"parallel_tool_calls":false)",
                             R"(,"temperature":2,"seed":5,"parallel_tool_calls":false)"}) {
      const HttpReply reply = Ask(StrCat(kTools, R"(,"tool_choice":)", choice, more));
      ASSERT_EQ(reply.status, 200) << reply.body;
      const Json body = ParsedBody(reply);
      EXPECT_EQ(At(body, "choices.0.finish_reason"), Json("tool_calls"));
      EXPECT_TRUE(At(body, "choices.0.message.content").is_null());
      const Json calls = At(body, "choices.0.message.tool_calls");
      ASSERT_EQ(calls.as_array().size(), 1u);
      ExpectCall(calls.as_array()[0]);
      if (choice[0] == '{') {
        EXPECT_EQ(At(calls, "0.function.name"), Json("get_code"));
      }
    }
  }
}

TEST_F(StructuredTest, CallsStreamAsDeltas) {
  const std::string ask =
      StrCat(kTools, R"(,"tool_choice":"required","temperature":1.5,"seed":11,"max_tokens":200)");
  const HttpReply reply = Ask(ask + R"(,"stream":true)");
  std::vector<Json> calls;
  std::string reason;
  for (const std::string& event : SseEvents(reply.body)) {
    if (event == "[DONE]") break;
    const Json chunk = ParseJson(event).value();
    const Json end = At(chunk, "choices.0.finish_reason");
    if (end.is_string()) reason = end.as_string();
    const Json delta = At(chunk, "choices.0.delta.tool_calls.0");
    if (delta.is_null()) continue;
    const size_t index = static_cast<size_t>(At(delta, "index").as_int());
    if (index == calls.size()) {
      EXPECT_TRUE(At(delta, "id").is_string());
      calls.push_back(delta);
      continue;
    }
    ASSERT_EQ(index + 1, calls.size());
    EXPECT_TRUE(At(delta, "id").is_null());
    std::string all = At(calls[index], "function.arguments").as_string() +
                      At(delta, "function.arguments").as_string();
    calls[index] = Json(
        Json::Object{{"id", At(calls[index], "id")},
                     {"type", Json("function")},
                     {"function", Json(Json::Object{{"name", At(calls[index], "function.name")},
                                                    {"arguments", Json(all)}})}});
  }
  ASSERT_FALSE(calls.empty());
  if (reason != "length") {
    EXPECT_EQ(reason, "tool_calls");
    for (const Json& call : calls) ExpectCall(call);
  }
  // The same as a whole.
  const Json whole = ParsedBody(Ask(ask));
  ASSERT_EQ(At(whole, "choices.0.message.tool_calls").as_array().size(), calls.size());
  EXPECT_EQ(At(whole, "choices.0.message.tool_calls.0.function.arguments"),
            At(calls[0], "function.arguments"));
}

TEST_F(StructuredTest, WithAutoTheModelMayAnswerOrCall) {
  const Json free = ParsedBody(Ask(StrCat(kTools, R"(,"tool_choice":"none")")));
  EXPECT_EQ(At(free, "choices.0.message.content"), Json(kAnswer));
  const Json automatic = ParsedBody(Ask(StrCat(kTools, R"(,"temperature":0)")));
  ASSERT_TRUE(At(automatic, "choices.0.message.content").is_string()) << WriteJson(automatic);
  EXPECT_TRUE(At(automatic, "choices.0.message.tool_calls").is_null());
  EXPECT_EQ(At(automatic, "choices.0.finish_reason"), Json("stop"));
}

TEST_F(StructuredTest, ResultsOfToolsAreRead) {
  const std::string body = R"({"temperature":0,"messages":[
      {"role":"user","content":"What is the access code for cedar?"},
      {"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"get_code","arguments":"{\"name\": \"cedar\"}"}}]},
      {"role":"tool","tool_call_id":"call_1","content":"The access code for cedar is 48213."}]})";
  const HttpReply reply = Post(server_->port(), "/v1/chat/completions", body);
  EXPECT_EQ(reply.status, 200) << reply.body;
  const std::string prompt =
      At(ParsedBody(Post(server_->port(), "/apply-template", body)), "prompt").as_string();
  EXPECT_THAT(prompt, HasSubstr("<tool_call>\n{\"name\": \"get_code\", \"arguments\": {\"name\": "
                                "\"cedar\"}}\n</tool_call>"));
  EXPECT_THAT(prompt,
              HasSubstr("<tool_response>\nThe access code for cedar is 48213.\n</tool_response>"));
}

TEST_F(StructuredTest, WhatCanNotBeKeptIsRefused) {
  const auto schema = [](const std::string& text) {
    return StrCat(R"(,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":)",
                  text, "}}");
  };
  ExpectRefused(
      schema(R"({"type":"array","uniqueItems":true})"), "response_format",
      "response_format.json_schema.schema has the keyword \"uniqueItems\", which is not supported");
  ExpectRefused(schema(R"({"$ref":"#"})"), "response_format", "no finite text");
  ExpectRefused(R"(,"response_format":{"type":"xml"})", "response_format.type",
                "expected text, json_object or json_schema");
  ExpectRefused(R"(,"response_format":{"type":"json_schema"})", "response_format.json_schema",
                "is missing");
  ExpectRefused(R"(,"ignore_eos":true,"response_format":{"type":"json_object"})", "response_format",
                "ignore_eos");
  ExpectRefused(R"(,"tool_choice":"required")", "tool_choice", "expected tools");
  ExpectRefused(StrCat(kTools, R"(,"tool_choice":{"type":"function","function":{"name":"x"}})"),
                "tool_choice", "names \"x\"");
  ExpectRefused(R"(,"tools":[{"type":"function","function":{"name":"a b"}}])",
                "tools[0].function.name", "letters, digits");
  ExpectRefused(R"(,"tools":[{"type":"retrieval"}])", "tools[0]", "is no function");
  ExpectRefused(R"(,"tools":[{"type":"function","function":{"name":"f","parameters":{"not":{}}}}])",
                "tools", "tools[0].function.parameters has the keyword \"not\"");
  ExpectRefused(R"(,"functions":[{"name":"f"}])", "functions", "use tools");
}

}  // namespace
}  // namespace lserve
