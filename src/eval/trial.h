// Trials: one prompt with a known answer, asked with dense and with sparse attention, scored; and
// the loop that runs a list of them, skipping those that a log already holds. The tasks (niah.h,
// ruler.h, longbench.h) write the list, report.h shows what came out.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "eval/ask.h"
#include "eval/result_log.h"

namespace lserve {

// What is asked. Made when its turn comes: the prompts of a grid do not fit memory together.
struct TrialPrompt {
  std::vector<int32_t> tokens;
  int64_t max_tokens = 128;
  std::vector<std::string> stop;
  std::vector<std::string> expected;                       // for the record
  std::function<double(const std::string& answer)> score;  // in [0, 1]
};

struct TrialSpec {
  std::string task;
  int64_t length = 0;           // tokens asked for; 0: the task has no such axis
  std::optional<double> depth;  // in [0, 1]
  int64_t sample = 0;
  std::function<Result<TrialPrompt>()> make;

  std::string key() const;  // "single/4096/0.5/0"
};

struct ArmOutcome {
  std::string text;
  double score = 0.0;
  RequestStats stats;
};

struct TrialRecord {
  std::string task;
  int64_t length = 0;
  std::optional<double> depth;
  int64_t sample = 0;
  std::vector<std::string> expected;
  ArmOutcome arms[2];       // by Arm
  bool ran_sparse = false;  // the sparse arm left something out

  const ArmOutcome& arm(Arm which) const { return arms[static_cast<size_t>(which)]; }
  ArmOutcome& arm(Arm which) { return arms[static_cast<size_t>(which)]; }
};

Json ToJson(const TrialRecord& record);
// An error names the member that is missing or of another type.
Result<TrialRecord> TrialFromJson(const Json& json, const std::string& source);

struct EvalProgress {
  size_t cells_done = 0;
  size_t cells_total = 0;
  double work_done = 0.0;  // in units that grow as the time does
  double work_total = 0.0;
  std::string label;
};

struct EvalHooks {
  std::function<bool()> should_stop;
  std::function<void(const EvalProgress&)> on_progress;
};

// What a prompt of `tokens` costs, in tokens: linear parts plus dense attention, which is as large
// as all else at about 8K tokens on the models and machines this was made on.
double WorkOf(int64_t tokens);

struct TrialRun {
  std::vector<TrialRecord> records;  // in the order of the list
  Status status;                     // why it ended early, if it did
  bool interrupted = false;
};

// Records of `log` stand for their trials. The first error ends the run; what was finished stays.
TrialRun RunTrials(Engine& engine,
                   std::span<const TrialSpec> specs,
                   ResultLog& log,
                   const EvalHooks& hooks);

}  // namespace lserve
