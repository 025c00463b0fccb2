// Tools in a request's body: what all protocols check alike. Used by the bodies' parsers only.
#pragma once

#include <string>

#include "server/body_fields.h"
#include "server/output_options.h"

namespace lserve {

// A tool as a body gives it.
struct GivenTool {
  std::string name;
  std::string description;
  const Json* parameters = nullptr;  // the schema; null: none
  std::string where;                 // "tools[0].function."
  std::string schema_field;          // "parameters"
};

// Adds it, or fails `fields`: too many, a name that is none or known, a schema of no object.
void AddTool(BodyFields& fields, const GivenTool& given, ToolOptions* out);

// A choice needs tools, and the one it names.
void CheckToolChoice(BodyFields& fields, const ToolOptions& options);

}  // namespace lserve
