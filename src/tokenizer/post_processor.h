// PostProcessor: the tokens that tokenizer.json's "post_processor" puts before and after a text
// (usually one beginning-of-text token). Used by Tokenizer only.
#pragma once

#include <cstdint>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

struct PostProcessor {
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;

  // `json` is the "post_processor" member; null adds nothing.
  static Result<PostProcessor> FromJson(const Json& json);
};

}  // namespace lserve
