// RenderedPrompt: the text of a chat prompt with the byte ranges that came from the user. The
// chat template writes it, the tokenizer reads it: inside a user range no special token is
// matched, so nobody can write a turn marker into a message.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace lserve {

struct ByteRange {
  size_t begin = 0;
  size_t end = 0;  // one past the last byte
  bool operator==(const ByteRange&) const = default;
};

struct RenderedPrompt {
  std::string text;
  std::vector<ByteRange> user_ranges;  // ascending, disjoint, not empty
};

}  // namespace lserve
