// Ruler: trials of RULER's tasks that fill a context of a given length on a model's tokenizer.
// Used by `lserve eval ruler`, and by niah.cc for models that do not know the bundled model's
// wordings.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "eval/ruler_tasks.h"
#include "eval/trial.h"
#include "tokenizer/tokenizer.h"

namespace lserve {

struct RulerSample {
  RulerText text;
  std::vector<int32_t> tokens;  // the prompt, with the beginning of the answer
  int64_t hay = 0;
};

// The most hay with which prompt and answer fit `length` tokens. An error says what the least is.
Result<RulerSample> FillContext(const Tokenizer& tokenizer,
                                RulerTask task,
                                int64_t length,
                                const RulerSource& source,
                                uint64_t seed,
                                std::optional<double> depth = {});

struct RulerOptions {
  std::vector<RulerTask> tasks;
  std::vector<int64_t> lengths;
  int64_t samples = 1;
  uint64_t seed = 1;
  std::shared_ptr<const RulerSource> source;
};

// One trial per task, length and sample. `tokenizer` must outlive them.
std::vector<TrialSpec> RulerTrials(const Tokenizer& tokenizer, const RulerOptions& options);

TrialPrompt ToTrialPrompt(RulerTask task, RulerSample sample);

// A seed for each cell of a grid, from the run's own.
uint64_t CellSeed(uint64_t seed, std::string_view task, int64_t length, int64_t sample);

}  // namespace lserve
