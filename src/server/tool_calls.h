// How models write calls of tools: the styles, how a prompt tells about tools, the grammar of a
// call, and how calls are read back from an answer's text. Used by the service and Generation.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "server/output_options.h"

namespace lserve {

enum class ToolStyle : uint8_t {
  // <tool_call>\n{"name": "f", "arguments": {...}}\n</tool_call>, as Hermes and Qwen.
  kTagged,
  // The whole answer is {"name": "f", "parameters": {...}}, as Llama-3.1 and later.
  kBareJson,
  // The template knows no tools (or writes calls in a way that is not known here): they are
  // described in the system message, and calls are written as kTagged.
  kDescribed,
};

// The style of a model with this chat template.
ToolStyle ToolStyleOf(std::string_view template_source);

// What the template gets as `tools`: OpenAI's descriptions; null with kDescribed or without tools.
Json ToolsForTemplate(ToolStyle style, const ToolOptions& options);
// The messages as the template gets them: with kDescribed, calls and results become text.
// `messages`: of {"role", "content"} and perhaps "tool_calls", "tool_call_id".
Json MessagesForTemplate(ToolStyle style, const Json& messages, const ToolOptions& options);

// What comes before and after the arguments of a call.
std::string CallOpening(ToolStyle style, std::string_view tool);
std::string CallClosing(ToolStyle style);
inline constexpr std::string_view kCallTag = "<tool_call>";

// Reads one answer, piece by piece. What may be the beginning of a call is held back.
class ToolCallReader {
 public:
  // Without tools everything is text.
  ToolCallReader(ToolStyle style, const ToolOptions& options);

  // `last`: nothing follows. `whole`: the answer was not cut off.
  std::vector<OutputPiece> Push(std::string_view text, bool last, bool whole);

 private:
  enum class State : uint8_t { kText, kOpening, kArguments, kBetween };

  void Emit(OutputPiece::Kind kind, std::string text, std::vector<OutputPiece>* out);
  bool ReadText(bool last, std::vector<OutputPiece>* out);
  bool ReadOpening(bool last, std::vector<OutputPiece>* out);
  bool ReadArguments(bool last, bool whole, std::vector<OutputPiece>* out);

  const bool bare_;
  std::vector<std::string> names_;
  std::vector<std::string> openings_;  // of each name
  std::string closing_;
  State state_ = State::kText;
  std::string held_;
};

}  // namespace lserve
