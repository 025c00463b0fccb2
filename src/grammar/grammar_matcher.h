// GrammarMatcher: follows a Grammar byte by byte. It determinises on the way: what is possible
// after a text is one state, made when first reached and then found in a table. Not thread-safe.
// Used by TokenMasker.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "grammar/grammar.h"

namespace lserve {

class GrammarMatcher {
 public:
  using StateId = int32_t;
  static constexpr StateId kDead = -1;  // no text leads on from here

  explicit GrammarMatcher(std::shared_ptr<const Grammar> grammar);

  StateId start() const { return 0; }
  // kDead, too, once the work is used up: see exhausted().
  StateId Next(StateId state, uint8_t byte) {
    const StateId known = table_[static_cast<size_t>(state) * classes_ + ClassOf(byte)];
    return known != kUnknown ? known : Make(state, byte);
  }
  // The text so far is whole.
  bool Accepts(StateId state) const { return entries_[static_cast<size_t>(state)].accepts; }
  // A longer text is possible.
  bool CanContinue(StateId state) const {
    return !entries_[static_cast<size_t>(state)].places.empty();
  }

  // Of the states made so far; at most kMaxBytes, and then exhausted() as well.
  size_t bytes() const {
    return (table_.size() + frames_.size() * 8 + num_places_ * 2) * sizeof(int32_t);
  }
  static constexpr size_t kMaxBytes = size_t{64} << 20;
  // Forgets all states but the first. The caller's ids are void.
  void Reset();
  // How many places may still be visited to make states. A grammar can be so ambiguous that one
  // token costs seconds; with this, it costs an error.
  void Allow(int64_t work) { work_left_ = work; }
  bool exhausted() const { return work_left_ < 0; }

 private:
  static constexpr StateId kUnknown = -2;
  // A state of the grammar, and the calls that are open there.
  struct Place {
    Grammar::StateId state = 0;
    int32_t stack = 0;
    bool operator==(const Place&) const = default;
    bool operator<(const Place& other) const {
      return state != other.state ? state < other.state : stack < other.stack;
    }
  };
  // A stack is a list that shares its tail with others; 0 is empty.
  struct Frame {
    Grammar::StateId to = 0;
    int32_t below = 0;
    int depth = 0;
  };
  struct Entry {
    std::vector<Place> places;  // ascending; only those with byte edges
    bool accepts = false;
  };

  size_t ClassOf(uint8_t byte) const { return static_cast<size_t>(grammar_->class_of(byte)); }
  StateId Make(StateId from, uint8_t byte);
  StateId Close(std::vector<Place> places);
  int32_t Push(int32_t stack, Grammar::StateId to);

  const std::shared_ptr<const Grammar> grammar_;
  const size_t classes_;
  std::vector<Entry> entries_;
  std::vector<StateId> table_;  // [entries, classes]
  std::unordered_multimap<uint64_t, StateId> by_hash_;
  std::vector<Frame> frames_;
  std::unordered_map<uint64_t, int32_t> frame_ids_;  // (to, below) -> frame
  size_t num_places_ = 0;                            // of all entries
  int64_t work_left_ = 0;
};

}  // namespace lserve
