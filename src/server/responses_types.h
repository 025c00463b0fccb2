// The body of OpenAI's POST /v1/responses, read into the same structs as a chat. Stateless: every
// request brings its whole conversation, and what asks for stored state is refused. Used by the
// service.
#pragma once

#include <optional>

#include "base/json.h"
#include "server/api_error.h"
#include "server/openai_types.h"

namespace lserve {

std::optional<ApiError> ParseResponsesBody(const Json& json, ChatBody* out);

}  // namespace lserve
