#include "apps/eval_progress.h"

#include <algorithm>

#include "apps/console.h"
#include "apps/quantities.h"
#include "base/strings.h"

namespace lserve {

std::string EvalProgressLine(const EvalProgress& progress, double seconds) {
  constexpr double kWidth = 24.0;
  const double share = progress.work_total > 0.0
                           ? std::clamp(progress.work_done / progress.work_total, 0.0, 1.0)
                           : 1.0;
  const size_t filled = static_cast<size_t>(share * kWidth);
  std::string line =
      StrCat("[", std::string(filled, '#'), std::string(static_cast<size_t>(kWidth) - filled, '.'),
             "] ", progress.cells_done, "/", progress.cells_total, " cells");
  if (share > 0.0 && seconds > 0.0) {
    line += StrCat(", ", FormatSeconds(seconds * (1.0 - share) / share), " left");
  }
  return progress.label.empty() ? line : StrCat(line, ", ", progress.label);
}

EvalProgressBar::EvalProgressBar() : enabled_(StderrIsTerminal()) {}

void EvalProgressBar::Update(const EvalProgress& progress) {
  constexpr double kIntervalSeconds = 0.1;
  if (!enabled_) return;
  const double now = since_start_.seconds();
  if (shown_ && now - last_drawn_ < kIntervalSeconds) return;
  last_drawn_ = now;
  shown_ = true;
  PrintToStderr(StrCat("\r\x1b[K", OneLine(EvalProgressLine(progress, now))));
}

void EvalProgressBar::Clear() {
  if (!shown_) return;
  shown_ = false;
  PrintToStderr("\r\x1b[K");
}

}  // namespace lserve
