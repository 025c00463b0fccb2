// Answers in the shape of OpenAI's Responses API: whole responses and the events of a stream. The
// mirror of responses_types.h. Used by the service.
#pragma once

#include <memory>
#include <string>

#include "server/openai_types.h"
#include "server/reply_format.h"

namespace lserve {

// `body`: what the response repeats of the request.
std::unique_ptr<ReplyFormat> MakeResponsesReplies(std::string model, const ChatBody& body);

}  // namespace lserve
