#include "grammar/token_masker.h"

#include <algorithm>
#include <limits>

#include "base/strings.h"

namespace lserve {
namespace {

// Some tenths of a second of making states: a grammar that needs more for one token is refused.
constexpr int64_t kWorkPerMask = 1'000'000;
// States and masks beyond these are dropped and found again when needed. With a vocabulary of 128K,
// the masks are 8 MB.
constexpr size_t kMaxStateBytes = size_t{8} << 20;
constexpr size_t kMaxMasks = 512;

Status TooAmbiguous() {
  return Status(Code::kInvalidArgument,
                "the output format allows too many readings of the same text to be followed, "
                "expected fewer; make the alternatives of anyOf and pattern differ early");
}

}  // namespace

TokenMasker::TokenMasker(std::shared_ptr<const Grammar> grammar,
                         std::shared_ptr<const TokenTrie> trie,
                         std::vector<int32_t> end_tokens)
    : trie_(std::move(trie)),
      end_tokens_(std::move(end_tokens)),
      matcher_(std::move(grammar)),
      path_(static_cast<size_t>(trie_->max_depth()) + 1) {}

TokenMasker::Position TokenMasker::Begin() {
  const std::lock_guard lock(mutex_);
  return {.state = matcher_.start(), .epoch = epoch_};
}

GrammarMatcher::StateId TokenMasker::Follow(GrammarMatcher::StateId state, std::string_view text) {
  for (const char c : text) {
    state = matcher_.Next(state, static_cast<uint8_t>(c));
    if (state == GrammarMatcher::kDead) break;
  }
  return state;
}

GrammarMatcher::StateId TokenMasker::Find(Position& position) {
  if (position.epoch == epoch_) return position.state;
  // Following a text costs no more than making it did.
  matcher_.Allow(std::numeric_limits<int64_t>::max());
  position.state = Follow(matcher_.start(), position.text);
  position.epoch = epoch_;
  return position.state;
}

void TokenMasker::DropIfFull() {
  if (masks_.size() >= kMaxMasks) masks_.clear();
  if (matcher_.bytes() < kMaxStateBytes) return;
  matcher_.Reset();
  masks_.clear();
  ++epoch_;
}

Status TokenMasker::Advance(Position& position, int32_t token) {
  const std::lock_guard lock(mutex_);
  const GrammarMatcher::StateId state = Find(position);
  const std::string_view text = trie_->TextOf(token);
  matcher_.Allow(kWorkPerMask);
  const GrammarMatcher::StateId next = text.empty() ? GrammarMatcher::kDead : Follow(state, text);
  if (matcher_.exhausted()) return TooAmbiguous();
  if (next == GrammarMatcher::kDead) {
    return Status(
        Code::kInvalidArgument,
        StrCat("token ", token, " was drawn, expected one that the output format allows"));
  }
  position.state = next;
  position.text += text;
  return Status();
}

Result<const TokenMasker::Words*> TokenMasker::MaskOf(GrammarMatcher::StateId state) {
  const auto known = masks_.find(state);
  if (known != masks_.end()) return &known->second;
  Words words((trie_->vocab_size() + 63) / 64);
  const auto allow = [&](int32_t token) {
    words[static_cast<size_t>(token) / 64] |= uint64_t{1} << (static_cast<size_t>(token) % 64);
  };
  matcher_.Allow(kWorkPerMask);
  path_[0] = state;
  const std::vector<TokenTrie::Node>& nodes = trie_->nodes();
  for (size_t i = 0; i < nodes.size();) {
    const TokenTrie::Node& node = nodes[i];
    const size_t depth = static_cast<size_t>(node.depth);
    const GrammarMatcher::StateId next = matcher_.Next(path_[depth - 1], node.byte);
    if (next == GrammarMatcher::kDead) {
      if (matcher_.exhausted()) return TooAmbiguous();
      i = static_cast<size_t>(node.end);
      continue;
    }
    path_[depth] = next;
    for (int32_t k = node.first_token; k < node.last_token; ++k)
      allow(trie_->tokens()[static_cast<size_t>(k)]);
    ++i;
  }
  for (const int32_t token : end_tokens_) {
    if (token < 0 || static_cast<size_t>(token) >= trie_->vocab_size()) continue;
    // Even one that has a text would end the answer.
    words[static_cast<size_t>(token) / 64] &= ~(uint64_t{1} << (static_cast<size_t>(token) % 64));
    if (matcher_.Accepts(state)) allow(token);
  }
  if (std::all_of(words.begin(), words.end(), [](uint64_t word) { return word == 0; })) {
    return Status(Code::kInvalidArgument,
                  "no token of the vocabulary may come next, expected at least one; does the "
                  "tokenizer lack a token for some byte?");
  }
  return &masks_.emplace(state, std::move(words)).first->second;
}

Status TokenMasker::Mask(Position& position, std::span<uint64_t> allowed) {
  const std::lock_guard lock(mutex_);
  DropIfFull();
  const Words* words = LS_TRY(MaskOf(Find(position)));
  for (size_t i = 0; i < allowed.size(); ++i) allowed[i] &= i < words->size() ? (*words)[i] : 0;
  return Status();
}

bool TokenMasker::IsComplete(Position& position) {
  const std::lock_guard lock(mutex_);
  const GrammarMatcher::StateId state = Find(position);
  return matcher_.Accepts(state) && !matcher_.CanContinue(state);
}

Status TokenMasker::Warm() {
  const std::lock_guard lock(mutex_);
  if (matcher_.exhausted()) return TooAmbiguous();  // already at the start
  LS_TRY(MaskOf(matcher_.start()));
  return Status();
}

Status GrammarConstraint::Accept(int32_t token) {
  LS_TRY(masker_->Advance(position_, token));
  complete_ = masker_->IsComplete(position_);
  return Status();
}

}  // namespace lserve
