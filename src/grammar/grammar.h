// Grammar: which byte strings an answer may be, as a recursive transition network: states with byte
// edges, silent edges and calls of rules (Woods 1970). GrammarBuilder makes one, immutable once
// made. It knows no JSON and no tokens. Used by the compilers beside it and by GrammarMatcher.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace lserve {

struct GrammarLimits {
  size_t max_states = 100'000;
  size_t max_rules = 10'000;
  int max_depth = 100;  // calls that are open at once; nested JSON opens one per level
};

class Grammar {
 public:
  using StateId = int32_t;
  using RuleId = int32_t;
  struct ByteEdge {
    uint8_t low = 0;  // both included
    uint8_t high = 0;
    StateId to = 0;
  };
  struct Call {
    RuleId rule = 0;
    StateId to = 0;  // where the caller goes on
  };
  struct State {
    std::vector<ByteEdge> bytes = {};
    std::vector<StateId> silent = {};
    std::vector<Call> calls = {};
    bool ends_rule = false;
    // Calls that must be open at once, beside those already open, to reach the rule's end from
    // here. A matcher that never takes a state whose need exceeds what the depth limit leaves can
    // always go on.
    int need = 0;
  };
  struct Rule {
    StateId start = 0;
    StateId end = 0;
  };

  const State& state(StateId id) const { return states_[static_cast<size_t>(id)]; }
  const Rule& rule(RuleId id) const { return rules_[static_cast<size_t>(id)]; }
  RuleId root() const { return root_; }
  int max_depth() const { return max_depth_; }
  // Bytes that no edge tells apart share a class.
  int num_classes() const { return num_classes_; }
  int class_of(uint8_t byte) const { return classes_[byte]; }

 private:
  friend class GrammarBuilder;
  std::vector<State> states_;
  std::vector<Rule> rules_;
  RuleId root_ = 0;
  int max_depth_ = 0;
  std::array<uint8_t, 256> classes_ = {};
  int num_classes_ = 0;
};

class GrammarBuilder {
 public:
  using StateId = Grammar::StateId;
  using RuleId = Grammar::RuleId;

  explicit GrammarBuilder(const GrammarLimits& limits = {}) : limits_(limits) {}

  StateId NewState();
  RuleId NewRule();
  StateId start(RuleId rule) const { return grammar_.rule(rule).start; }
  StateId end(RuleId rule) const { return grammar_.rule(rule).end; }

  void AddBytes(StateId from, uint8_t low, uint8_t high, StateId to);
  void AddSilent(StateId from, StateId to);
  void AddCall(StateId from, RuleId rule, StateId to);
  void AddLiteral(StateId from, std::string_view text, StateId to);
  // The UTF-8 of the code points low to high, surrogates left out.
  void AddCodePoints(StateId from, char32_t low, char32_t high, StateId to);

  // Over a limit: whoever builds in a loop may stop, for Finish() fails.
  bool full() const { return full_; }
  // Error: a limit is exceeded, or the rule can not be completed by any text within max_depth.
  Result<std::shared_ptr<const Grammar>> Finish(RuleId root);

 private:
  Grammar::State& at(StateId id) { return grammar_.states_[static_cast<size_t>(id)]; }
  void AddUtf8Range(StateId from, char32_t low, char32_t high, StateId to);
  void ComputeNeeds();
  void ComputeClasses();

  GrammarLimits limits_;
  Grammar grammar_;
  bool full_ = false;
};

}  // namespace lserve
