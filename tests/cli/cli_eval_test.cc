// `lserve eval` as a user runs it: files, resuming, and every mistake in one line.
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

ProgramResult Eval(std::vector<std::string> arguments, const ProgramInput& input = {}) {
  arguments.insert(arguments.begin(), {LS_PROGRAM, "eval"});
  return RunProgram(arguments, input);
}

void ExpectError(const ProgramResult& result, int status, const std::string& part) {
  EXPECT_EQ(result.exit_status, status) << part;
  EXPECT_THAT(result.err, StartsWith("lserve: error: "));
  EXPECT_EQ(CountLines(result.err), 1u) << result.err;
  EXPECT_THAT(result.err, HasSubstr(part));
}

Json ParsedFile(const std::string& path) {
  const Result<Json> json = ParseJson(ReadFile(path));
  EXPECT_TRUE(json.ok()) << path;
  return json.ok() ? json.value() : Json(Json::Object{});
}

TEST(EvalUsage, MistakesAreOneLine) {
  ExpectError(Eval({}), 2, "expected niah, ruler, longbench or fidelity");
  ExpectError(Eval({"fly"}), 2, "expected niah, ruler, longbench or fidelity");
  ExpectError(Eval({"niah"}), 2, "MODEL_DIR is missing");
  ExpectError(Eval({"niah", kModel, "--lenghts", "4k"}), 2, "did you mean --lengths?");
  ExpectError(Eval({"niah", kModel, "--frob"}), 2, "see lserve eval niah --help");
  ExpectError(Eval({"niah", kModel, "--lengths", "4k,,8k"}), 2, "remove the empty one");
  ExpectError(Eval({"niah", kModel, "--lengths", "4x"}), 2, "--lengths: got \"4x\"");
  ExpectError(Eval({"niah", kModel, "--depths", "0.5,2"}), 2, "--depths: got \"2\"");
  ExpectError(Eval({"niah", kModel, "--kinds", "double"}), 2, "single|multikey");
  ExpectError(Eval({"niah", kModel, "--attention", "dense"}), 2, "expected sparse or auto");
  ExpectError(Eval({"niah", kModel, "--json", ""}), 2, "--json: got an empty name");
  ExpectError(Eval({"ruler", kModel, "--tasks", "niah_single_9"}), 2, "niah_single_1|");
  ExpectError(Eval({"ruler", kModel, "--tasks", "qa"}), 2, "expected --data FILE");
  ExpectError(Eval({"longbench", kModel}), 2, "--data is missing");
  ExpectError(Eval({"fidelity", kModel}), 2, "--document is missing");
  ExpectError(Eval({"fidelity", kModel, "--document", "x", "--budgets", "64"}), 2, "--budgets: ");
  ExpectError(Eval({"fidelity", kModel, "--document", "x", "--ratios", "1.5"}), 2, "--ratios");
}

TEST(EvalUsage, HelpTeaches) {
  const ProgramResult help = Eval({"niah", "--help"});
  EXPECT_EQ(help.exit_status, 0);
  EXPECT_THAT(help.out, HasSubstr("Examples:"));
  EXPECT_THAT(help.out, HasSubstr("LIST [4k,8k,16k]"));
}

TEST(EvalInput, BadDataAndModels) {
  const ScratchDir scratch;
  ExpectError(Eval({"niah", kModel, "--lengths", "1M"}), 1, "expected at most 262144");
  ExpectError(Eval({"niah", kModel, "--json", scratch / "no/a.json"}), 1, "can not be written");
  ExpectError(Eval({"niah", scratch / "no"}), 1, "no");
  ExpectError(Eval({"ruler", kModel, "--tasks", "qa", "--data", scratch / "no.json"}), 1,
              "no.json");
  const std::string half = scratch.File("half.json", "{\"data\": [");
  ExpectError(Eval({"ruler", kModel, "--tasks", "qa", "--data", half}), 1, "half.json: is no JSON");
  ExpectError(Eval({"longbench", kModel, "--data", scratch / "no"}), 1, "can not be read");
  ExpectError(Eval({"longbench", kModel, "--data", scratch / "."}), 1, "has no file of LongBench");
  scratch.File("lb/qasper.jsonl", "{\"input\": \"a\", \"context\": \"b\"}\n");
  ExpectError(Eval({"longbench", kModel, "--data", scratch / "lb"}), 1,
              "qasper.jsonl: line 1: \"_id\" is missing");
  const std::string heads = scratch.File("other.tsv", "0.1\t0.2\n0.3\t0.4\n");
  ExpectError(Eval({"niah", kModel, "--streaming-heads", heads, "--streaming-ratio", "0.5"}), 1,
              "other.tsv");
  const std::string latin = scratch.File("latin.txt", "caf\xe9");
  ExpectError(Eval({"fidelity", kModel, "--document", latin}), 1, "is not UTF-8");
  const std::string small = scratch.File("small.txt", "Too short.");
  ExpectError(Eval({"fidelity", kModel, "--document", small}), 1, "to decode the last 256");
}

