// TokenTrie: the texts of a vocabulary's tokens as a prefix tree in one array, so that one walk
// finds every token that a grammar allows. Immutable; made once per tokenizer. Used by TokenMasker.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace lserve {

class TokenTrie {
 public:
  // Tokens without text, special ones among them, are in no node.
  explicit TokenTrie(const Tokenizer& tokenizer);
  // `texts` by token id.
  explicit TokenTrie(const std::vector<std::string>& texts);

  // In preorder: the children of a node follow it, up to `end`.
  struct Node {
    uint8_t byte = 0;
    int32_t depth = 0;  // of its text, in bytes; at least 1
    int32_t end = 0;    // the first node that is not below this one
    int32_t first_token = 0;
    int32_t last_token = 0;  // of tokens(): those whose text ends here
  };
  const std::vector<Node>& nodes() const { return nodes_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  int32_t max_depth() const { return max_depth_; }
  std::string_view TextOf(int32_t token) const;
  size_t vocab_size() const { return begins_.size() - 1; }
  // A space at the very beginning of an answer does not show.
  bool drops_leading_space() const { return drops_leading_space_; }

 private:
  void Build();

  std::string text_;            // of all tokens
  std::vector<size_t> begins_;  // [vocab + 1], into text_
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;
  int32_t max_depth_ = 0;
  bool drops_leading_space_ = false;
};

}  // namespace lserve
