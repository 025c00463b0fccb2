// The program's version, as `lserve --version` prints it.
#pragma once

namespace lserve {
inline constexpr const char kVersion[] = "0.1.0";
}  // namespace lserve
