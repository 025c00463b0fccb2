#include "eval/chat_prompt.h"

#include <utility>

#include "base/json.h"
#include "base/strings.h"

namespace lserve {
namespace {

// Some templates write today's date; a fixed one keeps the prompt the same on every day.
constexpr ChatDate kDate = {.year = 2024, .month = 7, .day = 26};

}  // namespace

Result<std::vector<int32_t>> PlainTokens(const Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.Encode(text, {.add_special_tokens = false, .match_special_tokens = false});
}

Result<std::vector<int32_t>> EvalPrompt(const Tokenizer& tokenizer,
                                        const std::string& user_text,
                                        std::string_view answer_prefix,
                                        ChatUse chat) {
  if (chat == ChatUse::kNever || !tokenizer.has_chat_template()) {
    return tokenizer.Encode(StrCat(user_text, answer_prefix),
                            {.add_special_tokens = true, .match_special_tokens = false});
  }
  ChatRequest request;
  request.messages =
      Json(Json::Array{Json(Json::Object{{"role", Json("user")}, {"content", Json(user_text)}})});
  request.date = kDate;
  std::vector<int32_t> tokens = LS_TRY(tokenizer.EncodeChat(LS_TRY(tokenizer.RenderChat(request))));
  if (!answer_prefix.empty()) {
    const std::vector<int32_t> begun = LS_TRY(PlainTokens(tokenizer, answer_prefix));
    tokens.insert(tokens.end(), begun.begin(), begun.end());
  }
  return tokens;
}

}  // namespace lserve
