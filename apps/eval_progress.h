// EvalProgressBar: one line on stderr that is redrawn while an evaluation runs: cells done, time
// left, what runs now. Silent if stderr is no terminal. Used by `lserve eval`.
#pragma once

#include <string>

#include "base/clock.h"
#include "eval/trial.h"

namespace lserve {

// The text of the line, without the carriage return; for tests.
std::string EvalProgressLine(const EvalProgress& progress, double seconds);

class EvalProgressBar {
 public:
  EvalProgressBar();
  ~EvalProgressBar() { Clear(); }
  EvalProgressBar(const EvalProgressBar&) = delete;
  EvalProgressBar& operator=(const EvalProgressBar&) = delete;

  // Draws at most ten times a second.
  void Update(const EvalProgress& progress);
  void Clear();

 private:
  bool enabled_;
  bool shown_ = false;
  double last_drawn_ = -1.0;
  Stopwatch since_start_;
};

}  // namespace lserve
