// JsonRules: the parts of JSON (RFC 8259) as rules of a grammar under construction. What they write
// is compact: one space may follow a comma or a colon, nothing else is optional, so that no model
// can fill an answer with white space. Used by SchemaCompiler and pattern.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "grammar/grammar.h"

namespace lserve {

class JsonRules {
 public:
  using StateId = Grammar::StateId;
  using RuleId = Grammar::RuleId;

  explicit JsonRules(GrammarBuilder* builder) : builder_(*builder) {}

  // Made when first asked for.
  RuleId Value();   // anything
  RuleId Object();  // of anything
  RuleId Array();
  RuleId String();
  RuleId Character();  // one character of a string, as it is or escaped

  // Further ways from one state to another.
  void AddNull(StateId from, StateId to) { builder_.AddLiteral(from, "null", to); }
  void AddBool(StateId from, StateId to);
  // At most 15 digits, which a double holds exactly; exponents of at most two.
  void AddNumber(StateId from, StateId to);
  void AddInteger(StateId from, StateId to);
  // Whole numbers from `low` to `high`, both included.
  void AddIntegers(StateId from, int64_t low, int64_t high, StateId to);
  // Numbers from `low` to `high` with up to 15 digits after the point.
  void AddNumbers(StateId from, int64_t low, int64_t high, StateId to);
  void AddCharacter(StateId from, StateId to);
  // Code points low to high inside a string: those that JSON escapes are escaped.
  void AddStringPoints(StateId from, char32_t low, char32_t high, StateId to);
  // A member name in its quotes that is none of `names`, written without escapes.
  void AddOtherName(StateId from, std::span<const std::string> names, StateId to);
  // ":" or ",", and perhaps a space.
  void AddSeparator(StateId from, char separator, StateId to);

  static constexpr int64_t kLargestInteger = 999'999'999'999'999;

 private:
  void AddDigits(StateId from, int least, int most, StateId to);
  void AddMagnitudes(StateId from, uint64_t low, uint64_t high, StateId to);
  void AddSameLength(StateId from, std::string_view low, std::string_view high, StateId to);
  void AddFraction(StateId from, StateId to);
  // `open` item (`,` item)* `close`, or nothing between them.
  void AddList(RuleId rule, char open, RuleId item, char close);

  GrammarBuilder& builder_;
  std::optional<RuleId> value_, object_, array_, string_, character_;
};

}  // namespace lserve
