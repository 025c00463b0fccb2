// `lserve run` with the bundled model: answers, JSON, stdin, logits, Ctrl-C.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "base/json.h"
#include "base/strings.h"
#include "tests/cli/program.h"

namespace lserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kModel = LS_SOURCE_DIR "/models/needle";
const std::string kFiller =
    "The schedule lists every task of the archive. Old entries are kept until the next review. ";

ProgramResult Lserve(std::vector<std::string> arguments, const ProgramInput& input = {}) {
  arguments.insert(arguments.begin(), LS_PROGRAM);
  return RunProgram(arguments, input);
}

std::string Repeated(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

class RunTest : public ::testing::Test {
 protected:
  RunTest()
      : document_(scratch_.File("document.txt",
                                Repeated(kFiller, 20) +
                                    "The access code for Blue Harbor is 48213. " +
                                    Repeated(kFiller, 20) +
                                    "Silver Tower keeps its records in "
                                    "room 9034. " +
                                    Repeated(kFiller, 10))) {}

  ScratchDir scratch_;
  std::string document_;
  const std::string harbor_ = "What is the access code for Blue Harbor?";
  const std::string tower_ = "In which room does Silver Tower keep its records?";
};

std::vector<std::string> Keys(const Json& object) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : object.as_object()) keys.push_back(key);
  return keys;
}

