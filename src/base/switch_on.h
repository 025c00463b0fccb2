// SwitchOn: turns one run-time value into a template argument, without a dispatch macro.
#pragma once

#include <type_traits>

namespace lserve {

// Calls `f(std::integral_constant<T, V>{})` for the V equal to `value`. Returns false if `value`
// is none of `Vs`.
template <auto... Vs, class T, class F>
constexpr bool SwitchOn(T value, F&& f) {
  return ((value == Vs && (f(std::integral_constant<T, Vs>{}), true)) || ...);
}

}  // namespace lserve
