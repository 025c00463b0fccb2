// Patterns: JSON Schema's "pattern", the common part of ECMA-262's regular expressions, as a part
// of a grammar for the inside of a JSON string. What it does not know (looking around, references
// back, \b, named groups) it refuses by name. Used by SchemaCompiler.
#pragma once

#include <string_view>

#include "base/status.h"
#include "grammar/json_rules.h"

namespace lserve {

// Adds ways from `from` to `to` for the texts in which `pattern` is found: anywhere, unless ^ and $
// bind it. Error: a pattern that is wrong, too long or not supported; it says where.
Status AddPattern(std::string_view pattern,
                  GrammarBuilder* builder,
                  JsonRules* rules,
                  Grammar::StateId from,
                  Grammar::StateId to);

// The pattern of JSON Schema's "format" of that name, or "" if there is none here.
std::string_view PatternOfFormat(std::string_view format);
// "date, date-time, ..." for messages.
std::string_view KnownFormats();

}  // namespace lserve
