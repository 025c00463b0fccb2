// LineReader: lines from stdin, for questions that are typed or piped in. Unlike std::getline it
// returns on Ctrl-C and bounds the line. Used by `lserve run`.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"

namespace lserve {

class LineReader {
 public:
  // The next line without its end; nothing at the end of the input or after Ctrl-C.
  Result<std::optional<std::string>> Next();

 private:
  std::string buffer_;
  bool at_end_ = false;
};

}  // namespace lserve
