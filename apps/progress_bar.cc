#include "apps/progress_bar.h"

#include <algorithm>

#include "apps/console.h"
#include "apps/quantities.h"
#include "base/strings.h"

namespace lserve {
namespace {
constexpr int64_t kWidth = 24;
constexpr double kDelaySeconds = 0.5;
constexpr double kIntervalSeconds = 0.1;
}  // namespace

std::string ProgressLine(const std::string& label, int64_t done, int64_t total, double seconds) {
  const int64_t filled = total > 0 ? std::clamp<int64_t>(done * kWidth / total, 0, kWidth) : kWidth;
  std::string line = StrCat(label, " [", std::string(static_cast<size_t>(filled), '#'),
                            std::string(static_cast<size_t>(kWidth - filled), '.'), "] ",
                            FormatCount(done), "/", FormatCount(total), " tokens");
  if (done > 0 && seconds > 0.0) {
    const double rate = static_cast<double>(done) / seconds;
    line += StrCat(", ", FormatCount(static_cast<int64_t>(rate)), " tok/s, ",
                   FormatSeconds(static_cast<double>(total - done) / rate), " left");
  }
  return line;
}

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)), enabled_(StderrIsTerminal()) {}

void ProgressBar::Update(int64_t done, int64_t total) {
  if (!enabled_) return;
  const double now = since_start_.seconds();
  if (now < kDelaySeconds || now - last_drawn_ < kIntervalSeconds) return;
  last_drawn_ = now;
  shown_ = true;
  PrintToStderr(StrCat("\r\x1b[K", ProgressLine(label_, done, total, now)));
}

void ProgressBar::Clear() {
  if (!shown_) return;
  shown_ = false;
  PrintToStderr("\r\x1b[K");
}

}  // namespace lserve