TEST_F(RunTest, JsonHasTheFieldsOfTheContract) {
  const ProgramResult result = Lserve({"run", kModel, "--document", document_, "--question",
                                       harbor_, "--question", tower_, "--json"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(result.err, "");  // no progress bar off a terminal, no summary with --json
  const Result<Json> parsed = ParseJson(result.out);
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  const Json& json = parsed.value();
  EXPECT_THAT(Keys(json), ElementsAre("answers", "model", "attention", "device", "kv_dtype",
                                      "streaming_kv_heads"));
  EXPECT_EQ(json.Find("model")->as_string(), "needle");
  EXPECT_EQ(json.Find("attention")->as_string(), "dense");  // short: auto is dense
  EXPECT_EQ(json.Find("kv_dtype")->as_string(), "bf16");
  EXPECT_EQ(json.Find("streaming_kv_heads")->as_int(), 12);

  const Json::Array& answers = json.Find("answers")->as_array();
  ASSERT_EQ(answers.size(), 2u);
  for (const Json& answer : answers) {
    EXPECT_THAT(Keys(answer),
                ElementsAre("question", "text", "token_ids", "finish_reason", "prompt_tokens",
                            "cached_tokens", "completion_tokens", "ttft_ms", "decode_ms_per_token",
                            "kv_bytes", "pages_visited", "pages_present", "prefill_tiles_visited",
                            "prefill_tiles_present", "dense_steps", "sparse_steps", "selections"));
    EXPECT_EQ(answer.Find("finish_reason")->as_string(), "stop");
    EXPECT_EQ(answer.Find("completion_tokens")->as_int(),
              static_cast<int64_t>(answer.Find("token_ids")->as_array().size()));
    EXPECT_GT(answer.Find("ttft_ms")->as_double(), 0.0);
    EXPECT_GT(answer.Find("decode_ms_per_token")->as_double(), 0.0);
    EXPECT_EQ(answer.Find("pages_visited")->as_double(), answer.Find("pages_present")->as_double());
    EXPECT_EQ(answer.Find("sparse_steps")->as_int(), 0);
    EXPECT_EQ(answer.Find("selections")->as_int(), 0);
  }
  EXPECT_EQ(answers[0].Find("question")->as_string(), harbor_);
  EXPECT_EQ(answers[0].Find("text")->as_string(), "The access code for Blue Harbor is 48213.");
  EXPECT_EQ(answers[1].Find("text")->as_string(), "Silver Tower keeps its records in room 9034.");
  EXPECT_EQ(answers[0].Find("cached_tokens")->as_int(), 0);
  // The document is read once: only the question is computed again.
  EXPECT_GT(answers[1].Find("cached_tokens")->as_int(),
            answers[1].Find("prompt_tokens")->as_int() - 40);
}

TEST_F(RunTest, BatchedAnswersEqualThoseOneAfterAnother) {
  std::vector<std::string> arguments = {"run",   kModel, "--document", document_, "--question",
                                        harbor_, tower_, harbor_,      "--json"};
  const ProgramResult one = Lserve(arguments);
  arguments.insert(arguments.end(), {"--max-num-seqs", "4"});
  const ProgramResult batch = Lserve(arguments);
  ASSERT_EQ(one.exit_status, 0) << one.err;
  ASSERT_EQ(batch.exit_status, 0) << batch.err;
  const Json a = ParseJson(one.out).value(), b = ParseJson(batch.out).value();
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(*a.Find("answers")->as_array()[i].Find("token_ids"),
              *b.Find("answers")->as_array()[i].Find("token_ids"));
  }
}

TEST_F(RunTest, PeopleSeeQuestionAnswerAndSummary) {
  const ProgramResult result =
      Lserve({"run", kModel, "--document", document_, "--question", harbor_});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(result.out, "Q: " + harbor_ + "\nA: The access code for Blue Harbor is 48213.\n\n");
  // Where the memory goes, and the summary of the answer.
  EXPECT_EQ(CountLines(result.err), 2u);
  EXPECT_THAT(result.err, HasSubstr("| weights "));
  EXPECT_THAT(result.err, HasSubstr("| KV cache up to "));
  EXPECT_THAT(result.err, HasSubstr("| workspace "));
  EXPECT_THAT(result.err, HasSubstr("first token"));
  EXPECT_THAT(result.err, HasSubstr("dense attention"));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which take memory themselves
// What is said at the start holds at the end, and is no guess far above it. All pages of the cache
// are used, since the prompt fills it.
TEST_F(RunTest, MemoryStaysBelowWhatTheStartSays) {
  std::string tokens;
  for (int i = 0; i < 3800; ++i) tokens += StrCat(i, " ");
  const std::string file = scratch_.File("tokens.txt", tokens);
  for (const char* attention : {"dense", "sparse"}) {
    const ProgramResult result =
        Lserve({"run", kModel, "--tokens", file, "--max-tokens", "8", "--ignore-eos",
                "--max-model-len", "4k", "--kv-cache-bytes", "28M", "--attention", attention});
    ASSERT_EQ(result.exit_status, 0) << result.err;
    const std::string before = "| in all at most ";
    const size_t at = result.err.find(before);
    ASSERT_NE(at, std::string::npos) << result.err;
    const double said = std::stod(result.err.substr(at + before.size())) * 1024 * 1024;
    const double peak = static_cast<double>(result.peak_bytes);
    EXPECT_LE(peak, said) << attention;
    if (std::string(attention) == "dense") {
      EXPECT_GE(peak, 0.75 * said);
    }
  }
}

// Fewer bits take less memory from the start of the process to its end: nothing is widened on the
// way, in prefill or in decode. All three have the same budget, and none fills it.
TEST_F(RunTest, ASmallerCacheTypeTakesLessMemory) {
  std::string tokens;
  constexpr int kTokens = 3000;
  for (int i = 0; i < kTokens; ++i) tokens += StrCat(i, " ");
  const std::string file = scratch_.File("tokens.txt", tokens);
  const auto peak = [&](const char* dtype) {
    const ProgramResult result = Lserve(
        {"run", kModel, "--tokens", file, "--max-tokens", "4", "--ignore-eos", "--max-model-len",
         "4k", "--kv-cache-bytes", "32M", "--attention", "dense", "--kv-cache-dtype", dtype});
    EXPECT_EQ(result.exit_status, 0) << result.err;
    return static_cast<double>(result.peak_bytes);
  };
  const double bf16 = peak("bf16"), int8 = peak("int8"), int4 = peak("int4");
  // 24 heads, K and V of 64: half of what a byte less per element comes to, and a quarter of what
  // half a byte does, since memory comes in pages of up to 2 MiB.
  constexpr double kElements = 24.0 * 2 * 64 * kTokens;
  EXPECT_GT(bf16 - int8, kElements / 2);
  EXPECT_GT(int8 - int4, kElements / 2 / 4);
}
#endif

TEST_F(RunTest, QuestionsFromStdinShareTheDocument) {
  ProgramInput input;
  input.stdin_text = harbor_ + "\n\n" + tower_;  // an empty line; no end of line at the end
  const ProgramResult result = Lserve({"run", kModel, "--document", document_, "--json"}, input);
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const Json json = ParseJson(result.out).value();
  const Json::Array& answers = json.Find("answers")->as_array();
  ASSERT_EQ(answers.size(), 2u);
  EXPECT_EQ(answers[1].Find("text")->as_string(), "Silver Tower keeps its records in room 9034.");
  EXPECT_GT(answers[1].Find("cached_tokens")->as_int(),
            answers[1].Find("prompt_tokens")->as_int() - 40);
  const ProgramResult nothing = Lserve({"run", kModel, "--document", document_});
  EXPECT_EQ(nothing.exit_status, 1);
  EXPECT_THAT(nothing.err, HasSubstr("ended without a question"));
}

TEST_F(RunTest, SparseRunsWhenAskedFor) {
  const ProgramResult result =
      Lserve({"run", kModel, "--document", document_, "--question", harbor_, "--attention",
              "sparse", "--sparse-token-budget", "256", "--json"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const Json json = ParseJson(result.out).value();
  const Json& answer = json.Find("answers")->as_array()[0];
  EXPECT_EQ(json.Find("attention")->as_string(), "sparse");
  EXPECT_EQ(answer.Find("text")->as_string(), "The access code for Blue Harbor is 48213.");
  EXPECT_GT(answer.Find("sparse_steps")->as_int(), 0);
  EXPECT_GT(answer.Find("selections")->as_int(), 0);
  EXPECT_LT(answer.Find("pages_visited")->as_double(), answer.Find("pages_present")->as_double());
}

TEST_F(RunTest, StopStringAndLength) {
  const ProgramResult stop = Lserve(
      {"run", kModel, "--document", document_, "--question", harbor_, "--stop", " is", "--json"});
  const Json stopped = ParseJson(stop.out).value();
  EXPECT_EQ(stopped.Find("answers")->as_array()[0].Find("text")->as_string(),
            "The access code for Blue Harbor");
  const ProgramResult length = Lserve({"run", kModel, "--document", document_, "--question",
                                       harbor_, "--max-tokens", "1", "--json"});
  const Json cut = ParseJson(length.out).value();
  const Json& answer = cut.Find("answers")->as_array()[0];
  EXPECT_EQ(answer.Find("finish_reason")->as_string(), "length");
  EXPECT_EQ(answer.Find("token_ids")->as_array().size(), 1u);
  EXPECT_TRUE(answer.Find("decode_ms_per_token")->is_null());
}

TEST_F(RunTest, LogitsOfEveryPositionAsNumpyReadsThem) {
  const std::string tokens = scratch_.File("ids.txt", "4080 39 422\n339\t220 2537 1241\n");
  const std::string file = scratch_ / "logits.npy";
  const ProgramResult result =
      Lserve({"run", kModel, "--tokens", tokens, "--logits-out", file, "--max-tokens", "4",
              "--temperature", "0", "--ignore-eos", "--json"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const Json json = ParseJson(result.out).value();
  const Json& answer = json.Find("answers")->as_array()[0];
  EXPECT_TRUE(answer.Find("question")->is_null());
  ASSERT_EQ(answer.Find("token_ids")->as_array().size(), 4u);

  const std::string npy = ReadFile(file);
  ASSERT_EQ(npy.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  const size_t header =
      10 + static_cast<unsigned char>(npy[8]) + 256u * static_cast<unsigned char>(npy[9]);
  EXPECT_EQ(header % 64, 0u);
  EXPECT_THAT(npy.substr(0, header), HasSubstr("'shape': (7, 4096)"));
  ASSERT_EQ(npy.size(), header + 7u * 4096u * 4u);
  // The last row's largest entry is the first token of the greedy continuation.
  std::vector<float> last(4096);
  std::memcpy(last.data(), npy.data() + header + 6u * 4096u * 4u, 4096u * 4u);
  EXPECT_EQ(std::max_element(last.begin(), last.end()) - last.begin(),
            answer.Find("token_ids")->as_array()[0].as_int());
}

TEST_F(RunTest, TokensNeedNoTokenizer) {
  for (const char* name : {"config.json", "generation_config.json", "model.safetensors"}) {
    scratch_.File(std::string("bare/") + name, ReadFile(kModel + "/" + name));
  }
  const std::string tokens = scratch_.File("ids.txt", "4080 39 422");
  const ProgramResult result = Lserve({"run", scratch_ / "bare", "--tokens", tokens, "--max-tokens",
                                       "3", "--ignore-eos", "--json"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const Json json = ParseJson(result.out).value();
  const Json& answer = json.Find("answers")->as_array()[0];
  EXPECT_TRUE(answer.Find("text")->is_null());
  EXPECT_EQ(answer.Find("token_ids")->as_array().size(), 3u);
  EXPECT_EQ(json.Find("streaming_kv_heads")->as_int(), 0);
}

TEST_F(RunTest, ControlCPrintsWhatExists) {
  ProgramInput input;
  input.interrupt_at = "Q: ";
  const ProgramResult result = Lserve({"run", kModel, "--document", document_, "--question",
                                       harbor_, "--ignore-eos", "--max-tokens", "100000"},
                                      input);
  EXPECT_EQ(result.exit_status, 130);
  EXPECT_EQ(result.signal, 0);
  EXPECT_THAT(result.out, HasSubstr("Q: " + harbor_));
}

TEST_F(RunTest, ClosedPipeIsNoCrash) {
  ProgramInput input;
  input.close_stdout_after = 3;
  const ProgramResult result = Lserve({"run", kModel, "--document", document_, "--question",
                                       harbor_, "--ignore-eos", "--max-tokens", "100000"},
                                      input);
  EXPECT_EQ(result.signal, 0);
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.err, HasSubstr("closed the pipe"));
}

}  // namespace
}  // namespace lserve
