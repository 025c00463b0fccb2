// What a user does about fidelity: `lserve calibrate`, `lserve run --explain` and `--audit-rate`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "tests/cli/program.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

const std::string kModel = LS_SOURCE_DIR "/models/needle";

ProgramResult Lserve(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), LS_PROGRAM);
  return RunProgram(arguments);
}

void ExpectError(const ProgramResult& result, int status, const std::string& part) {
  EXPECT_EQ(result.exit_status, status) << part;
  EXPECT_THAT(result.err, StartsWith("lserve: error: "));
  EXPECT_EQ(CountLines(result.err), 1u) << result.err;
  EXPECT_THAT(result.err, HasSubstr(part));
}

Json Parsed(const std::string& text) {
  const Result<Json> json = ParseJson(text);
  EXPECT_TRUE(json.ok()) << text;
  return json.ok() ? json.value() : Json(Json::Object{});
}

std::vector<std::string> ShortCalibration(const std::string& output) {
  return {"calibrate",   kModel, "--length", "1k", "--documents", "1",
          "--questions", "2",    "--ratios", "",   "--output",    output};
}

TEST(Calibrate, WritesAFileThatRunUses) {
  const ScratchDir scratch;
  const std::string heads = scratch / "heads.json";
  std::vector<std::string> arguments = ShortCalibration(heads);
  arguments.insert(arguments.end(),
                   {"--svg", scratch / "heads.svg", "--compare", kModel + "/streaming_heads.json"});
  const ProgramResult result = Lserve(arguments);
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("KV heads across"));
  EXPECT_THAT(result.out, HasSubstr("rank correlation"));
  EXPECT_THAT(result.err, HasSubstr("samples measured in"));
  EXPECT_THAT(ReadFile(scratch / "heads.svg"), StartsWith("<svg"));
  const Json file = Parsed(ReadFile(heads));
  EXPECT_EQ(file.Find("kv_heads")->as_int(), 4);
  EXPECT_EQ(file.Find("kind")->as_array().size(), 6u);

  const ProgramResult run = Lserve({"run", kModel, "--prompt", "The access code", "--max-tokens",
                                    "2", "--streaming-heads", heads, "--json"});
  ASSERT_EQ(run.exit_status, 0) << run.err;
  EXPECT_EQ(Parsed(run.out).Find("streaming_kv_heads")->as_int(), 12);

  ExpectError(Lserve(ShortCalibration(heads)), 1, "is there already");
}

TEST(Calibrate, TextsJoinTheDocuments) {
  const ScratchDir scratch;
  std::string text;
  for (int i = 0; i < 400; ++i) text += "Line " + std::to_string(i) + " of a log of events. ";
  const std::string path = scratch.File("log.txt", text);
  const ProgramResult result =
      Lserve({"calibrate", kModel, "--documents", "0", "--text", path, "--length", "640",
              "--text-parts", "2", "--ratios", "", "--output", scratch / "heads.json"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("1 samples measured"));
  EXPECT_THAT(result.out, HasSubstr("KL, texts"));
}

TEST(Calibrate, MistakesAreOneLine) {
  const ScratchDir scratch;
  const std::string output = scratch / "heads.json";
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments = ShortCalibration(output);
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Lserve(arguments);
  };
  ExpectError(Lserve({"calibrate"}), 2, "MODEL_DIR is missing");
  ExpectError(with({"--target-ratio", "1.5"}), 2, "--target-ratio");
  ExpectError(with({"--target-ratio", "0.5", "--max-loss", "0.1"}), 2, "expected one of them");
  ExpectError(with({"--documents", "0"}), 2, "expected something to measure on");
  ExpectError(with({"--streaming-heads", "none"}), 2, "what calibrate finds out");
  ExpectError(with({"--lenght", "4k"}), 2, "did you mean --length?");
  ExpectError(Lserve({"calibrate", kModel}), 1, "streaming_heads.json: is there already");
  ExpectError(Lserve({"calibrate", kModel, "--output", scratch / "no/heads.json"}), 1,
              "can not be written");
  ExpectError(with({"--length", "512"}), 1, "expected at least 640");
  ExpectError(with({"--length", "1M"}), 1, "expected at most 262144");
  ExpectError(with({"--text", scratch / "no.txt"}), 1, "no.txt");
  ExpectError(with({"--text", scratch.File("short.txt", "Too short.")}), 1,
              "short.txt: has 5 tokens, expected at least 512");
  ExpectError(with({"--compare", scratch.File("other.tsv", "0.1\t0.2\n")}), 1,
              "other.tsv: is for 1 layers of 2 KV heads");
  EXPECT_EQ(ReadFile(output), "");
}

