// ChatTemplate: turns a list of messages into prompt text with a checkpoint's own Jinja2 template.
// It is an interpreter for the part of Jinja2 that chat templates use, bounded in steps, depth and
// output; no template can touch anything but its own values. Used by Tokenizer and the apps.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/status.h"
#include "tokenizer/rendered_prompt.h"

namespace lserve {

namespace jinja {
struct Template;
}

// What strftime_now() formats. The operator pins it: a date that changes at midnight changes the
// prompt's first tokens, and with them every cached prefix.
struct ChatDate {
  int year = 1970;
  int month = 1;  // 1 to 12
  int day = 1;    // 1 to 31
  int hour = 0;
  int minute = 0;
  int second = 0;
};

// Reads "2026-11-24" or "2026-11-24T13:05:00".
Result<ChatDate> ParseChatDate(std::string_view text);

struct ChatRequest {
  Json messages;  // an array of objects: "role", "content" and whatever else the template reads
  Json tools;     // null, or an array of tool descriptions
  Json extra = Json(Json::Object{});  // further template variables ("enable_thinking", ...)
  bool add_generation_prompt = true;
  std::optional<ChatDate> date;  // without one, a template that asks for the date fails
};

struct ChatTemplateLimits {
  size_t max_template_bytes = size_t{1} << 20;
  size_t max_output_bytes = size_t{64} << 20;  // of the result and of every string on the way
  size_t max_work_bytes = size_t{1} << 30;     // written, searched and compared while rendering
  int64_t max_steps = 20'000'000;              // evaluated nodes and list elements
  int max_depth = 100;                         // nested tags, expressions and macro calls
};

class ChatTemplate {
 public:
  // `variables` are global names such as {"bos_token": "<s>"}; their text may become special
  // tokens, unlike every string of a ChatRequest. Errors name `where` the template comes from (its
  // file, for people) and its line.
  static Result<ChatTemplate> Parse(std::string_view source,
                                    const Json& variables = Json(Json::Object{}),
                                    const ChatTemplateLimits& limits = {},
                                    std::string where = "chat template");

  // Thread-safe: rendering changes nothing here.
  Result<RenderedPrompt> Render(const ChatRequest& request) const;

  const std::string& source() const { return source_; }

 private:
  ChatTemplate() = default;
  std::shared_ptr<const jinja::Template> template_;
  Json variables_;
  ChatTemplateLimits limits_;
  std::string where_;
  std::string source_;
};

}  // namespace lserve
