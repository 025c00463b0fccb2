// What a request says about the form of its answer, in no protocol's words: a JSON Schema, tools
// that may be called. Plain data. The bodies' parsers fill it; prompts, grammars and replies read
// it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace lserve {

inline constexpr size_t kMaxTools = 128;
inline constexpr size_t kMaxToolNameBytes = 128;

struct OutputFormat {
  enum class Kind : uint8_t { kText, kJsonObject, kJsonSchema };
  Kind kind = Kind::kText;
  Json schema = {};        // with kJsonSchema
  std::string where = {};  // the schema's place in the request, for messages
};

struct Tool {
  std::string name;  // letters, digits, _, -, . only
  std::string description;
  Json parameters;  // a schema, of an object
  std::string where;
};

struct ToolOptions {
  enum class Choice : uint8_t {
    kAuto,      // the model decides
    kNone,      // no calls
    kRequired,  // at least one
  };
  std::vector<Tool> tools;  // empty: the request has none
  Choice choice = Choice::kAuto;
  std::string only = {};  // with kRequired: this one, once; empty: any
  bool parallel = true;   // several calls in one answer

  bool enabled() const { return !tools.empty() && choice != Choice::kNone; }
};

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // JSON
};

// What a step added to an answer: text, or a part of a call.
struct OutputPiece {
  enum class Kind : uint8_t { kText, kCallBegin, kCallArguments, kCallEnd };
  Kind kind = Kind::kText;
  std::string text = {};  // of kCallBegin, the tool's name
  std::string id = {};    // of kCallBegin
};

// Whether `name` may be a tool's. It stands in grammars and in headers of calls as it is.
bool IsToolName(std::string_view name);

}  // namespace lserve
