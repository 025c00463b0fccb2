// Token files: ids as decimal numbers separated by white space. Strict, and bounded by the
// vocabulary. Used by `lserve run --tokens` and `lserve tokenize --decode`.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace lserve {

// Ids in [0, vocab_size); at least one. `where` begins every message; an error names the number of
// the id and its line.
Result<std::vector<int32_t>> ParseTokens(std::string_view text,
                                         int64_t vocab_size,
                                         const std::string& where);

}  // namespace lserve
