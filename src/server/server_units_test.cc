// The server's pure parts: parsing of bodies, replies, framing, keys, metrics.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/strings.h"
#include "server/api_error.h"
#include "server/auth.h"
#include "server/http_head.h"
#include "server/metrics.h"
#include "server/openai_types.h"
#include "server/server.h"
#include "server/sse.h"

namespace lserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <class Body>
Body Parsed(const std::string& text) {
  Body body;
  const std::optional<ApiError> error = ParseBody(ParseJson(text).value(), &body);
  EXPECT_FALSE(error.has_value()) << error->message;
  return body;
}
template <class Body>
std::string Problem(const std::string& text) {
  Body body;
  const std::optional<ApiError> error = ParseBody(ParseJson(text).value(), &body);
  return error ? error->message : "";
}

const char kMessages[] = R"("messages":[{"role":"user","content":"a"}])";

TEST(ChatBodyTest, ReadsEveryField) {
  const ChatBody body = Parsed<ChatBody>(StrCat("{", kMessages, R"(,"model":"m","stream":true,
      "stream_options":{"include_usage":true},"max_tokens":7,"max_completion_tokens":5,"n":3,
      "temperature":0.5,"top_p":0.25,"min_p":0.125,"top_k":-1,"presence_penalty":1,
      "frequency_penalty":-1,"repetition_penalty":1.5,"seed":-3,"stop":["x","y"],
      "stop_token_ids":[4,5],"ignore_eos":true,"min_tokens":2,"logit_bias":{"17":-2.5},
      "logprobs":true,"top_logprobs":4,"sparse":{"attention":"dense","token_budget":512}})"));
  const GenerationParams& params = body.params;
  EXPECT_EQ(params.model, "m");
  EXPECT_TRUE(params.stream && params.include_usage && params.ignore_eos);
  EXPECT_EQ(params.max_tokens, 5) << "the newer name wins";
  EXPECT_EQ(params.n, 3);
  EXPECT_EQ(params.temperature, 0.5);
  EXPECT_EQ(params.top_p, 0.25);
  EXPECT_EQ(params.min_p, 0.125);
  EXPECT_EQ(params.top_k, 0) << "-1 is off";
  EXPECT_EQ(params.presence_penalty, 1.0);
  EXPECT_EQ(params.frequency_penalty, -1.0);
  EXPECT_EQ(params.repetition_penalty, 1.5);
  EXPECT_EQ(params.seed, -3);
  EXPECT_THAT(params.stop, ElementsAre("x", "y"));
  EXPECT_THAT(params.stop_token_ids, ElementsAre(4, 5));
  EXPECT_EQ(params.min_tokens, 2);
  EXPECT_THAT(params.logit_bias, ElementsAre(std::pair<int32_t, float>(17, -2.5f)));
  EXPECT_EQ(params.top_logprobs, 4);
  EXPECT_EQ(params.attention, AttentionMode::kDense);
  EXPECT_EQ(params.token_budget, 512);
}

TEST(ChatBodyTest, NullMeansNotGiven) {
  const ChatBody body =
      Parsed<ChatBody>(StrCat("{", kMessages, R"(,"temperature":null,"stop":null,"max_tokens":null,
      "stream_options":null,"tools":null,"n":null,"logit_bias":null,"response_format":null})"));
  EXPECT_FALSE(body.params.temperature.has_value());
  EXPECT_FALSE(body.params.max_tokens.has_value());
  EXPECT_EQ(body.params.n, 1);
}

TEST(ChatBodyTest, PartsAreJoinedAndDeveloperIsSystem) {
  const ChatBody body = Parsed<ChatBody>(
      R"({"messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]})");
  EXPECT_EQ(WriteJson(body.messages), R"([{"role":"system","content":"ab"}])");
}

TEST(ChatBodyTest, OutOfRangeIsRefusedAndNeverClamped) {
  for (const char* field :
       {R"("n":0)", R"("n":17)", R"("max_tokens":0)", R"("max_tokens":-1)",
        R"("max_tokens":2147483648)", R"("temperature":2.01)", R"("top_p":-0.1)", R"("top_k":-2)",
        R"("presence_penalty":2.5)", R"("stop_token_ids":[-1])", R"("logit_bias":{"-1":0})",
        R"("logit_bias":{"1x":0})", R"("logit_bias":{"1":101})", R"("top_logprobs":21)",
        R"("sparse":{"attention":"off"})", R"("min_tokens":-1)"}) {
    EXPECT_NE(Problem<ChatBody>(StrCat("{", kMessages, ",", field, "}")), "") << field;
  }
}

TEST(ChatBodyTest, ForeignTextInMessagesIsCutAndEscaped) {
  const std::string problem = Problem<ChatBody>(
      StrCat("{", kMessages, R"(,"temperature":"a\n)", std::string(500, 'x'), "\"}"));
  EXPECT_LT(problem.size(), 200u);
  EXPECT_EQ(problem.find('\n'), std::string::npos);
}

