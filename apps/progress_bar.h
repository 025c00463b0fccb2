// ProgressBar: one line on stderr that is redrawn while a prompt is read, with rate and time left.
// Silent if stderr is no terminal. Used by `lserve run` and the demo.
#pragma once

#include <cstdint>
#include <string>

#include "base/clock.h"

namespace lserve {

// The text of the line, without the carriage return; for tests.
std::string ProgressLine(const std::string& label, int64_t done, int64_t total, double seconds);

class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar() { Clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Draws at most ten times a second, and nothing in the first half second: short prompts need no
  // bar.
  void Update(int64_t done, int64_t total);
  void Clear();

 private:
  std::string label_;
  bool enabled_;
  bool shown_ = false;
  double last_drawn_ = 0.0;
  Stopwatch since_start_;
};

}  // namespace lserve
