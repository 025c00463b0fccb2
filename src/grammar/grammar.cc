#include "grammar/grammar.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"

namespace lserve {
namespace {

constexpr int kNever = 1 << 20;  // the need of a state that no text leads out of

// The bytes of a code point; their number.
int EncodeUtf8(char32_t point, std::array<uint8_t, 4>& out) {
  const auto tail = [&](int shift) {
    return static_cast<uint8_t>(0x80u | ((point >> shift) & 0x3fu));
  };
  if (point < 0x80) {
    out[0] = static_cast<uint8_t>(point);
    return 1;
  }
  if (point < 0x800) {
    out = {static_cast<uint8_t>(0xc0u | (point >> 6)), tail(0)};
    return 2;
  }
  if (point < 0x10000) {
    out = {static_cast<uint8_t>(0xe0u | (point >> 12)), tail(6), tail(0)};
    return 3;
  }
  out = {static_cast<uint8_t>(0xf0u | (point >> 18)), tail(12), tail(6), tail(0)};
  return 4;
}

}  // namespace

GrammarBuilder::StateId GrammarBuilder::NewState() {
  if (grammar_.states_.size() >= limits_.max_states) {
    full_ = true;
    return 0;
  }
  grammar_.states_.emplace_back();
  return static_cast<StateId>(grammar_.states_.size() - 1);
}

GrammarBuilder::RuleId GrammarBuilder::NewRule() {
  if (grammar_.rules_.size() >= limits_.max_rules) {
    full_ = true;
    return 0;
  }
  const StateId start = NewState();
  const StateId end = NewState();
  at(end).ends_rule = true;
  grammar_.rules_.push_back({start, end});
  return static_cast<RuleId>(grammar_.rules_.size() - 1);
}

void GrammarBuilder::AddBytes(StateId from, uint8_t low, uint8_t high, StateId to) {
  at(from).bytes.push_back({low, high, to});
}

void GrammarBuilder::AddSilent(StateId from, StateId to) {
  at(from).silent.push_back(to);
}

void GrammarBuilder::AddCall(StateId from, RuleId rule, StateId to) {
  at(from).calls.push_back({rule, to});
}

void GrammarBuilder::AddLiteral(StateId from, std::string_view text, StateId to) {
  if (text.empty()) return AddSilent(from, to);
  for (size_t i = 0; i < text.size() && !full_; ++i) {
    const StateId next = i + 1 == text.size() ? to : NewState();
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    AddBytes(from, byte, byte, next);
    from = next;
  }
}

void GrammarBuilder::AddCodePoints(StateId from, char32_t low, char32_t high, StateId to) {
  constexpr char32_t kFirstSurrogate = 0xd800, kLastSurrogate = 0xdfff;
  // Pieces whose code points have equally many bytes.
  for (const auto& [first, last] : {std::pair<char32_t, char32_t>{0, 0x7f},
                                    {0x80, 0x7ff},
                                    {0x800, kFirstSurrogate - 1},
                                    {kLastSurrogate + 1, 0xffff},
                                    {0x10000, 0x10ffff}}) {
    const char32_t a = std::max(low, first);
    const char32_t b = std::min(high, last);
    if (a <= b) AddUtf8Range(from, a, b, to);
  }
}

// Cuts the range until its numbers share a prefix of bytes and run over whole spans of the rest:
// then it is a product of byte ranges.
void GrammarBuilder::AddUtf8Range(StateId from, char32_t low, char32_t high, StateId to) {
  std::array<uint8_t, 4> first = {}, last = {};
  const int size = EncodeUtf8(low, first);
  for (int i = 1; i < size; ++i) {
    const char32_t mask = (char32_t{1} << (6 * i)) - 1;
    if ((low & ~mask) == (high & ~mask)) continue;
    if ((low & mask) != 0) {
      AddUtf8Range(from, low, low | mask, to);
      return AddUtf8Range(from, (low | mask) + 1, high, to);
    }
    if ((high & mask) != mask) {
      AddUtf8Range(from, low, (high & ~mask) - 1, to);
      return AddUtf8Range(from, high & ~mask, high, to);
    }
  }
  EncodeUtf8(high, last);
  for (int i = 0; i < size; ++i) {
    const StateId next = i + 1 == size ? to : NewState();
    AddBytes(from, first[static_cast<size_t>(i)], last[static_cast<size_t>(i)], next);
    from = next;
  }
}

// The least solution of: an end needs nothing; an edge needs what its target needs; a call needs
// one more than its rule's start, and what its target needs.
void GrammarBuilder::ComputeNeeds() {
  std::vector<Grammar::State>& states = grammar_.states_;
  // Who has to be looked at again when a state's need falls.
  std::vector<std::vector<StateId>> users(states.size());
  for (size_t i = 0; i < states.size(); ++i) {
    const StateId id = static_cast<StateId>(i);
    for (const auto& edge : states[i].bytes) users[static_cast<size_t>(edge.to)].push_back(id);
    for (const StateId to : states[i].silent) users[static_cast<size_t>(to)].push_back(id);
    for (const auto& call : states[i].calls) {
      users[static_cast<size_t>(call.to)].push_back(id);
      users[static_cast<size_t>(start(call.rule))].push_back(id);
    }
    states[i].need = kNever;
  }
  std::vector<StateId> work;
  for (const Grammar::Rule& rule : grammar_.rules_) {
    at(rule.end).need = 0;
    work.push_back(rule.end);
  }
  while (!work.empty()) {
    const StateId done = work.back();
    work.pop_back();
    for (const StateId user : users[static_cast<size_t>(done)]) {
      Grammar::State& state = at(user);
      int need = state.need;
      for (const auto& edge : state.bytes) need = std::min(need, at(edge.to).need);
      for (const StateId to : state.silent) need = std::min(need, at(to).need);
      for (const auto& call : state.calls)
        need = std::min(need, std::max(at(call.to).need, 1 + at(start(call.rule)).need));
      if (need >= state.need) continue;
      state.need = need;
      work.push_back(user);
    }
  }
}

void GrammarBuilder::ComputeClasses() {
  std::array<bool, 257> cuts = {};
  cuts[0] = true;
  for (const Grammar::State& state : grammar_.states_) {
    for (const auto& edge : state.bytes) {
      cuts[edge.low] = true;
      cuts[size_t{edge.high} + 1] = true;
    }
  }
  int current = -1;
  for (size_t byte = 0; byte < 256; ++byte) {
    if (cuts[byte]) ++current;
    grammar_.classes_[byte] = static_cast<uint8_t>(current);
  }
  grammar_.num_classes_ = current + 1;
}

Result<std::shared_ptr<const Grammar>> GrammarBuilder::Finish(RuleId root) {
  if (full_) {
    return Status(Code::kInvalidArgument, StrCat("it takes more than ", limits_.max_states,
                                                 " states or ", limits_.max_rules,
                                                 " rules, expected fewer; make it smaller, or its "
                                                 "lengths and counts shorter"));
  }
  grammar_.root_ = root;
  grammar_.max_depth_ = limits_.max_depth;
  ComputeNeeds();
  ComputeClasses();
  const int need = at(start(root)).need;
  if (need > limits_.max_depth) {
    return Status(Code::kInvalidArgument,
                  need >= kNever
                      ? StrCat("no finite text satisfies it, expected at least one; does it demand "
                               "itself, or contradict itself?")
                      : StrCat("the shortest text nests ", need, " levels deep, expected at most ",
                               limits_.max_depth, "; flatten it"));
  }
  return std::shared_ptr<const Grammar>(std::make_shared<Grammar>(std::move(grammar_)));
}

}  // namespace lserve