TEST(CompletionBodyTest, PromptForms) {
  EXPECT_EQ(Parsed<CompletionBody>(R"({"prompt":"a"})").prompts.size(), 1u);
  EXPECT_EQ(Parsed<CompletionBody>(R"({"prompt":["a","b"]})").prompts[1].text, "b");
  EXPECT_THAT(Parsed<CompletionBody>(R"({"prompt":[1,2]})").prompts[0].token_ids,
              ElementsAre(1, 2));
  EXPECT_EQ(Parsed<CompletionBody>(R"({"prompt":[[1],[2]]})").prompts.size(), 2u);
  for (const char* bad : {R"({})", R"({"prompt":5})", R"({"prompt":[]})", R"({"prompt":[[]]})",
                          R"({"prompt":[1,"a"]})", R"({"prompt":[true]})"}) {
    EXPECT_NE(Problem<CompletionBody>(bad), "") << bad;
  }
}

TEST(FramingTest, SseIsDataLinesOnly) {
  EXPECT_EQ(SseData(Json(Json::Object{{"a", Json("b\nc")}})), "data: {\"a\":\"b\\nc\"}\n\n");
  EXPECT_EQ(kSseHeartbeat.substr(0, 1), ":");
  EXPECT_TRUE(kSseHeartbeat.ends_with("\n\n"));
}

TEST(FramingTest, HeadsAndChunks) {
  const std::string head = ResponseHead(
      {.status = 429, .body = "{}", .headers = {{"Retry-After", "3\r\nSet-Cookie: x"}}}, {});
  EXPECT_THAT(head, testing::StartsWith("HTTP/1.1 429 Too Many Requests\r\n"));
  EXPECT_THAT(head, HasSubstr("Content-Length: 2\r\n"));
  EXPECT_THAT(head, HasSubstr("Retry-After: 3  Set-Cookie: x\r\n")) << "no line of its own";
  EXPECT_TRUE(head.ends_with("\r\n\r\n"));
  EXPECT_EQ(HttpChunk(std::string(26, 'x')), "1a\r\n" + std::string(26, 'x') + "\r\n");
}

TEST(ApiErrorTest, HasOpenAisFourMembers) {
  const ApiError error = {
      .http_status = 404, .message = "m", .code = "model_not_found", .param = "model"};
  EXPECT_EQ(
      WriteJson(error.ToJson()),
      R"({"error":{"message":"m","type":"not_found_error","param":"model","code":"model_not_found"}})");
  EXPECT_EQ(WriteJson(ApiError{.message = "m"}.ToJson()),
            R"({"error":{"message":"m","type":"invalid_request_error","param":null,"code":null}})");
}

TEST(AuthTest, KeysMatchAsAWhole) {
  EXPECT_TRUE(IsKnownKey("abc", {"x", "abc"}));
  for (const char* wrong : {"", "ab", "abcd", "abcabc", "abd", "ABC"})
    EXPECT_FALSE(IsKnownKey(wrong, {"abc"})) << wrong;
  EXPECT_FALSE(IsKnownKey("", {""}));
  HttpRequest request;
  request.headers = {{"authorization", "bearer k1"}, {"x-api-key", "k2"}};
  EXPECT_EQ(PresentedKey(request), "k1");
  request.headers = {{"authorization", "Basic zzz"}, {"api-key", "k3"}};
  EXPECT_EQ(PresentedKey(request), "k3");
}

TEST(AuthTest, CorsNamesTheOriginOrNothing) {
  EXPECT_TRUE(CorsHeaders("https://a", {}).empty());
  EXPECT_TRUE(CorsHeaders("", {"*"}).empty());
  EXPECT_TRUE(CorsHeaders("https://evil", {"https://a"}).empty());
  EXPECT_EQ(CorsHeaders("https://a", {"https://a"})[0].second, "https://a");
  EXPECT_EQ(CorsHeaders("https://a", {"*"})[0].second, "*");
}

TEST(MetricsTest, HistogramsAreCumulative) {
  Histogram histogram({1, 2, 5});
  for (const double value : {0.5, 1.0, 1.5, 7.0}) histogram.Observe(value);
  std::string text;
  histogram.Write("h", "a=\"b\"", "help.", &text);
  EXPECT_THAT(text, HasSubstr("h_bucket{a=\"b\",le=\"1\"} 2\nh_bucket{a=\"b\",le=\"2\"} 3\n"
                              "h_bucket{a=\"b\",le=\"5\"} 3\nh_bucket{a=\"b\",le=\"+Inf\"} 4\n"
                              "h_sum{a=\"b\"} 10\nh_count{a=\"b\"} 4\n"));
}

TEST(MetricsTest, ModelNamesAreEscaped) {
  const Metrics metrics("a\"b\n", 1000);
  EXPECT_THAT(metrics.Render({}, 0), HasSubstr("model_name=\"a\\\"b \""));
}

TEST(BodyLimitTest, HoldsAPromptOfTheWholeContext) {
  // Every token a character that JSON escapes as a surrogate pair, 12 bytes.
  EXPECT_GT(BodyLimit(131072), size_t{131072} * 12);
}

}  // namespace
}  // namespace lserve
