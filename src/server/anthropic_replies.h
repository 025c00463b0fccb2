// Answers in the shape of Anthropic's Messages API: whole messages, the events of a stream, errors.
// The mirror of anthropic_types.h. Used by the service.
#pragma once

#include <memory>
#include <string>

#include "server/reply_format.h"

namespace lserve {

// {"type":"error","error":{"type","message"}}
Json AnthropicErrorJson(const ApiError& error);

std::unique_ptr<ReplyFormat> MakeAnthropicReplies(std::string model);

}  // namespace lserve
