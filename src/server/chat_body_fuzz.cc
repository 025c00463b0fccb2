// Any bytes as the body of a chat, completion, messages, responses or tokenizer request: parsed, or
// refused with an error that is JSON of one line; what is parsed keeps its bounds.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "server/anthropic_types.h"
#include "server/openai_types.h"
#include "server/responses_types.h"

namespace {

bool IsFine(const std::optional<lserve::ApiError>& error) {
  if (!error) return true;
  const std::string text = lserve::WriteJson(error->ToJson());
  LS_CHECK(lserve::ParseJson(text).ok()) << text;
  LS_CHECK(error->http_status >= 400 && error->http_status < 500) << text;
  LS_CHECK(error->message.find('\n') == std::string::npos) << text;
  return false;
}

template <class Body>
bool Parses(const lserve::Json& json, Body* body) {
  return IsFine(lserve::ParseBody(json, body));
}

void CheckBounds(const lserve::GenerationParams& params) {
  LS_CHECK(params.n >= 1 && params.n <= lserve::kMaxChoices);
  LS_CHECK(params.stop.size() <= lserve::kMaxStops);
  LS_CHECK(params.logit_bias.size() <= lserve::kMaxLogitBias);
  LS_CHECK(params.top_logprobs.value_or(0) <= lserve::kMaxTopLogprobs);
  LS_CHECK(params.max_tokens.value_or(1) >= 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const lserve::Result<lserve::Json> json = lserve::ParseJson(text);
  if (!json.ok()) return 0;
  lserve::ChatBody chat;
  if (Parses(json.value(), &chat)) {
    CheckBounds(chat.params);
    LS_CHECK(!chat.messages.as_array().empty());
    LS_CHECK(chat.tools.tools.size() <= lserve::kMaxTools);
  }
  lserve::CompletionBody completion;
  if (Parses(json.value(), &completion)) {
    CheckBounds(completion.params);
    LS_CHECK(!completion.prompts.empty() && completion.prompts.size() <= lserve::kMaxPrompts);
  }
  lserve::ChatBody messages, responses;
  if (IsFine(lserve::ParseMessagesBody(json.value(), /*for_counting=*/true, &messages))) {
    CheckBounds(messages.params);
    LS_CHECK(!messages.messages.as_array().empty());
  }
  if (IsFine(lserve::ParseResponsesBody(json.value(), &responses))) {
    CheckBounds(responses.params);
    LS_CHECK(!responses.messages.as_array().empty());
  }
  lserve::TokenizeBody tokenize;
  Parses(json.value(), &tokenize);
  lserve::DetokenizeBody detokenize;
  Parses(json.value(), &detokenize);
  return 0;
}
