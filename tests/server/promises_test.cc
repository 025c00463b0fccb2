// Complaints about other servers, and classes of vulnerability, that no other test holds; the whole
// list is docs/server_promises.md.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>

#include "base/strings.h"
#include "tests/server/running_server.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

const char kChat[] = "/v1/chat/completions";

int64_t Cached(const Json& reply) {
  return At(reply, "usage.prompt_tokens_details.cached_tokens").as_int();
}

// Complaints 12 and 23: a turn of a conversation starts where the one before it ended, and another
// conversation in between takes nothing away.
TEST(ConversationTest, TwoThatAlternateKeepTheirPrefixes) {
  RunningServer server;
  std::array<std::string, 2> turns;
  for (size_t i = 0; i < turns.size(); ++i) {
    turns[i] = StrCat(R"({"role":"user","content":")", i == 0 ? "First. " : "Second. ",
                      LongText(120), R"("})");
  }
  std::array<int64_t, 2> before = {};
  for (int turn = 0; turn < 3; ++turn) {
    for (size_t i = 0; i < turns.size(); ++i) {
      const Json reply = ParsedBody(
          Post(server.port(), kChat,
               StrCat(R"({"messages":[)", turns[i], R"(],"max_tokens":4,"ignore_eos":true})")));
      const int64_t prompt = At(reply, "usage.prompt_tokens").as_int();
      // A page of 64 tokens is shared when it is full.
      EXPECT_GE(Cached(reply), before[i] - 64) << "turn " << turn << " of " << i;
      EXPECT_GT(prompt, before[i]);
      before[i] = prompt;
      turns[i] += StrCat(R"(,{"role":"assistant","content":)",
                         WriteJson(At(reply, "choices.0.message.content")),
                         R"(},{"role":"user","content":"And then?"})");
    }
  }
}

// Complaint 15: what a preempted request computes again is no hit, and its prompt counts once.
TEST(PrefixMetricsTest, AreWhatTheAnswersSay) {
  RunningServer server([](EngineConfig& engine, ServerConfig&) { engine.max_num_seqs = 1; });
  HttpClient first(server.port());
  first.Send(HttpClient::PostBytes(
      kChat,
      ChatJson(
          LongText(60),
          R"(,"priority":5,"stream":true,"stream_options":{"include_usage":true},"ignore_eos":true,"max_tokens":300)")));
  ASSERT_TRUE(first.ReadUntil("\"role\":\"assistant\""));
  const Json second = ParsedBody(
      Post(server.port(), kChat, ChatJson("Other. " + LongText(60), R"(,"max_tokens":1)")));
  const std::vector<std::string> events = SseEvents(first.ReadReply().body);
  ASSERT_GE(events.size(), 2U);
  Result<Json> last = ParseJson(events[events.size() - 2]);
  ASSERT_TRUE(last.ok());
  EXPECT_GE(server.Metric("vllm:num_preemptions_total"), 1);
  EXPECT_EQ(server.Metric("vllm:prefix_cache_queries_total"),
            At(last.value(), "usage.prompt_tokens").as_int() +
                At(second, "usage.prompt_tokens").as_int());
  EXPECT_EQ(server.Metric("vllm:prefix_cache_hits_total"), Cached(last.value()) + Cached(second));
}

// Complaints 3 and 4: beside an answer a prompt is read in chunks of about the time that was set,
// here the least there is; alone in whole ones.
TEST(DecodeGapTest, ChunksBesideAnAnswerAreCutToTheGap) {
  RunningServer server([](EngineConfig& engine, ServerConfig& config) {
    engine.max_num_batched_tokens = 4096;
    engine.max_decode_gap_ms = 0.001;
    config.service.prefix_caching = false;
  });
  const auto steps_of_a_prompt = [&] {
    const double before = server.Metric("lserve:steps_total");
    const Json reply =
        ParsedBody(Post(server.port(), kChat, ChatJson(LongText(360), R"(,"max_tokens":1)")));
    EXPECT_GT(At(reply, "usage.prompt_tokens").as_int(), 8 * 128);
    return server.Metric("lserve:steps_total") - before;
  };
  EXPECT_LT(steps_of_a_prompt(), 3);
  HttpClient answer(server.port());
  answer.Send(HttpClient::PostBytes(
      kChat, ChatJson("hi", R"(,"stream":true,"ignore_eos":true,"max_tokens":20000)")));
  ASSERT_TRUE(answer.ReadUntil("\"role\":\"assistant\""));
  EXPECT_GE(steps_of_a_prompt(), 8);
}

// A port of this machine that tells whether anybody came.
class Bait {
 public:
  Bait() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd_, reinterpret_cast<const sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(fd_, 8), 0);
    getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
    url_ = StrCat("http://127.0.0.1:", ntohs(address.sin_port), "/cat.png");
  }
  ~Bait() { close(fd_); }
  Bait(const Bait&) = delete;
  Bait& operator=(const Bait&) = delete;

  const std::string& url() const { return url_; }
  bool visited() const { return accept(fd_, nullptr, nullptr) >= 0; }

 private:
  int fd_;
  std::string url_;
};

class UntrustedFieldsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { server_ = new RunningServer(); }
  static void TearDownTestSuite() { delete server_; }
  static void ExpectRefused(const std::string& path, const std::string& body, const char* why) {
    const HttpReply reply = Post(server_->port(), path, body);
    EXPECT_EQ(reply.status, 400) << path << " " << body << ": " << reply.body;
    EXPECT_THAT(At(ParsedBody(reply), "error.message").as_string(), HasSubstr(why)) << body;
  }

  // googletest's fixtures of a suite are static.
  static RunningServer* server_;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)
};
// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables)
RunningServer* UntrustedFieldsTest::server_ = nullptr;

// Class 12: a server that fetches what clients name reaches what they can not.
TEST_F(UntrustedFieldsTest, NothingIsFetched) {
  const Bait bait;
  for (const std::string& url : {bait.url(), std::string("file:///etc/passwd"),
                                 std::string("data:image/png;base64,iVBORw0KGgo=")}) {
    const std::string q = WriteJson(Json(url));
    const std::string parts[] = {
        StrCat(R"({"type":"image_url","image_url":{"url":)", q, "}}"),
        StrCat(R"({"type":"video_url","video_url":{"url":)", q, "}}"),
        StrCat(R"({"type":"input_image","image_url":)", q, "}"),
        StrCat(R"({"type":"input_file","file_url":)", q, "}"),
        StrCat(R"({"type":"input_audio","input_audio":{"data":)", q, "}}"),
        StrCat(R"({"type":"image","source":{"type":"url","url":)", q, "}}"),
        StrCat(R"({"type":"document","source":{"url":)", q, "}}")};
    for (const std::string& part : parts) {
      const std::string list = StrCat(
          R"([{"role":"user","content":[{"type":"text","text":"What is it?"},)", part, "]}]");
      const std::string messages = StrCat(R"({"max_tokens":1,"messages":)", list, "}");
      for (const char* path : {kChat, "/tokenize", "/apply-template"})
        ExpectRefused(path, messages, "this server reads text only");
      ExpectRefused("/v1/responses", StrCat(R"({"input":)", list, "}"), "text");
      ExpectRefused("/v1/messages", messages, "expected");
    }
  }
  // A prompt may speak of an address.
  EXPECT_EQ(Post(server_->port(), kChat, ChatJson(bait.url(), R"(,"max_tokens":1)")).status, 200);
  EXPECT_FALSE(bait.visited());
}

// Class 11: no field takes a tensor, beside a prompt or in its place.
TEST_F(UntrustedFieldsTest, NoTensorsFromClients) {
  for (const char* name : {"prompt_embeds", "input_embeds", "image_data", "video_data",
                           "audio_data", "multi_modal_data", "mm_processor_kwargs"}) {
    const std::string member = StrCat(",\"", name, R"(":["gAJjdG9yY2gKVGVuc29y"])");
    const char* why = "prompts are text or token ids";
    ExpectRefused(kChat, ChatJson("hi", member), why);
    ExpectRefused("/v1/completions", StrCat(R"({"prompt":"hi")", member, "}"), why);
    ExpectRefused("/v1/messages", ChatJson("hi", R"(,"max_tokens":1)" + member), why);
    ExpectRefused("/v1/responses", StrCat(R"({"input":"hi")", member, "}"), why);
  }
  for (const char* prompt : {R"({"prompt_embeds":"gAJj"})", "[[0.5,0.25]]", "[0.5]"}) {
    ExpectRefused("/v1/completions", StrCat(R"({"prompt":)", prompt, "}"), "prompt");
  }
}

// Class 21, complaint 31: logits of a long prompt are more than a server holds.
TEST_F(UntrustedFieldsTest, LogprobsOfPromptsAreRefused) {
  ExpectRefused("/v1/completions", R"({"prompt":"hi","prompt_logprobs":1})", "prompt_logprobs");
  ExpectRefused(kChat, ChatJson("hi", R"(,"prompt_logprobs":5)"), "prompt_logprobs");
  ExpectRefused("/v1/completions", R"({"prompt":"hi","echo":true,"logprobs":1})", "echo");
}

// Class 18: what stands in a path names models of a list, and never a file.
TEST_F(UntrustedFieldsTest, PathsNameNoFiles) {
  for (const char* path : {"/v1/models/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd",
                           "/v1/models//etc/passwd", "/v1/models/%00", "/../etc/passwd"}) {
    EXPECT_EQ(Get(server_->port(), path).status, 404) << path;
  }
}

}  // namespace
}  // namespace lserve
