// LongBench: trials from the JSON Lines files of LongBench (Bai et al., arXiv 2308.14508): its
// prompts, its truncation in the middle, its metrics. The data are the user's. Used by
// `lserve eval longbench`.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "eval/trial.h"
#include "tokenizer/tokenizer.h"

namespace lserve {

enum class LongBenchMetric : uint8_t {
  kQaF1,
  kQaF1Chinese,
  kRougeL,
  kRougeLChinese,
  kClassification,
  kRetrieval,
  kRetrievalChinese,
  kCount,
  kCode,
};

struct LongBenchDataset {
  const char* name;
  const char* prompt;  // with {context} and {input}
  int max_tokens;      // of the answer
  LongBenchMetric metric;
  bool chat = true;              // some few-shot tasks go without the chat template
  bool first_line_only = false;  // what is scored
};
// All that LongBench defines.
std::span<const LongBenchDataset> LongBenchDatasets();
// "hotpotqa", and "hotpotqa_e" of LongBench-E; null if unknown.
const LongBenchDataset* FindLongBenchDataset(std::string_view name);

struct LongBenchRow {
  std::string id;
  std::string input;
  std::string context;
  std::vector<std::string> answers;
  std::vector<std::string> classes;
  int64_t length = 0;  // as the file says, in words
};

// One line of a file. `place` begins an error: "hotpotqa.jsonl: line 3".
Result<LongBenchRow> ParseLongBenchRow(std::string_view line, const std::string& place);

// The best score over the answers, in [0, 1].
double ScoreLongBench(const LongBenchDataset& dataset,
                      const LongBenchRow& row,
                      std::string_view answer);

// The prompt's text: of more than `max_tokens` tokens only the first and the last half stay.
Result<std::string> LongBenchPrompt(const Tokenizer& tokenizer,
                                    const LongBenchDataset& dataset,
                                    const LongBenchRow& row,
                                    int64_t max_tokens);

struct LongBenchOptions {
  std::string directory;
  std::vector<std::string> datasets;  // empty: every file that is there
  int64_t samples = 0;                // of each dataset, from its beginning; 0: all
  int64_t max_prompt_tokens = 0;
};

// Reads and checks every file before the first trial runs. `tokenizer` must outlive the trials.
Result<std::vector<TrialSpec>> LongBenchTrials(const Tokenizer& tokenizer,
                                               const LongBenchOptions& options);

}  // namespace lserve