TEST(EvalNiah, TableFilesAndResume) {
  const ScratchDir scratch;
  const std::string log = scratch / "log.jsonl", json = scratch / "out.json";
  const std::vector<std::string> command = {"niah",
                                            kModel,
                                            "--lengths",
                                            "1k",
                                            "--depths",
                                            "0.2,0.8",
                                            "--kinds",
                                            "single",
                                            "--sparse-token-budget",
                                            "512",
                                            "--resume",
                                            log,
                                            "--json",
                                            json,
                                            "--svg",
                                            scratch / "out.svg"};
  const ProgramResult first = Eval(command);
  ASSERT_EQ(first.exit_status, 0) << first.err;
  EXPECT_EQ(first.err, "");  // no terminal, no progress
  EXPECT_THAT(first.out, HasSubstr("single: score in %, dense / sparse"));
  EXPECT_THAT(first.out, HasSubstr("100.0 / 100.0"));
  EXPECT_THAT(first.out, HasSubstr("sparse left some out in 2 of 2 trials"));
  EXPECT_THAT(ReadFile(scratch / "out.svg"), StartsWith("<svg "));
  const Json result = ParsedFile(json);
  EXPECT_EQ(result.Find("complete")->as_bool(), true);
  EXPECT_EQ(result.Find("trials")->as_array().size(), 2u);
  EXPECT_EQ(result.Find("settings")->Find("wording")->as_string(), "needle");
  EXPECT_EQ(CountLines(ReadFile(log)), 3u);

  // A cell of the log is taken as it is: its text says so.
  std::string content = ReadFile(log);
  const size_t at = content.find("\"text\":\"") + 8;
  content.insert(at, "FROM THE LOG ");
  scratch.File("log.jsonl", content.substr(0, content.rfind("{\"key\"")) + "{\"key\":\"si");
  const ProgramResult second = Eval(command);
  ASSERT_EQ(second.exit_status, 0) << second.err;
  EXPECT_THAT(second.err, HasSubstr("1 finished cells of"));
  EXPECT_EQ(CountLines(ReadFile(log)), 3u);
  const Json trials = *ParsedFile(json).Find("trials");
  EXPECT_THAT(trials.as_array()[0].Find("dense")->Find("text")->as_string(),
              StartsWith("FROM THE LOG "));
  EXPECT_EQ(trials.as_array()[1].Find("dense")->Find("text")->as_string(),
            result.Find("trials")->as_array()[1].Find("dense")->Find("text")->as_string());

  std::vector<std::string> other = command;
  other.insert(other.end(), {"--seed", "2"});
  ExpectError(Eval(other), 1, "\"seed\" is 1, expected 2");
  // What is read of a prompt makes another measurement.
  for (const auto& [flag, value, error] :
       {std::tuple{"--sparse-prefill-threshold", "0.5", "\"sparse_prefill_threshold\" is 0.9"},
        {"--sparse-prefill-max-tokens", "4096", "\"sparse_prefill_max_tokens\" is 16384"},
        {"--sparse-prefill-min-context", "0", "\"sparse_prefill_min_context\" is 4096"}}) {
    other = command;
    other.insert(other.end(), {flag, value});
    ExpectError(Eval(other), 1, error);
  }
}

TEST(EvalNiah, InterruptKeepsWhatIsDone) {
  const ScratchDir scratch;
  const std::string log = scratch / "log.jsonl";
  // The second command finds nothing to do where the first stopped, however far it came.
  const std::vector<std::string> command = {
      "niah",   kModel,     "--lengths", "1k,2k",  "--kinds",
      "single", "--resume", log,         "--json", scratch / "out.json"};
  const std::string script =
      "LOG='" + log +
      "'; set -m; \"$@\" & pid=$!; "
      "while [ \"$(wc -l < \"$LOG\" 2>/dev/null || echo 0)\" -lt 3 ]; "
      "do sleep 0.02; kill -0 $pid 2>/dev/null || break; done; kill -INT $pid; wait $pid";
  std::vector<std::string> bash = {"/bin/bash", "-c", script, "bash", LS_PROGRAM, "eval"};
  bash.insert(bash.end(), command.begin(), command.end());
  const ProgramResult interrupted = RunProgram(bash);
  EXPECT_EQ(interrupted.exit_status, 130) << interrupted.err;
  EXPECT_THAT(interrupted.out, HasSubstr("single: score in %"));
  const Json partial = ParsedFile(scratch / "out.json");
  EXPECT_EQ(partial.Find("complete")->as_bool(), false);
  const size_t done = partial.Find("trials")->as_array().size();
  EXPECT_GE(done, 2u);
  EXPECT_LT(done, 10u);
  const ProgramResult finished = Eval(command);
  EXPECT_EQ(finished.exit_status, 0) << finished.err;
  EXPECT_THAT(finished.err, HasSubstr(std::to_string(done) + " finished cells"));
  EXPECT_EQ(ParsedFile(scratch / "out.json").Find("trials")->as_array().size(), 10u);
}

