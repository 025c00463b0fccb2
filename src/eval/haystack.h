// Haystack: sentences to hide things between: of a text that the user gives, or of FillerText. Used
// by the tasks that RULER builds from essays.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace lserve {

class Haystack {
 public:
  Haystack() = default;  // FillerText
  // `text` is UTF-8; `source` begins the message of an error.
  static Result<Haystack> FromText(const std::string& text, const std::string& source);

  // The first `count` sentences; a text that is shorter begins again. Filler is made from `seed`.
  std::vector<std::string> Sentences(int64_t count, uint64_t seed) const;

 private:
  std::vector<std::string> sentences_;
};

}  // namespace lserve
