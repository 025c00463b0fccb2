#include "grammar/token_trie.h"

#include <algorithm>

namespace lserve {

TokenTrie::TokenTrie(const Tokenizer& tokenizer)
    : drops_leading_space_(tokenizer.drops_leading_space()) {
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    begins_.push_back(text_.size());
    if (!tokenizer.IsSpecial(id)) text_ += tokenizer.BytesOf(id);
  }
  Build();
}

TokenTrie::TokenTrie(const std::vector<std::string>& texts) {
  for (const std::string& text : texts) {
    begins_.push_back(text_.size());
    text_ += text;
  }
  Build();
}

std::string_view TokenTrie::TextOf(int32_t token) const {
  const size_t id = static_cast<size_t>(token);
  if (token < 0 || id + 1 >= begins_.size()) return {};
  return std::string_view(text_).substr(begins_[id], begins_[id + 1] - begins_[id]);
}

void TokenTrie::Build() {
  begins_.push_back(text_.size());
  for (int32_t id = 0; static_cast<size_t>(id) < vocab_size(); ++id) {
    if (!TextOf(id).empty()) tokens_.push_back(id);
  }
  std::sort(tokens_.begin(), tokens_.end(), [&](int32_t a, int32_t b) {
    const std::string_view x = TextOf(a), y = TextOf(b);
    return x != y ? x < y : a < b;
  });
  std::vector<int32_t> open;  // the nodes of the text before, by depth
  std::string_view before;
  const auto close_to = [&](size_t depth) {
    for (; open.size() > depth; open.pop_back())
      nodes_[static_cast<size_t>(open.back())].end = static_cast<int32_t>(nodes_.size());
  };
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string_view text = TextOf(tokens_[i]);
    size_t shared = 0;
    while (shared < before.size() && shared < text.size() && before[shared] == text[shared])
      ++shared;
    close_to(shared);
    const int32_t at = static_cast<int32_t>(i);
    for (size_t d = shared; d < text.size(); ++d) {
      open.push_back(static_cast<int32_t>(nodes_.size()));
      nodes_.push_back({.byte = static_cast<uint8_t>(text[d]),
                        .depth = static_cast<int32_t>(d + 1),
                        .first_token = at,
                        .last_token = at});
    }
    nodes_[static_cast<size_t>(open.back())].last_token = at + 1;
    max_depth_ = std::max(max_depth_, static_cast<int32_t>(text.size()));
    before = text;
  }
  close_to(0);
}

}  // namespace lserve
