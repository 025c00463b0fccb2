// RoundUp: sizes in whole multiples.
#pragma once

namespace lserve {

// The least multiple of `multiple` that is not below `x`. REQUIRES: x >= 0, multiple > 0.
template <class T>
constexpr T RoundUp(T x, T multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

}  // namespace lserve
