// TextOutput: the text side of one answer: tokens become complete UTF-8, and the text ends before
// the first stop string. Used by the engine.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tokenizer/tokenizer.h"

namespace lserve {

// Finds stop strings in a stream. Text that may still turn out to be the beginning of one is held
// back.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);

  // The text that may be shown after `piece`.
  std::string Push(std::string_view piece);
  // What was held back; call once, when the answer ends for another reason.
  std::string Finish();
  bool stopped() const { return stopped_; }
  // Which one was found; empty before.
  const std::string& found() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  std::string found_;
  bool stopped_ = false;
};

class TextOutput {
 public:
  TextOutput(const Tokenizer& tokenizer, std::vector<std::string> stops)
      : detokenizer_(tokenizer), matcher_(std::move(stops)) {}

  Result<std::string> Push(int32_t token);
  std::string Finish();
  bool stopped() const { return matcher_.stopped(); }
  const std::string& stop_string() const { return matcher_.found(); }

 private:
  StreamDetokenizer detokenizer_;
  StopMatcher matcher_;
};

}  // namespace lserve
