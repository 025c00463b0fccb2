// What a request must be for the engine to take it: well-formed, and small enough for an empty
// cache. Used by engine.cc only.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "engine/engine_setup.h"

namespace lserve {

// Sequence::spare_pages.
int SparePages(const EngineParts& parts);
// The longest answer: the request's, cut to what the model's length leaves.
int64_t MaxTokens(const EngineParts& parts, const Request& request);
// kInvalidArgument with the first problem found.
Status CheckRequest(const EngineParts& parts,
                    const Request& request,
                    const AttentionSettings& attention);
// kOutOfMemory with what is needed, what there is and how many tokens fit.
Status CheckFits(const EngineParts& parts,
                 const Request& request,
                 const AttentionSettings& attention,
                 int64_t max_tokens);

}  // namespace lserve
