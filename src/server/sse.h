// Server-sent events. OpenAI's chat clients read data lines and comments, never `id:`, `retry:` or
// `event:` lines (openai-python turns the blank line after a lone `id` into an empty event and
// fails to parse it); Anthropic's and the Responses endpoint's events have names. Used by the
// formats of replies.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace lserve {

// "data: {...}\n\n"; one line, for JSON is written without line breaks.
std::string SseData(const Json& value);
// The same with "event: NAME" before it.
std::string SseEvent(std::string_view name, const Json& value);
// Ignored by every client; resets the read timeout of clients and proxies while a prompt is read.
inline constexpr std::string_view kSseHeartbeat = ": ping\n\n";
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";

}  // namespace lserve