// Sentences about nothing, and a fact among them.
std::string Document() {
  std::string text;
  for (int i = 0; i < 60; ++i) {
    text += "The printer keeps a copy of every page that the reader has not closed. ";
    if (i == 30) text += "The access code for Blue Harbor is 48213. ";
  }
  return text;
}

const char* const kQuestion = "What is the access code for Blue Harbor?";

TEST(Explain, NamesThePassageOfTheFact) {
  const ScratchDir scratch;
  const std::string text = Document();
  const std::string path = scratch.File("a.txt", text);
  const std::vector<std::string> arguments = {"run",         kModel,       "--document",
                                              path,          "--question", kQuestion,
                                              "--attention", "sparse",     "--sparse-token-budget",
                                              "512",         "--explain"};
  const ProgramResult shown = Lserve(arguments);
  ASSERT_EQ(shown.exit_status, 0) << shown.err;
  EXPECT_THAT(shown.out, HasSubstr("a.txt, bytes "));
  EXPECT_THAT(shown.out, HasSubstr("The access code for Blue Harbor is 48213."));

  std::vector<std::string> as_json = arguments;
  as_json.push_back("--json");
  const ProgramResult result = Lserve(as_json);
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const Json json = Parsed(result.out);
  const Json& answer = json.Find("answers")->as_array()[0];
  const Json& passage = answer.Find("passages")->as_array()[0];
  const std::string& read = passage.Find("text")->as_string();
  EXPECT_THAT(read, HasSubstr("Blue Harbor is 48213"));
  EXPECT_EQ(passage.Find("document")->as_string(), path);
  const size_t begin = static_cast<size_t>(passage.Find("begin")->as_int());
  const size_t end = static_cast<size_t>(passage.Find("end")->as_int());
  EXPECT_EQ(text.substr(begin, end - begin), read);
}

TEST(Audit, SaysWhatWasLeftOutAndWhatItCost) {
  const ScratchDir scratch;
  const std::string path = scratch.File("a.txt", Document());
  const std::vector<std::string> arguments = {
      "run",         kModel,         "--document",
      path,          "--question",   kQuestion,
      "--attention", "sparse",       "--sparse-token-budget",
      "512",         "--audit-rate", "0.5"};
  const ProgramResult shown = Lserve(arguments);
  ASSERT_EQ(shown.exit_status, 0) << shown.err;
  EXPECT_THAT(shown.err, HasSubstr("steps | selected pages carry "));
  EXPECT_THAT(shown.err, HasSubstr("| sink and window carry "));
  EXPECT_THAT(shown.err, HasSubstr("| cost "));

  std::vector<std::string> as_json = arguments;
  as_json.push_back("--json");
  const ProgramResult result = Lserve(as_json);
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const Json json = Parsed(result.out);
  const Json& answer = json.Find("answers")->as_array()[0];
  const Json& audit = *answer.Find("audit");
  EXPECT_EQ(audit, *json.Find("audit"));
  const int64_t steps = answer.Find("sparse_steps")->as_int();
  EXPECT_EQ(audit.Find("steps")->as_int(), (steps + 1) / 2);
  EXPECT_GT(audit.Find("retrieval_recall")->as_double(), 0.5);
  EXPECT_EQ(audit.Find("top1_agreement")->as_double(), 1.0);
  EXPECT_GT(audit.Find("cost_ms")->as_double(), 0);

  const ProgramResult plain =
      Lserve({"run", kModel, "--prompt", "A", "--max-tokens", "2", "--json"});
  EXPECT_THAT(plain.out, Not(HasSubstr("audit")));
}

}  // namespace
}  // namespace lserve
