#include "tokenizer/chat_template.h"

#include <array>
#include <charconv>

#include "base/strings.h"
#include "tokenizer/jinja/ast.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/parser.h"
#include "tokenizer/unicode.h"

namespace lserve {
namespace {

int DaysOfMonth(int year, int month) {
  constexpr std::array<int, 12> kDays = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
  return month == 2 && leap ? 29 : kDays[static_cast<size_t>(month - 1)];
}

bool IsDate(const ChatDate& date) {
  return date.year >= 1 && date.year <= 9999 && date.month >= 1 && date.month <= 12 &&
         date.day >= 1 && date.day <= DaysOfMonth(date.year, date.month) && date.hour >= 0 &&
         date.hour < 24 && date.minute >= 0 && date.minute < 60 && date.second >= 0 &&
         date.second < 60;
}

Status NoDate(std::string_view text) {
  return Status(
      Code::kInvalidArgument,
      StrCat("date is \"", text, "\"; expected YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS; correct it"));
}

// A string that is no UTF-8 would break every later step.
bool AllUtf8(const Json& json) {
  if (json.is_string()) return FindInvalidUtf8(json.as_string()) == json.as_string().size();
  if (json.is_array()) {
    for (const Json& item : json.as_array()) {
      if (!AllUtf8(item)) return false;
    }
  }
  if (json.is_object()) {
    for (const auto& [name, value] : json.as_object()) {
      if (FindInvalidUtf8(name) != name.size() || !AllUtf8(value)) return false;
    }
  }
  return true;
}

void SetMember(jinja::Dict& dict, const std::string& name, jinja::Value value) {
  for (auto& [known, slot] : dict) {
    if (known.text == name) {
      slot = std::move(value);
      return;
    }
  }
  dict.emplace_back(jinja::Str{name, {}}, std::move(value));
}

}  // namespace

Result<ChatDate> ParseChatDate(std::string_view text) {
  constexpr std::string_view kShape = "dddd-dd-ddTdd:dd:dd";
  if (text.size() != 10 && text.size() != kShape.size()) return NoDate(text);
  std::array<int, 6> numbers{};
  size_t number = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool digit = text[i] >= '0' && text[i] <= '9';
    if (kShape[i] != 'd') ++number;
    if (kShape[i] == 'd' ? !digit : text[i] != kShape[i]) return NoDate(text);
    if (digit) numbers[number] = numbers[number] * 10 + (text[i] - '0');
  }
  const ChatDate date{numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]};
  if (!IsDate(date)) return NoDate(text);
  return date;
}

Result<ChatTemplate> ChatTemplate::Parse(std::string_view source,
                                         const Json& variables,
                                         const ChatTemplateLimits& limits) {
  if (source.size() > limits.max_template_bytes) {
    return Status(Code::kInvalidArgument,
                  StrCat("chat template has ", source.size(), " bytes; expected at most ",
                         limits.max_template_bytes, "; use a shorter one"));
  }
  if (FindInvalidUtf8(source) != source.size() || !AllUtf8(variables)) {
    return Status(Code::kInvalidArgument,
                  StrCat("chat template is no UTF-8 at byte ", FindInvalidUtf8(source),
                         "; expected UTF-8; convert it"));
  }
  ChatTemplate out;
  out.template_ =
      std::make_shared<const jinja::Template>(LS_TRY(jinja::Parse(source, limits.max_depth)));
  out.variables_ = variables;
  out.limits_ = limits;
  return out;
}

Result<RenderedPrompt> ChatTemplate::Render(const ChatRequest& request) const {
  if (!request.messages.is_array()) {
    return Status(Code::kInvalidArgument, StrCat("messages is ", request.messages.TypeName(),
                                                 "; expected an array of objects; correct it"));
  }
  for (const Json& message : request.messages.as_array()) {
    if (message.is_object()) continue;
    return Status(Code::kInvalidArgument,
                  StrCat("a message is ", message.TypeName(),
                         "; expected an object with role and content; correct it"));
  }
  if (!AllUtf8(request.messages) || !AllUtf8(request.tools) || !AllUtf8(request.extra)) {
    return Status(Code::kInvalidArgument,
                  "messages hold a text that is no UTF-8; expected UTF-8; convert it");
  }
  if (request.date.has_value() && !IsDate(*request.date)) return NoDate("out of range");
  jinja::Dict variables;
  if (variables_.is_object()) {
    for (const auto& [name, value] : variables_.as_object()) {
      SetMember(variables, name, jinja::FromJson(value, /*user=*/false));
    }
  }
  SetMember(variables, "messages", jinja::FromJson(request.messages, /*user=*/true));
  SetMember(variables, "tools", jinja::FromJson(request.tools, /*user=*/true));
  SetMember(variables, "add_generation_prompt", jinja::MakeBool(request.add_generation_prompt));
  if (request.extra.is_object()) {
    for (const auto& [name, value] : request.extra.as_object()) {
      SetMember(variables, name, jinja::FromJson(value, /*user=*/true));
    }
  }
  return jinja::Run(*template_, variables, limits_, request.date);
}

}  // namespace lserve
