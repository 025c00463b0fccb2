// What needs no forward pass: usage, help, print-config, tokenize, inspect.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "lserve/version.h"
#include "tests/cli/program.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

const std::string kModel = LS_SOURCE_DIR "/models/needle";

ProgramResult Lserve(std::vector<std::string> arguments, const ProgramInput& input = {}) {
  arguments.insert(arguments.begin(), LS_PROGRAM);
  return RunProgram(arguments, input);
}

void ExpectUsageError(const std::vector<std::string>& arguments, const std::string& part) {
  const ProgramResult result = Lserve(arguments);
  EXPECT_EQ(result.exit_status, 2) << part;
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, StartsWith("lserve: error: "));
  EXPECT_EQ(CountLines(result.err), 1u) << result.err;
  EXPECT_THAT(result.err, HasSubstr(part));
}

TEST(Usage, EveryMistakeIsOneLineAndStatusTwo) {
  ExpectUsageError({}, "available commands: run, serve, bench, eval, calibrate, tokenize, inspect");
  ExpectUsageError({"fly"}, "unknown command \"fly\"");
  ExpectUsageError({"run", kModel, "--frobnicate"}, "unknown option \"--frobnicate\"");
  ExpectUsageError({"run", kModel, "--sparse-token-budge", "3"},
                   "did you mean --sparse-token-budget?");
  ExpectUsageError({"run", kModel, "extra", "--prompt", "a"}, "unexpected argument \"extra\"");
  ExpectUsageError({"run"}, "MODEL_DIR is missing");
  ExpectUsageError({"run", kModel, "--threads"}, "--threads");
  ExpectUsageError({"run", kModel, "--threads", "two"}, "--threads: got \"two\"");
  ExpectUsageError({"run", kModel, "--threads", "-1"}, "--threads: got \"-1\"");
  ExpectUsageError({"run", kModel, "--attention", "fast"}, "auto|dense|sparse");
  ExpectUsageError({"run", kModel, "--kv-cache-dtype", "q8_0"}, "auto|bf16|int8|int4|fp8");
  ExpectUsageError({"run", kModel, "--device", "cuda:x"}, "auto|cpu|cuda[:N]|reference");
  ExpectUsageError({"run", kModel, "--streaming-ratio", "1.5"}, "from 0 to 1");
  ExpectUsageError({"run", kModel, "--temperature", "nan"}, "--temperature");
  ExpectUsageError({"run", kModel, "--temperature", "-0.5"}, "--temperature");
  ExpectUsageError({"run", kModel, "--top-p", "1.01"}, "--top-p");
  ExpectUsageError({"run", kModel, "--max-model-len", "128q"}, "--max-model-len");
  ExpectUsageError({"run", kModel, "--max-tokens", "0"}, "--max-tokens");
  ExpectUsageError({"run", kModel, "--stop-token-id", "x"}, "--stop-token-id");
  ExpectUsageError({"run", kModel, "--prompt", "a", "--tokens", "b"}, "expected one");
  ExpectUsageError({"run", kModel, "--prompt", "a", "--question", "b"}, "one kind of prompt");
  ExpectUsageError({"run", kModel, "--question", " "}, "empty text");
  ExpectUsageError({"run", kModel, "--question", "a", "b", "--logits-out", "x"}, "2 questions");
  ExpectUsageError({"run", kModel, "-ctv", "int8", "--prompt", "a"}, "share one type");
  ExpectUsageError({"tokenize", kModel}, "got 0 inputs");
  ExpectUsageError({"tokenize", kModel, "--text", "a", "--file", "b"}, "got 2 inputs");
  ExpectUsageError({"inspect"}, "MODEL_DIR is missing");
}

TEST(Usage, WhatThisVersionLacksIsRefusedByName) {
  ExpectUsageError({"run", kModel, "--quantization", "awq"}, "--quantization");
  ExpectUsageError({"run", kModel, "--audit-rate", "1.5"}, "--audit-rate");
}

