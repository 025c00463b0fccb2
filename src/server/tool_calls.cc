#include "server/tool_calls.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "server/ids.h"

namespace lserve {
namespace {

// The length of the longest end of `text` that begins `mark` but is not all of it.
size_t EndThatBegins(std::string_view text, std::string_view mark) {
  for (size_t n = std::min(mark.size() - 1, text.size()); n > 0; --n) {
    if (text.ends_with(mark.substr(0, n))) return n;
  }
  return 0;
}

const Json* Member(const Json& object, std::string_view name) {
  const Json* value = object.Find(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

std::string Text(const Json& object, std::string_view name) {
  const Json* value = object.Find(name);
  return value != nullptr && value->is_string() ? value->as_string() : "";
}

Json Description(const Tool& tool) {
  Json::Object function = {{"name", Json(tool.name)},
                           {"description", Json(tool.description)},
                           {"parameters", tool.parameters}};
  return Json(Json::Object{{"type", Json("function")}, {"function", Json(std::move(function))}});
}

// What models are told whose template does not tell them.
std::string Instructions(const ToolOptions& options) {
  std::string text = "You may call these functions, described as JSON:\n<tools>\n";
  for (const Tool& tool : options.tools)
    text += StrCat(WriteJson(Description(tool), {.space_after = true}), "\n");
  return text +
         "</tools>\nTo call one, write:\n<tool_call>\n{\"name\": NAME, \"arguments\": "
         "ARGUMENTS}\n</tool_call>\nResults come back inside <tool_response> tags.";
}

Json PlainMessage(std::string role, std::string content) {
  return Json(Json::Object{{"role", Json(std::move(role))}, {"content", Json(std::move(content))}});
}

// The calls of an assistant's message, as that assistant would have written them.
std::string CallsAsText(const Json& message) {
  std::string text = Text(message, "content");
  const Json* calls = Member(message, "tool_calls");
  if (calls == nullptr) return text;
  for (const Json& call : calls->as_array()) {
    const Json* function = call.Find("function");
    if (function == nullptr) continue;
    const Json* arguments = function->Find("arguments");
    if (!text.empty()) text += "\n";
    text += CallOpening(ToolStyle::kDescribed, Text(*function, "name"));
    text += arguments == nullptr ? "{}" : WriteJson(*arguments, {.space_after = true});
    text += CallClosing(ToolStyle::kDescribed);
  }
  return text;
}

}  // namespace

ToolStyle ToolStyleOf(std::string_view source) {
  const auto has = [&](std::string_view text) {
    return source.find(text) != std::string_view::npos;
  };
  if (!has("tools")) return ToolStyle::kDescribed;
  if (has("<tool_call>")) return ToolStyle::kTagged;
  // Llama's own words for the form of a call.
  if (has("\"parameters\": ") || has("\\\"parameters\\\": ")) return ToolStyle::kBareJson;
  return ToolStyle::kDescribed;
}

Json ToolsForTemplate(ToolStyle style, const ToolOptions& options) {
  if (style == ToolStyle::kDescribed || !options.enabled()) return Json();
  Json::Array tools;
  for (const Tool& tool : options.tools) tools.push_back(Description(tool));
  return Json(std::move(tools));
}

Json MessagesForTemplate(ToolStyle style, const Json& messages, const ToolOptions& options) {
  if (style != ToolStyle::kDescribed) return messages;
  Json::Array out;
  bool after_result = false;
  for (const Json& message : messages.as_array()) {
    const std::string role = Text(message, "role");
    const bool is_result = role == "tool";
    if (is_result) {
      const std::string result =
          StrCat("<tool_response>\n", Text(message, "content"), "\n</tool_response>");
      // Results of one turn stand together: templates want turns to alternate.
      if (after_result) {
        Json& content = out.back().mutable_object()[1].second;
        content = Json(StrCat(content.as_string(), "\n", result));
      } else {
        out.push_back(PlainMessage("user", result));
      }
    } else if (role == "assistant") {
      out.push_back(PlainMessage(role, CallsAsText(message)));
    } else {
      out.push_back(PlainMessage(role, Text(message, "content")));
    }
    after_result = is_result;
  }
  if (!options.enabled()) return Json(std::move(out));
  const bool has_system = !out.empty() && Text(out[0], "role") == "system";
  if (!has_system) out.insert(out.begin(), PlainMessage("system", ""));
  Json& content = out[0].mutable_object()[1].second;
  content = Json(StrCat(content.as_string(), content.as_string().empty() ? "" : "\n\n",
                        Instructions(options)));
  return Json(std::move(out));
}

std::string CallOpening(ToolStyle style, std::string_view tool) {
  if (style == ToolStyle::kBareJson) return StrCat("{\"name\": \"", tool, "\", \"parameters\": ");
  return StrCat(kCallTag, "\n{\"name\": \"", tool, "\", \"arguments\": ");
}

std::string CallClosing(ToolStyle style) {
  // No JSON holds a line break inside a string, so the arguments can not hold this.
  return style == ToolStyle::kBareJson ? "}" : "}\n</tool_call>";
}

ToolCallReader::ToolCallReader(ToolStyle style, const ToolOptions& options)
    : bare_(style == ToolStyle::kBareJson), closing_(CallClosing(style)) {
  if (!options.enabled()) return;
  for (const Tool& tool : options.tools) {
    names_.push_back(tool.name);
    openings_.push_back(CallOpening(style, tool.name));
  }
  // A bare call can stand at the beginning only.
  if (bare_) state_ = State::kOpening;
}

void ToolCallReader::Emit(OutputPiece::Kind kind, std::string text, std::vector<OutputPiece>* out) {
  const bool is_empty = text.empty() && kind != OutputPiece::Kind::kCallEnd;
  if (is_empty) return;
  out->push_back({kind, std::move(text),
                  kind == OutputPiece::Kind::kCallBegin ? RandomName("call_") : std::string()});
}

std::vector<OutputPiece> ToolCallReader::Push(std::string_view text, bool last, bool whole) {
  std::vector<OutputPiece> out;
  held_ += text;
  if (names_.empty()) {
    Emit(OutputPiece::Kind::kText, std::exchange(held_, ""), &out);
    return out;
  }
  for (bool more = true; more;) {
    switch (state_) {
      case State::kText:
      case State::kBetween:
        more = ReadText(last, &out);
        break;
      case State::kOpening:
        more = ReadOpening(last, &out);
        break;
      case State::kArguments:
        more = ReadArguments(last, whole, &out);
        break;
    }
  }
  return out;
}

bool ToolCallReader::ReadText(bool last, std::vector<OutputPiece>* out) {
  const size_t tag = bare_ ? std::string::npos : held_.find(kCallTag);
  const bool found = tag != std::string::npos;
  size_t shown = found ? tag : held_.size();
  if (!found && !last && !bare_) shown -= EndThatBegins(held_, kCallTag);
  std::string text = held_.substr(0, shown);
  held_.erase(0, shown);
  // Between two calls there is a line break only, which is nobody's text.
  if (state_ == State::kText) Emit(OutputPiece::Kind::kText, std::move(text), out);
  if (found) state_ = State::kOpening;
  return found;
}

bool ToolCallReader::ReadOpening(bool last, std::vector<OutputPiece>* out) {
  bool may_come = false;
  for (size_t i = 0; i < openings_.size(); ++i) {
    const std::string& opening = openings_[i];
    if (held_.starts_with(opening)) {
      held_.erase(0, opening.size());
      Emit(OutputPiece::Kind::kCallBegin, names_[i], out);
      state_ = State::kArguments;
      return true;
    }
    may_come = may_come || opening.starts_with(held_);
  }
  if (may_come && !last) return false;
  // No call after all, or one that was cut off before it had a name.
  state_ = State::kText;
  Emit(OutputPiece::Kind::kText, std::exchange(held_, ""), out);
  return false;
}

bool ToolCallReader::ReadArguments(bool last, bool whole, std::vector<OutputPiece>* out) {
  if (bare_) {
    // The last byte of the answer closes the call; it is known only at the end.
    const bool closes = last && whole && held_.ends_with(closing_);
    const size_t kept = last ? (closes ? closing_.size() : 0) : std::min<size_t>(1, held_.size());
    Emit(OutputPiece::Kind::kCallArguments, held_.substr(0, held_.size() - kept), out);
    held_.erase(0, held_.size() - kept);
    if (last) {
      held_.clear();
      Emit(OutputPiece::Kind::kCallEnd, "", out);
      state_ = State::kBetween;
    }
    return false;
  }
  const size_t end = held_.find(closing_);
  if (end != std::string::npos) {
    Emit(OutputPiece::Kind::kCallArguments, held_.substr(0, end), out);
    Emit(OutputPiece::Kind::kCallEnd, "", out);
    held_.erase(0, end + closing_.size());
    state_ = State::kBetween;
    return true;
  }
  const size_t kept = last ? 0 : EndThatBegins(held_, closing_);
  Emit(OutputPiece::Kind::kCallArguments, held_.substr(0, held_.size() - kept), out);
  held_.erase(0, held_.size() - kept);
  if (last) {
    Emit(OutputPiece::Kind::kCallEnd, "", out);
    state_ = State::kBetween;
  }
  return false;
}

}  // namespace lserve