TEST(EvalNiah, NothingSparseIsAnError) {
  const ProgramResult result = Eval({"niah", kModel, "--lengths", "1k", "--depths", "0.5",
                                     "--kinds", "single", "--streaming-heads", "none"});
  ExpectError(result, 1, "left nothing out in any cell (budget 4096, 0 streaming heads)");
  EXPECT_THAT(result.out, HasSubstr("100.0 / 100.0"));  // reported all the same
}

TEST(EvalNiah, ACellThatFailsKeepsTheOthers) {
  const ScratchDir scratch;
  const ProgramResult result =
      Eval({"niah", kModel, "--lengths", "1k,64k", "--depths", "0.5", "--kinds", "single",
            "--kv-cache-bytes", "24M", "--json", scratch / "out.json"});
  ExpectError(result, 1, "KV cache");
  EXPECT_THAT(result.out, HasSubstr("100.0 / 100.0"));
  EXPECT_EQ(ParsedFile(scratch / "out.json").Find("trials")->as_array().size(), 1u);
}

TEST(EvalRuler, TasksOfOneLength) {
  const ScratchDir scratch;
  const std::string squad =
      scratch.File("squad.json",
                   R"({"data": [{"paragraphs": [{"context": "Anna lives in Oslo.", "qas": [
         {"question": "Where does Anna live?", "answers": [{"text": "Oslo"}]}]},
         {"context": "Birds sing.", "qas": []}]}]})");
  const ProgramResult result =
      Eval({"ruler", kModel, "--lengths", "1k", "--tasks", "niah_single_2,vt,fwe,qa", "--data",
            squad, "--json", scratch / "out.json", "--svg", scratch / "out.svg"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  // The bundled model knows this one's wording.
  EXPECT_THAT(result.out, HasSubstr("niah_single_2  100.0 / 100.0"));
  EXPECT_THAT(result.out, HasSubstr("qa"));
  EXPECT_EQ(ParsedFile(scratch / "out.json").Find("cells")->as_array().size(), 4u);
  ExpectError(Eval({"ruler", kModel, "--lengths", "256", "--tasks", "cwe"}), 1,
              "got 256 tokens for cwe, expected at least");
}

TEST(EvalLongBench, RowsOfAFolder) {
  const ScratchDir scratch;
  std::string context;
  for (int i = 0; i < 120; ++i) context += "The printer reads the next page of the manual. ";
  scratch.File("hotpotqa.jsonl",
               R"({"input": "Who?", "context": ")" + context +
                   R"(", "answers": ["Anna"], "length": 1080, "dataset": "hotpotqa", )"
                   R"("language": "en", "all_classes": null, "_id": "1"})"
                   "\n");
  const ProgramResult result = Eval({"longbench", kModel, "--data", scratch / ".", "--length", "1k",
                                     "--json", scratch / "out.json", "--svg", scratch / "out.svg"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("hotpotqa"));
  const Json trial = ParsedFile(scratch / "out.json").Find("trials")->as_array()[0];
  const int64_t tokens = trial.Find("sparse")->Find("prompt_tokens")->as_int();
  EXPECT_LE(tokens, 1024 - 32);  // truncated, with room for the answer
  EXPECT_GT(tokens, 800);
}

TEST(EvalFidelity, BudgetsAndRatios) {
  const ScratchDir scratch;
  const std::string document = LS_SOURCE_DIR "/docs/contracts.md";
  const ProgramResult result =
      Eval({"fidelity", kModel, "--document", document, "--length", "1k", "--decode-tokens", "16",
            "--budgets", "256,2k", "--ratios", "0,0.5", "--json", scratch / "out.json", "--svg",
            scratch / "out.svg", "--resume", scratch / "log.jsonl"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("50% streaming"));
  EXPECT_THAT(ReadFile(scratch / "out.svg"), HasSubstr("KL(dense || sparse)"));
  const Json::Array cells = ParsedFile(scratch / "out.json").Find("cells")->as_array();
  ASSERT_EQ(cells.size(), 6u);
  for (const Json& cell : cells) {
    const bool exact = cell.Find("ratio")->as_double() == 0.0 &&
                       (cell.Find("budget")->is_null() || cell.Find("budget")->as_int() == 2048);
    EXPECT_EQ(cell.Find("top1_agreement")->as_double() == 1.0 &&
                  cell.Find("visited_share")->as_double() == 1.0,
              exact)
        << WriteJson(cell);
  }
}

}  // namespace
}  // namespace lserve
