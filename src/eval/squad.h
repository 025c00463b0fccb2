// SquadData: questions with their paragraphs, from a JSON file in SQuAD's format. RULER's QA task
// hides the paragraph among the others. Used by ruler_tasks.cc.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace lserve {

struct SquadQuestion {
  std::string question;
  std::vector<std::string> answers;  // at least one
  size_t document = 0;               // that holds the answer
};

struct SquadData {
  std::vector<std::string> documents;  // all different
  std::vector<SquadQuestion> questions;
};

// {"data": [{"paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}]}; what is
// marked "is_impossible" is left out. An error names the place.
Result<SquadData> ParseSquad(std::string_view text, const std::string& source);

}  // namespace lserve
