// Parses a template's tokens. What the language has and chat templates do not use (include,
// import, extends, block, recursive loops) is refused by name. Used by ChatTemplate only.
#pragma once

#include <string_view>

#include "base/status.h"
#include "tokenizer/jinja/ast.h"

namespace lserve::jinja {

Result<Template> Parse(std::string_view source, int max_depth);

}  // namespace lserve::jinja
