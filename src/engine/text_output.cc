#include "engine/text_output.h"

#include <algorithm>
#include <utility>

namespace lserve {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

std::string StopMatcher::Push(std::string_view piece) {
  if (stopped_) return "";
  held_ += piece;
  size_t match = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at >= match) continue;
    match = at;
    found_ = stop;
  }
  if (match != std::string::npos) {
    stopped_ = true;
    return std::exchange(held_, "").substr(0, match);
  }
  // The longest end of the text that begins a stop string.
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
      if (held_.ends_with(std::string_view(stop).substr(0, n))) keep = n;
    }
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopMatcher::Finish() {
  return stopped_ ? "" : std::exchange(held_, "");
}

Result<std::string> TextOutput::Push(int32_t token) {
  const std::string piece = LS_TRY(detokenizer_.Push(token));
  return matcher_.Push(piece);
}

std::string TextOutput::Finish() {
  std::string text = matcher_.Push(detokenizer_.Finish());
  return text + matcher_.Finish();
}

}  // namespace lserve
