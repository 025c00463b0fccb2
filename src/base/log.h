// Logging for library code. The sink (stderr by default) and level are set by apps/; nothing in
// src/ prints in any other way. spdlog is behind log.cc only.
#pragma once

#include <string_view>

namespace lserve {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

void SetLogLevel(LogLevel level);

void LogDebug(std::string_view message);
void LogInfo(std::string_view message);
void LogWarning(std::string_view message);
void LogError(std::string_view message);

}  // namespace lserve
