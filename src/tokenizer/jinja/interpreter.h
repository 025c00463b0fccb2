// Runs a parsed template. Used by ChatTemplate only.
#pragma once

#include "base/status.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/jinja/ast.h"

namespace lserve::jinja {

// `variables` are the global names.
Result<RenderedPrompt> Run(const Template& source,
                           const Dict& variables,
                           const ChatTemplateLimits& limits,
                           std::optional<ChatDate> date);

}  // namespace lserve::jinja
