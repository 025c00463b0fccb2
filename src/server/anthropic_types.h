// The bodies of Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens, read
// into the same structs as OpenAI's. Blocks of text, of tools' calls and of their results are
// known; pictures and documents are refused. Used by the service.
#pragma once

#include <optional>

#include "base/json.h"
#include "server/api_error.h"
#include "server/openai_types.h"

namespace lserve {

// With `for_counting`, max_tokens is not demanded.
std::optional<ApiError> ParseMessagesBody(const Json& json, bool for_counting, ChatBody* out);

}  // namespace lserve
