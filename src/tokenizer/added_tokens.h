// AddedTokens: finds the tokens that are matched in the text as they stand, before any splitting:
// turn markers, "<s>" and the like. Leftmost match first, the longest at each place. It also
// keeps them out of text that came from a user. Used by Tokenizer only.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "tokenizer/rendered_prompt.h"

namespace lserve {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool single_word = false;  // only between characters that are no word characters
  bool lstrip = false;       // swallows white space before it
  bool rstrip = false;       // swallows white space after it
  bool normalized = false;   // looked for after normalization
  bool special = false;
};

Result<AddedToken> ParseAddedToken(const Json& json, std::string_view where);

// What may be matched where.
struct MatchRules {
  bool special = true;                           // special tokens at all
  const std::vector<ByteRange>* user = nullptr;  // no added token may touch these bytes
};

// A stretch of the text: a token (id >= 0), or text to encode (id = -1).
struct Stretch {
  ByteRange range;
  int32_t id = -1;
};

class TokenMatcher {
 public:
  // `contents[i]` is what token `tokens[i]` looks like in the text (normalized or not).
  void Add(const AddedToken& token, std::string_view content);
  bool empty() const { return tokens_.empty(); }

  // Cuts `text` into stretches that cover it, none of them empty. `base`: where `text` starts in
  // the coordinates of the user ranges.
  std::vector<Stretch> Cut(std::string_view text, const MatchRules& rules, size_t base = 0) const;

 private:
  struct Node {
    std::unordered_map<char, size_t> next;
    int token = -1;  // index into tokens_ of the content that ends here
  };
  struct Found {
    size_t end = 0;
    int token = -1;
  };
  Found LongestAt(std::string_view text, size_t at, const MatchRules& rules, size_t base) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::array<bool, 256> starts_{};
};

// Whether [begin, end) shares a byte with one of `ranges` (ascending, disjoint).
bool Touches(const std::vector<ByteRange>& ranges, size_t begin, size_t end);

}  // namespace lserve
