// `lserve bench` as a user runs it: tables, JSON Lines, errors. Speed is not judged here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "base/json.h"
#include "tests/cli/program.h"

namespace lserve {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::StartsWith;

const std::string kModel = LS_SOURCE_DIR "/models/needle";

ProgramResult Bench(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {LS_PROGRAM, "bench"});
  return RunProgram(arguments);
}

std::vector<Json> JsonLines(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    Result<Json> json = ParseJson(line);
    EXPECT_TRUE(json.ok()) << line << "\n" << json.status().message();
    if (json.ok()) lines.push_back(std::move(json).value());
  }
  return lines;
}

// Rows of the table: the lines that begin with a bar, without heading and rule.
std::vector<std::string> TableRows(const std::string& text) {
  std::vector<std::string> rows;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    if (line.starts_with("|")) rows.push_back(line);
  }
  EXPECT_GE(rows.size(), 2u) << text;
  if (rows.size() >= 2) rows.erase(rows.begin(), rows.begin() + 2);
  return rows;
}

double Number(const Json& json, const char* name) {
  const Json* value = json.Find(name);
  EXPECT_TRUE(value != nullptr && value->is_number()) << name;
  return value != nullptr && value->is_number() ? value->as_double() : -1;
}

TEST(CliBench, BothArmsOfAModelAsTableAndJson) {
  ScratchDir scratch;
  const std::string file = scratch / "bench.jsonl";
  const ProgramResult result =
      Bench({kModel, "--prompt", "1k", "--depth", "1k", "--batch", "1,2", "-n", "3", "--repeat",
             "2", "--sparse-token-budget", "512", "--json", file, "--note", "a note"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(result.err, "");  // no progress bar: stderr is no terminal
  EXPECT_THAT(result.out,
              ContainsRegex("ceilings: .*f32 FMA [0-9.]+ GFLOP/s.*memory read [0-9.]+ GB/s"));
  EXPECT_THAT(result.out, HasSubstr("12 of 24 KV heads stream"));
  const std::vector<std::string> rows = TableRows(result.out);
  ASSERT_EQ(rows.size(), 6u) << result.out;
  EXPECT_THAT(rows[0], StartsWith("| pp1024 "));
  EXPECT_THAT(rows[0], HasSubstr("| dense "));
  EXPECT_THAT(rows[1], HasSubstr("| sparse "));
  EXPECT_THAT(rows[2], StartsWith("| tg3 @ d1024 "));
  EXPECT_THAT(rows[5], StartsWith("| tg3 @ d1024 b2 "));
  // Every row says what share it reached of the ceiling that matters.
  for (size_t i = 0; i < rows.size(); ++i)
    EXPECT_THAT(rows[i], ContainsRegex(i < 2 ? "[0-9]% FLOP \\|" : "[0-9]% read \\|"));
  for (const std::string& row : rows) {
    EXPECT_EQ(std::count(row.begin(), row.end(), '|'), 13) << row;
    EXPECT_EQ(row.size(), rows[0].size()) << row;
  }

  const std::vector<Json> lines = JsonLines(ReadFile(file));
  ASSERT_EQ(lines.size(), 7u);
  const Json& machine = lines[0];
  EXPECT_EQ(machine.Find("kind")->as_string(), "machine");
  EXPECT_EQ(machine.Find("note")->as_string(), "a note");
  EXPECT_EQ(machine.Find("model")->Find("name")->as_string(), "needle");
  EXPECT_EQ(Number(*machine.Find("model"), "streaming_kv_heads"), 12);
  EXPECT_GT(Number(*machine.Find("ceilings"), "f32_flop_s"), 0);
  EXPECT_GT(Number(*machine.Find("ceilings"), "read_bytes_s"), 0);
  for (size_t i = 1; i < lines.size(); ++i) {
    const Json& line = lines[i];
    const bool prefill = i < 3;
    EXPECT_EQ(line.Find("kind")->as_string(), prefill ? "prefill" : "decode");
    EXPECT_EQ(line.Find("attention")->as_string(), i % 2 == 1 ? "dense" : "sparse");
    EXPECT_EQ(Number(line, "context"), 1024);
    EXPECT_EQ(line.Find("seconds")->as_array().size(), 2u);
    EXPECT_EQ(line.Find("cores")->as_array().size(), 2u);
    EXPECT_EQ(line.Find("gauge_flop_s")->as_array().size(), 4u);
    const Json& rate = *line.Find("tokens_per_second");
    EXPECT_LE(Number(rate, "min"), Number(rate, "median"));
    EXPECT_LE(Number(rate, "median"), Number(rate, "max"));
    EXPECT_GT(Number(*line.Find("first_token_ms"), "median"), 0);
    EXPECT_GT(Number(line, "kv_bytes"), 0);
    EXPECT_GT(Number(line, "ceiling_share"), 0);
    EXPECT_GT(Number(line, "attention_share"), 0);
    EXPECT_LT(Number(line, "attention_share"), 1);
    EXPECT_GT(Number(*line.Find("op_seconds"), "linear"), 0);
    EXPECT_GE(Number(line, "load_average"), 0);
    if (!prefill) {
      const bool sparse = line.Find("attention")->as_string() == "sparse";
      EXPECT_EQ(Number(line, "selector_seconds") > 0, sparse);
    }
    EXPECT_EQ(line.Find("ms_per_token")->is_null(), prefill);
  }
  // The sparse arm really left out pages and tiles, the dense one none.
  EXPECT_EQ(Number(lines[1], "prefill_tiles_visited"), Number(lines[1], "prefill_tiles_present"));
  EXPECT_LT(Number(lines[2], "prefill_tiles_visited"), Number(lines[2], "prefill_tiles_present"));
  EXPECT_EQ(Number(lines[3], "pages_visited"), Number(lines[3], "pages_present"));
  EXPECT_LT(Number(lines[4], "pages_visited"), Number(lines[4], "pages_present"));
}

TEST(CliBench, AShapeNeedsNoCheckpointAndOneArmIsEnough) {
  const ProgramResult result =
      Bench({"--shape", "100m", "--prompt", "64", "--attention", "dense", "--repeat", "1", "--json",
             "--device", "cpu", "--batch-invariant"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const std::vector<Json> lines = JsonLines(result.out);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].Find("model")->Find("name")->as_string(), "100m");
  EXPECT_EQ(Number(*lines[0].Find("model"), "kv_heads"), 48);
  EXPECT_EQ(Number(*lines[0].Find("model"), "streaming_kv_heads"), 24);
  EXPECT_EQ(lines[1].Find("attention")->as_string(), "dense");
  // The table is for people, and stdout is taken.
  EXPECT_THAT(result.err, HasSubstr("100m (random weights)"));
  EXPECT_EQ(TableRows(result.err).size(), 1u);
  EXPECT_THAT(result.err, HasSubstr("note: --batch-invariant changes nothing on cpu"));
}

void ExpectFailure(int status, const std::vector<std::string>& arguments, const std::string& part) {
  const ProgramResult result = Bench(arguments);
  EXPECT_EQ(result.exit_status, status) << part;
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, StartsWith("lserve: error: "));
  EXPECT_EQ(CountLines(result.err), 1u) << result.err;
  EXPECT_THAT(result.err, HasSubstr(part));
}

TEST(CliBench, MistakesAreOneLineEach) {
  ExpectFailure(2, {}, "MODEL_DIR or --shape: got neither, expected one");
  ExpectFailure(2, {kModel, "--shape", "1b"}, "got both, expected one");
  ExpectFailure(2, {"--shape", "2b"}, "--shape: got \"2b\", expected 100m|1b|llama-3.2-1b");
  ExpectFailure(2, {kModel, "--prompt", "2k,,8k"}, "--prompt: got \"\"");
  ExpectFailure(2, {kModel, "--prompt", "0"}, "--prompt: got \"0\"");
  ExpectFailure(2, {kModel, "--depth", "x"}, "--depth: got \"x\"");
  ExpectFailure(2, {kModel, "--batch", "0"}, "--batch: got \"0\"");
  ExpectFailure(2, {kModel, "--repeat", "0"}, "--repeat: got \"0\"");
  ExpectFailure(2, {kModel, "-n", "0"}, "--n-gen: got \"0\"");
  ExpectFailure(2, {kModel, "--repeats", "2"}, "did you mean --repeat?");
  ExpectFailure(2, {kModel, "--attention", "fast"}, "auto|dense|sparse");
  ExpectFailure(2, {kModel, "--kernels"}, "--kernels: got a model as well");
  ExpectFailure(2, {"--kernels", "--prompt", "2k"}, "--kernels: got --prompt or --depth as well");
  ExpectFailure(1, {"/no/such/model"}, "/no/such/model");
  ExpectFailure(1, {kModel, "--prompt", "512k"}, "--prompt: got 524288, expected at most");
  ExpectFailure(1, {kModel, "--json", "/no/such/folder/x"}, "--json: cannot write");
}

TEST(CliBench, HelpTeaches) {
  const ProgramResult result = Bench({"--help"});
  EXPECT_EQ(result.exit_status, 0);
  EXPECT_THAT(result.out, HasSubstr("Examples:"));
  EXPECT_THAT(result.out, HasSubstr("Columns:"));
  EXPECT_THAT(result.out, HasSubstr("100m|1b|llama-3.2-1b"));
}

TEST(CliBench, CtrlCKeepsWhatWasMeasured) {
  ProgramInput input;
  input.interrupt_at = "| sparse";
  const ProgramResult result =
      RunProgram({LS_PROGRAM, "bench", kModel, "--prompt", "256,8k", "--repeat", "1"}, input);
  EXPECT_EQ(result.exit_status, 130);
  EXPECT_THAT(result.out, HasSubstr("| pp256 "));
  EXPECT_THAT(result.err, HasSubstr("interrupted"));
}

}  // namespace
}  // namespace lserve
