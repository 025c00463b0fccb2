#include "grammar/grammar_matcher.h"

#include <algorithm>
#include <unordered_set>

namespace lserve {
namespace {

constexpr int64_t kWorkOfStart = 300'000;

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15u + (hash << 6) + (hash >> 2);
  return hash * 0xff51afd7ed558ccdu;
}

uint64_t Pair(int32_t a, int32_t b) {
  return (uint64_t{static_cast<uint32_t>(a)} << 32) | static_cast<uint32_t>(b);
}

}  // namespace

GrammarMatcher::GrammarMatcher(std::shared_ptr<const Grammar> grammar)
    : grammar_(std::move(grammar)), classes_(static_cast<size_t>(grammar_->num_classes())) {
  Reset();
}

void GrammarMatcher::Reset() {
  entries_.clear();
  table_.clear();
  by_hash_.clear();
  frame_ids_.clear();
  frames_.assign(1, {});
  num_places_ = 0;
  work_left_ = kWorkOfStart;
  const Grammar::StateId start = grammar_->rule(grammar_->root()).start;
  if (Close({{start, 0}}) == kDead) {
    // Nothing follows the start, or finding out was too much work: a state without places.
    entries_.assign(1, {});
    table_.assign(classes_, kDead);
  }
}

int32_t GrammarMatcher::Push(int32_t stack, Grammar::StateId to) {
  const auto [found, is_new] =
      frame_ids_.emplace(Pair(to, stack), static_cast<int32_t>(frames_.size()));
  if (is_new) frames_.push_back({to, stack, frames_[static_cast<size_t>(stack)].depth + 1});
  return found->second;
}

// Follows silent edges, calls and returns from `places`; the state of all places with byte edges.
GrammarMatcher::StateId GrammarMatcher::Close(std::vector<Place> work) {
  Entry entry;
  std::unordered_set<uint64_t> seen;
  for (const Place& place : work) seen.insert(Pair(place.state, place.stack));
  const auto add = [&](Grammar::StateId state, int32_t stack) {
    const int depth = frames_[static_cast<size_t>(stack)].depth;
    // A place that can not be left within the depth would be a dead end later.
    if (depth + grammar_->state(state).need > grammar_->max_depth()) return;
    if (seen.insert(Pair(state, stack)).second) work.push_back({state, stack});
  };
  while (!work.empty()) {
    if (--work_left_ < 0) return kDead;
    const Place place = work.back();
    work.pop_back();
    const Grammar::State& state = grammar_->state(place.state);
    if (!state.bytes.empty()) entry.places.push_back(place);
    for (const Grammar::StateId to : state.silent) add(to, place.stack);
    for (const Grammar::Call& call : state.calls) {
      const int depth = frames_[static_cast<size_t>(place.stack)].depth;
      if (depth + grammar_->state(call.to).need > grammar_->max_depth()) continue;
      add(grammar_->rule(call.rule).start, Push(place.stack, call.to));
    }
    if (!state.ends_rule) continue;
    if (place.stack == 0) {
      entry.accepts = true;
    } else {
      const Frame frame = frames_[static_cast<size_t>(place.stack)];
      add(frame.to, frame.below);
    }
  }
  if (entry.places.empty() && !entry.accepts) return kDead;
  std::sort(entry.places.begin(), entry.places.end());

  uint64_t hash = entry.accepts ? 1 : 0;
  for (const Place& place : entry.places) hash = Mix(hash, Pair(place.state, place.stack));
  const auto [first, last] = by_hash_.equal_range(hash);
  for (auto it = first; it != last; ++it) {
    const Entry& known = entries_[static_cast<size_t>(it->second)];
    if (known.accepts == entry.accepts && known.places == entry.places) return it->second;
  }
  if (bytes() > kMaxBytes) {
    work_left_ = -1;
    return kDead;
  }
  const StateId id = static_cast<StateId>(entries_.size());
  num_places_ += entry.places.size();
  by_hash_.emplace(hash, id);
  entries_.push_back(std::move(entry));
  table_.resize(table_.size() + classes_, kUnknown);
  return id;
}

GrammarMatcher::StateId GrammarMatcher::Make(StateId from, uint8_t byte) {
  std::vector<Place> next;
  const std::vector<Place>& places = entries_[static_cast<size_t>(from)].places;
  // Looking at a place is much less than closing one.
  work_left_ -= 1 + static_cast<int64_t>(places.size() / 16);
  if (work_left_ < 0) return kDead;
  for (const Place& place : places) {
    const int depth = frames_[static_cast<size_t>(place.stack)].depth;
    for (const Grammar::ByteEdge& edge : grammar_->state(place.state).bytes) {
      if (byte < edge.low || byte > edge.high) continue;
      if (depth + grammar_->state(edge.to).need > grammar_->max_depth()) continue;
      next.push_back({edge.to, place.stack});
    }
  }
  std::sort(next.begin(), next.end());
  next.erase(std::unique(next.begin(), next.end()), next.end());
  const StateId to = next.empty() ? kDead : Close(std::move(next));
  if (exhausted()) return kDead;  // not known, only not found out
  table_[static_cast<size_t>(from) * classes_ + ClassOf(byte)] = to;
  return to;
}

}  // namespace lserve
