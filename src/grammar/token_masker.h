// TokenMasker: a grammar over a vocabulary: which tokens may follow a text. Masks are kept, so that
// a state met again costs a lookup. GrammarConstraint follows one answer with it. Used by the
// server, which makes them, and by the engine, which asks through TokenConstraint.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "grammar/grammar.h"
#include "grammar/grammar_matcher.h"
#include "grammar/token_trie.h"
#include "lserve/token_constraint.h"

namespace lserve {

// Thread safety: all methods. Requests that share a grammar share it, and what one of them found
// out serves the others.
class TokenMasker {
 public:
  TokenMasker(std::shared_ptr<const Grammar> grammar,
              std::shared_ptr<const TokenTrie> trie,
              std::vector<int32_t> end_tokens);

  // A place in one text. Made by Begin(), moved by Advance().
  struct Position {
    GrammarMatcher::StateId state = 0;
    uint64_t epoch = 0;
    std::string text = {};  // so far: how the place is found again after states were dropped
  };
  Position Begin();
  // Error: `token` may not follow.
  Status Advance(Position& position, int32_t token);
  // See TokenConstraint. `allowed` may be longer than the vocabulary: padding may never follow.
  Status Mask(Position& position, std::span<uint64_t> allowed);
  // Nothing can follow, and the text is whole.
  bool IsComplete(Position& position);
  // Finds the mask of the beginning, so that the engine's thread need not. Error: as Mask().
  Status Warm();

 private:
  using Words = std::vector<uint64_t>;  // a bit per token

  GrammarMatcher::StateId Find(Position& position);
  GrammarMatcher::StateId Follow(GrammarMatcher::StateId state, std::string_view text);
  Result<const Words*> MaskOf(GrammarMatcher::StateId state);
  void DropIfFull();

  const std::shared_ptr<const TokenTrie> trie_;
  const std::vector<int32_t> end_tokens_;
  std::mutex mutex_;
  GrammarMatcher matcher_;
  std::unordered_map<GrammarMatcher::StateId, Words> masks_;
  std::vector<GrammarMatcher::StateId> path_;  // of the walk, by depth
  uint64_t epoch_ = 0;
};

class GrammarConstraint : public TokenConstraint {
 public:
  explicit GrammarConstraint(std::shared_ptr<TokenMasker> masker)
      : masker_(std::move(masker)), position_(masker_->Begin()) {}

  Status Mask(std::span<uint64_t> allowed) override { return masker_->Mask(position_, allowed); }
  Status Accept(int32_t token) override;
  bool complete() const override { return complete_; }

 private:
  const std::shared_ptr<TokenMasker> masker_;
  TokenMasker::Position position_;
  bool complete_ = false;
};

}  // namespace lserve
