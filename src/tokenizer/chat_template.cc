#include "tokenizer/chat_template.h"

#include <array>
#include <charconv>

#include "base/strings.h"
#include "tokenizer/jinja/ast.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/parser.h"
#include "tokenizer/json_fields.h"
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

// Deeper values could not be walked by recursion. The parser of JSON stops at 64 levels.
constexpr int kMaxJsonDepth = 100;

Status NoUtf8(std::string_view where, std::string_view text) {
  const size_t at = FindInvalidUtf8(text);
  return Status(Code::kInvalidArgument,
                StrCat(where, " is no UTF-8 at byte ", at, " (value ",
                       static_cast<int>(static_cast<unsigned char>(text[at])),
                       "); expected UTF-8; convert it"));
}

bool IsUtf8(std::string_view text) {
  return FindInvalidUtf8(text) == text.size();
}

// A string that is no UTF-8 would break every later step. `where` names `json` in messages.
Status CheckTexts(const Json& json, const std::string& where, int depth = 0) {
  if (depth > kMaxJsonDepth) {
    return Status(Code::kInvalidArgument,
                  StrCat(where.substr(0, 80), "... nests deeper than ", kMaxJsonDepth,
                         " levels; expected fewer; flatten it"));
  }
  if (json.is_string() && !IsUtf8(json.as_string())) return NoUtf8(where, json.as_string());
  if (json.is_array()) {
    for (size_t i = 0; i < json.as_array().size(); ++i) {
      LS_TRY(CheckTexts(json.as_array()[i], StrCat(where, "[", i, "]"), depth + 1));
    }
  }
  if (json.is_object()) {
    for (const auto& [name, value] : json.as_object()) {
      if (!IsUtf8(name)) return NoUtf8(StrCat("a member name of ", where), name);
      LS_TRY(CheckTexts(value, StrCat(where, ".", Shown(name)), depth + 1));
    }
  }
  return {};
}

// "messages[3] (role "user")"
std::string NameOfMessage(const Json& message, size_t index) {
  const Json* role = message.Find("role");
  const bool known = role != nullptr && role->is_string() && IsUtf8(role->as_string());
  return StrCat("messages[", index, "]",
                known ? StrCat(" (role \"", Shown(role->as_string()), "\")") : std::string());
}

Status CheckMessages(const Json& messages) {
  if (!messages.is_array()) {
    return Status(Code::kInvalidArgument, StrCat("messages is ", messages.TypeName(),
                                                 "; expected an array of objects; correct it"));
  }
  for (size_t i = 0; i < messages.as_array().size(); ++i) {
    const Json& message = messages.as_array()[i];
    if (!message.is_object()) {
      return Status(Code::kInvalidArgument,
                    StrCat("messages[", i, "] is ", message.TypeName(),
                           "; expected an object with role and content; correct it"));
    }
    LS_TRY(CheckTexts(message, NameOfMessage(message, i)));
  }
  return {};
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
                                         const ChatTemplateLimits& limits,
                                         std::string where) {
  if (source.size() > limits.max_template_bytes) {
    return Status(Code::kInvalidArgument,
                  StrCat(where, " has ", source.size(), " bytes; expected at most ",
                         limits.max_template_bytes, "; use a shorter one"));
  }
  if (!IsUtf8(source)) return NoUtf8(where, source);
  LS_TRY(CheckTexts(variables, StrCat(where, ": variable")));
  Result<jinja::Template> parsed = jinja::Parse(source, limits.max_depth);
  if (!parsed.ok()) {
    return Status(parsed.status().code(), StrCat(where, ", ", parsed.status().message()));
  }
  ChatTemplate out;
  out.template_ = std::make_shared<const jinja::Template>(std::move(parsed).value());
  out.variables_ = variables;
  out.limits_ = limits;
  out.where_ = std::move(where);
  out.source_ = std::string(source);
  return out;
}

Result<RenderedPrompt> ChatTemplate::Render(const ChatRequest& request) const {
  LS_TRY(CheckMessages(request.messages));
  LS_TRY(CheckTexts(request.tools, "tools"));
  LS_TRY(CheckTexts(request.extra, "template variable"));
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
  Result<RenderedPrompt> prompt = jinja::Run(*template_, variables, limits_, request.date);
  if (prompt.ok()) return prompt;
  return Status(prompt.status().code(), StrCat(where_, ", ", prompt.status().message()));
}

}  // namespace lserve
