// Wall time, for what people read: dates in replies and in the log. It jumps when somebody sets the
// clock, so nothing waits, ends or is refused by it; base/clock.h has the other one.
// tools/check_layers.py lets no other file ask.
#pragma once

#include <chrono>
#include <cstdint>

namespace lserve {

// Since 1970.
inline int64_t UnixMilliseconds() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}
inline int64_t UnixSeconds() {
  return UnixMilliseconds() / 1000;
}

}  // namespace lserve