TEST(Usage, AShareBeyondEverythingIsRefused) {
  ExpectUsageError({"run", kModel, "--sparse-prefill-threshold", "1.5"},
                   "--sparse-prefill-threshold");
}

TEST(Usage, ValuesOfRepeatableOptionsStayAsTheyAre) {
  const ProgramResult result =
      Lserve({"run", kModel, "--stop", "[/INST]", "[a, b]", "--question", "[what, is]?", "--stop",
              "-x", "--threads", "1", "--audit-rate", "0", "--print-config"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const Result<Json> json = ParseJson(result.out);
  ASSERT_TRUE(json.ok());
  const auto texts = [&](const char* name) {
    std::vector<std::string> out;
    for (const Json& text : json.value().Find(name)->as_array()) out.push_back(text.as_string());
    return out;
  };
  EXPECT_EQ(texts("stop"), (std::vector<std::string>{"[/INST]", "[a, b]", "-x"}));
  EXPECT_EQ(texts("question"), (std::vector<std::string>{"[what, is]?"}));
}

TEST(Usage, HelpTeaches) {
  const ProgramResult main_help = Lserve({"--help"});
  EXPECT_EQ(main_help.exit_status, 0);
  EXPECT_THAT(main_help.out, HasSubstr("Examples:"));
  EXPECT_THAT(main_help.out, HasSubstr("Exit status:"));
  const ProgramResult run_help = Lserve({"run", "--help"});
  EXPECT_EQ(run_help.exit_status, 0);
  EXPECT_THAT(run_help.out, HasSubstr("TOKENS [4096]"));  // a unit and a default
  EXPECT_THAT(run_help.out, HasSubstr("Examples:"));
  EXPECT_EQ(Lserve({"--version"}).out, std::string("lserve ") + kVersion + "\n");
}

TEST(Usage, AliasesSetTheSameOption) {
  const ProgramResult result = Lserve({"run",  "-m",
                                       kModel, "-c",
                                       "128k", "--temp",
                                       "0.5",  "-n",
                                       "7",    "-ctk",
                                       "int8", "-t",
                                       "3",    "-np",
                                       "4",    "-ub",
                                       "1k",   "--sparse-prefill-threshold",
                                       "0.95", "--print-config"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const Result<Json> json = ParseJson(result.out);
  ASSERT_TRUE(json.ok());
  const auto number = [&](const char* name) { return json.value().Find(name)->as_double(); };
  EXPECT_EQ(number("max-model-len"), 131072);
  EXPECT_EQ(number("temperature"), 0.5);
  EXPECT_EQ(number("max-tokens"), 7);
  EXPECT_EQ(number("threads"), 3);
  EXPECT_EQ(number("max-num-seqs"), 4);
  EXPECT_EQ(number("max-num-batched-tokens"), 1024);
  EXPECT_EQ(json.value().Find("kv-cache-dtype")->as_string(), "int8");
  EXPECT_EQ(number("sparse-token-budget"), 4096);
  EXPECT_EQ(number("sparse-prefill-threshold"), 0.95);
}

TEST(Usage, WhatChangesNothingSaysSo) {
  const ProgramResult result = Lserve({"run", kModel, "--n-gpu-layers", "9", "--print-config"});
  EXPECT_EQ(result.exit_status, 0);
  EXPECT_THAT(result.err, HasSubstr("note: --n-gpu-layers has no effect"));
}

TEST(Tokenize, RoundTrip) {
  const std::string text = "Gr\xc3\xbc\xc3\x9f dich, 12345 \xf0\x9f\x99\x82!";
  const ProgramResult encoded = Lserve({"tokenize", kModel, "--text", text, "--json"});
  ASSERT_EQ(encoded.exit_status, 0) << encoded.err;
  const Result<Json> json = ParseJson(encoded.out);
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(json.value().Find("text")->as_string(), text);
  EXPECT_EQ(json.value().Find("token_ids")->as_array()[0].as_int(), 4080);  // begin of text

  const ProgramResult ids = Lserve({"tokenize", kModel, "--text", text});
  ScratchDir scratch;
  const std::string file = scratch.File("ids.txt", ids.out);
  const ProgramResult decoded =
      Lserve({"tokenize", kModel, "--file", file, "--decode", "--skip-special-tokens"});
  EXPECT_EQ(decoded.out, text + "\n");
}

TEST(Tokenize, ChatIsTheRenderedTemplate) {
  ScratchDir scratch;
  const std::string file =
      scratch.File("chat.json", R"([{"role": "user", "content": "Hi <|eot_id|>"}])");
  const ProgramResult result = Lserve({"tokenize", kModel, "--chat", file, "--json"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const Result<Json> json = ParseJson(result.out);
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(json.value().Find("text")->as_string(),
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi <|eot_id|><|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
  int64_t turn_ends = 0;  // the user's text must not become one
  for (const Json& id : json.value().Find("token_ids")->as_array()) {
    turn_ends += id.as_int() == 4084 ? 1 : 0;
  }
  EXPECT_EQ(turn_ends, 1);
}

TEST(Inspect, FactsOfTheBundledModel) {
  const ProgramResult result = Lserve({"inspect", kModel, "--json"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const Result<Json> parsed = ParseJson(result.out);
  ASSERT_TRUE(parsed.ok());
  const Json& json = parsed.value();
  EXPECT_TRUE(json.Find("supported")->as_bool());
  EXPECT_EQ(json.Find("architecture")->as_string(), "LlamaForCausalLM");
  EXPECT_EQ(json.Find("shape")->Find("layers")->as_int(), 6);
  // Embeddings 4096 x 256 (tied), 6 layers of q, k, v, o, gate, up, down and two norms, the last
  // norm.
  const int64_t layer = 256 * 512 + 2 * 256 * 256 + 512 * 256 + 3 * 256 * 704 + 2 * 256;
  EXPECT_EQ(json.Find("parameters")->as_int(), 4096 * 256 + 6 * layer + 256);
  EXPECT_EQ(json.Find("streaming_heads")->Find("streaming")->as_int(), 12);
  const Json& bf16 = json.Find("kv_cache")->as_array()[0];
  // 6 layers x 4 heads x 64 x (key, value) x 2 bytes, and the statistics of retrieval heads.
  EXPECT_GE(bf16.Find("bytes_per_token")->as_int(), 6144);
  EXPECT_LT(bf16.Find("bytes_per_token")->as_int(), 6144 * 5 / 4);
  EXPECT_LT(bf16.Find("sparse_bytes_per_token")->as_int(), 6144 * 5 / 8);

  const ProgramResult text = Lserve({"inspect", kModel});
  EXPECT_EQ(text.exit_status, 0);
  EXPECT_THAT(text.out, HasSubstr("12 of 24 KV heads"));
}

TEST(Inspect, SupportTable) {
  const ProgramResult text = Lserve({"inspect", "--support"});
  EXPECT_EQ(text.exit_status, 0);
  EXPECT_THAT(text.out, HasSubstr("--cpu-isa generic"));
  const ProgramResult result = Lserve({"inspect", "--support", "--json"});
  EXPECT_TRUE(ParseJson(result.out).ok());
}

TEST(Output, FullDiskAndClosedPipeAreErrors) {
  ProgramInput full;
  full.stdout_path = "/dev/full";
  const ProgramResult disk = Lserve({"tokenize", kModel, "--text", "a"}, full);
  EXPECT_EQ(disk.exit_status, 1);
  EXPECT_EQ(CountLines(disk.err), 1u);
  EXPECT_THAT(disk.err, HasSubstr("No space left on device"));

  ScratchDir scratch;
  std::string words;
  for (int i = 0; i < 200000; ++i) words += "word ";
  ProgramInput closed;
  closed.close_stdout_after = 10;
  const ProgramResult pipe =
      Lserve({"tokenize", kModel, "--file", scratch.File("words.txt", words)}, closed);
  EXPECT_EQ(pipe.exit_status, 1);
  EXPECT_EQ(pipe.signal, 0);
  EXPECT_THAT(pipe.err, HasSubstr("closed the pipe"));
}

}  // namespace
}  // namespace lserve
