#include "grammar/json_rules.h"

#include <algorithm>
#include <map>

#include "base/strings.h"

namespace lserve {
namespace {

constexpr int kMostDigits = 15;

}  // namespace

void JsonRules::AddSeparator(StateId from, char separator, StateId to) {
  const StateId after = builder_.NewState();
  builder_.AddLiteral(from, {&separator, 1}, after);
  builder_.AddSilent(after, to);
  builder_.AddLiteral(after, " ", to);
}

void JsonRules::AddBool(StateId from, StateId to) {
  builder_.AddLiteral(from, "true", to);
  builder_.AddLiteral(from, "false", to);
}

void JsonRules::AddDigits(StateId from, int least, int most, StateId to) {
  for (int i = 0; i < most; ++i) {
    if (i >= least) builder_.AddSilent(from, to);
    const StateId next = builder_.NewState();
    builder_.AddBytes(from, '0', '9', next);
    from = next;
  }
  builder_.AddSilent(from, to);
}

void JsonRules::AddFraction(StateId from, StateId to) {
  const StateId point = builder_.NewState();
  builder_.AddLiteral(from, ".", point);
  AddDigits(point, 1, kMostDigits, to);
}

void JsonRules::AddInteger(StateId from, StateId to) {
  AddIntegers(from, -kLargestInteger, kLargestInteger, to);
}

void JsonRules::AddNumber(StateId from, StateId to) {
  const StateId digits = builder_.NewState();
  const StateId whole = builder_.NewState();
  const StateId mantissa = builder_.NewState();
  const StateId exponent = builder_.NewState();
  const StateId power = builder_.NewState();
  builder_.AddSilent(from, digits);
  builder_.AddLiteral(from, "-", digits);
  AddMagnitudes(digits, 0, kLargestInteger, whole);
  builder_.AddSilent(whole, mantissa);
  AddFraction(whole, mantissa);
  builder_.AddSilent(mantissa, to);
  builder_.AddLiteral(mantissa, "e", exponent);
  builder_.AddLiteral(mantissa, "E", exponent);
  builder_.AddSilent(exponent, power);
  builder_.AddLiteral(exponent, "-", power);
  builder_.AddLiteral(exponent, "+", power);
  AddDigits(power, 1, 2, to);
}

// Numbers of equally many digits: the first digit is the lower bound's, the upper bound's, or
// between them, and then the rest is free.
void JsonRules::AddSameLength(StateId from,
                              std::string_view low,
                              std::string_view high,
                              StateId to) {
  if (low.empty()) return builder_.AddSilent(from, to);
  const uint8_t first = static_cast<uint8_t>(low[0]), last = static_cast<uint8_t>(high[0]);
  const int rest = static_cast<int>(low.size()) - 1;
  if (first == last) {
    const StateId next = builder_.NewState();
    builder_.AddBytes(from, first, first, next);
    return AddSameLength(next, low.substr(1), high.substr(1), to);
  }
  const std::string zeros(static_cast<size_t>(rest), '0'), nines(static_cast<size_t>(rest), '9');
  const bool low_is_free = low.substr(1) == zeros, high_is_free = high.substr(1) == nines;
  const uint8_t from_digit = static_cast<uint8_t>(low_is_free ? first : first + 1);
  const uint8_t to_digit = static_cast<uint8_t>(high_is_free ? last : last - 1);
  if (from_digit <= to_digit) {
    const StateId next = builder_.NewState();
    builder_.AddBytes(from, from_digit, to_digit, next);
    AddDigits(next, rest, rest, to);
  }
  if (!low_is_free) {
    const StateId next = builder_.NewState();
    builder_.AddBytes(from, first, first, next);
    AddSameLength(next, low.substr(1), nines, to);
  }
  if (!high_is_free) {
    const StateId next = builder_.NewState();
    builder_.AddBytes(from, last, last, next);
    AddSameLength(next, zeros, high.substr(1), to);
  }
}

void JsonRules::AddMagnitudes(StateId from, uint64_t low, uint64_t high, StateId to) {
  const std::string last = StrCat(high);
  for (std::string first = StrCat(low); first.size() <= last.size();) {
    const std::string nines(first.size(), '9');
    AddSameLength(from, first, first.size() == last.size() ? last : nines, to);
    first = "1" + std::string(first.size(), '0');
  }
}

void JsonRules::AddIntegers(StateId from, int64_t low, int64_t high, StateId to) {
  if (low > high) return;
  const auto magnitude = [](int64_t x) {
    return x < 0 ? 0 - static_cast<uint64_t>(x) : static_cast<uint64_t>(x);
  };
  if (high >= 0) AddMagnitudes(from, magnitude(std::max<int64_t>(low, 0)), magnitude(high), to);
  if (low >= 0) return;
  const StateId minus = builder_.NewState();
  builder_.AddLiteral(from, "-", minus);
  AddMagnitudes(minus, high < 0 ? magnitude(high) : 1, magnitude(low), to);
}

void JsonRules::AddNumbers(StateId from, int64_t low, int64_t high, StateId to) {
  // From `a` to `b`, both at least 0: everything that starts with a whole number below b, and b.
  const auto add = [&](StateId begin, uint64_t a, uint64_t b) {
    builder_.AddLiteral(begin, StrCat(b), to);
    if (a == b) return;
    const StateId whole = builder_.NewState();
    AddMagnitudes(begin, a, b - 1, whole);
    builder_.AddSilent(whole, to);
    AddFraction(whole, to);
  };
  if (low > high) return;
  if (high >= 0)
    add(from, static_cast<uint64_t>(std::max<int64_t>(low, 0)), static_cast<uint64_t>(high));
  if (low >= 0) return;
  const StateId minus = builder_.NewState();
  builder_.AddLiteral(from, "-", minus);
  add(minus, high < 0 ? static_cast<uint64_t>(-high) : 0, static_cast<uint64_t>(-low));
}

void JsonRules::AddStringPoints(StateId from, char32_t low, char32_t high, StateId to) {
  constexpr std::string_view kShort = "\b\f\n\r\t\"\\";
  constexpr std::string_view kLetters = "bfnrt\"\\";
  // Escaped ones first; what is left is written as it is.
  for (char32_t c = low; c <= std::min<char32_t>(high, '\\'); ++c) {
    const size_t at = kShort.find(static_cast<char>(c));
    if (at != std::string_view::npos) {
      builder_.AddLiteral(from, std::string{'\\', kLetters[at]}, to);
    } else if (c < 0x20) {
      constexpr char kHex[] = "0123456789abcdef";
      builder_.AddLiteral(from, StrCat("\\u00", kHex[c >> 4], kHex[c & 15u]), to);
    }
  }
  for (const auto& [first, last] :
       {std::pair<char32_t, char32_t>{0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, 0x10ffff}}) {
    const char32_t a = std::max(low, first), b = std::min(high, last);
    if (a <= b) builder_.AddCodePoints(from, a, b, to);
  }
}

void JsonRules::AddCharacter(StateId from, StateId to) {
  builder_.AddBytes(from, 0x20, '"' - 1, to);
  builder_.AddBytes(from, '"' + 1, '\\' - 1, to);
  builder_.AddBytes(from, '\\' + 1, 0x7f, to);
  builder_.AddCodePoints(from, 0x80, 0x10ffff, to);
  const StateId escape = builder_.NewState();
  builder_.AddLiteral(from, "\\", escape);
  for (const char c : std::string_view("\"\\/bfnrt")) builder_.AddLiteral(escape, {&c, 1}, to);
  const auto hex = [&](StateId at, std::string_view digits, StateId next) {
    for (const char c : digits) builder_.AddLiteral(at, {&c, 1}, next);
  };
  constexpr std::string_view kHex = "0123456789abcdefABCDEF";
  const auto hexes = [&](StateId at, int count, StateId next) {
    for (int i = 0; i < count; ++i) {
      const StateId after = i + 1 == count ? next : builder_.NewState();
      hex(at, kHex, after);
      at = after;
    }
  };
  // A surrogate stands in a pair only: half of one is no character.
  const StateId u = builder_.NewState(), d = builder_.NewState(), three = builder_.NewState();
  builder_.AddLiteral(escape, "u", u);
  hex(u, "0123456789abcefABCEF", three);
  hexes(three, 3, to);
  hex(u, "dD", d);
  const StateId two = builder_.NewState(), high = builder_.NewState(), low = builder_.NewState();
  hex(d, "01234567", two);
  hexes(two, 2, to);
  hex(d, "89abAB", high);
  const StateId middle = builder_.NewState(), second = builder_.NewState();
  hexes(high, 2, middle);
  builder_.AddLiteral(middle, "\\u", second);
  const StateId second_d = builder_.NewState();
  hex(second, "dD", second_d);
  hex(second_d, "cdefCDEF", low);
  hexes(low, 2, to);
}

JsonRules::RuleId JsonRules::Character() {
  if (character_) return *character_;
  character_ = builder_.NewRule();
  AddCharacter(builder_.start(*character_), builder_.end(*character_));
  return *character_;
}

JsonRules::RuleId JsonRules::String() {
  if (string_) return *string_;
  string_ = builder_.NewRule();
  // Not by Character(): a text of one state loops there, with one mask for all its length.
  const StateId inside = builder_.NewState();
  builder_.AddLiteral(builder_.start(*string_), "\"", inside);
  AddCharacter(inside, inside);
  builder_.AddLiteral(inside, "\"", builder_.end(*string_));
  return *string_;
}

void JsonRules::AddList(RuleId rule, char open, RuleId item, char close) {
  const StateId begin = builder_.NewState(), next = builder_.NewState(),
                after = builder_.NewState();
  builder_.AddLiteral(builder_.start(rule), {&open, 1}, begin);
  builder_.AddLiteral(begin, {&close, 1}, builder_.end(rule));
  builder_.AddSilent(begin, next);
  builder_.AddCall(next, item, after);
  AddSeparator(after, ',', next);
  builder_.AddLiteral(after, {&close, 1}, builder_.end(rule));
}

JsonRules::RuleId JsonRules::Object() {
  if (object_) return *object_;
  object_ = builder_.NewRule();
  const RuleId member = builder_.NewRule();
  const StateId name = builder_.NewState(), value = builder_.NewState();
  builder_.AddCall(builder_.start(member), String(), name);
  AddSeparator(name, ':', value);
  builder_.AddCall(value, Value(), builder_.end(member));
  AddList(*object_, '{', member, '}');
  return *object_;
}

JsonRules::RuleId JsonRules::Array() {
  if (array_) return *array_;
  array_ = builder_.NewRule();
  AddList(*array_, '[', Value(), ']');
  return *array_;
}

JsonRules::RuleId JsonRules::Value() {
  if (value_) return *value_;
  value_ = builder_.NewRule();
  const StateId start = builder_.start(*value_), end = builder_.end(*value_);
  AddNull(start, end);
  AddBool(start, end);
  AddNumber(start, end);
  builder_.AddCall(start, String(), end);
  builder_.AddCall(start, Object(), end);
  builder_.AddCall(start, Array(), end);
  return *value_;
}

void JsonRules::AddOtherName(StateId from, std::span<const std::string> names, StateId to) {
  // A tree of the names: a text leaves it at a byte that no name has there.
  struct Node {
    std::map<uint8_t, size_t> children = {};
    bool is_name = false;
  };
  std::vector<Node> nodes(1);
  for (const std::string& name : names) {
    size_t at = 0;
    for (const char c : name) {
      const auto [child, is_new] =
          nodes[at].children.emplace(static_cast<uint8_t>(c), nodes.size());
      at = child->second;
      if (is_new) nodes.emplace_back();
    }
    nodes[at].is_name = true;
  }
  const StateId free = builder_.NewState();  // differs from every name
  const auto add_plain = [&](StateId state, char32_t low, char32_t high) {
    for (const auto& [first, last] : {std::pair<char32_t, char32_t>{0x20, '"' - 1},
                                      {'"' + 1, '\\' - 1},
                                      {'\\' + 1, 0x10ffff}}) {
      const char32_t a = std::max(low, first), b = std::min(high, last);
      if (a <= b) builder_.AddCodePoints(state, a, b, free);
    }
  };
  add_plain(free, 0, 0x10ffff);
  builder_.AddLiteral(free, "\"", to);
  std::vector<StateId> states;
  for (size_t i = 0; i < nodes.size(); ++i) states.push_back(builder_.NewState());
  builder_.AddLiteral(from, "\"", states[0]);
  // Inside a character of several bytes only the names' own bytes follow; all names are UTF-8, so
  // a node is inside one exactly if its children are continuation bytes.
  for (size_t i = 0; i < nodes.size() && !builder_.full(); ++i) {
    const Node& node = nodes[i];
    bool inside = false, has_wide = false;
    for (const auto& [byte, child] : node.children) {
      inside = inside || (byte & 0xc0u) == 0x80;
      has_wide = has_wide || byte >= 0x80;
      if (byte >= 0x20 && byte != '"' && byte != '\\')
        builder_.AddBytes(states[i], byte, byte, states[child]);
    }
    if (inside) continue;
    if (!node.is_name) builder_.AddLiteral(states[i], "\"", to);
    char32_t next = 0;
    for (const auto& [byte, child] : node.children) {
      if (byte >= 0x80) break;
      if (next < byte) add_plain(states[i], next, byte - 1u);
      next = byte + 1u;
    }
    // Beyond ASCII all or nothing: where a name goes on with such a character, no other one may.
    const char32_t last = has_wide ? 0x7f : 0x10ffff;
    if (next <= last) add_plain(states[i], next, last);
  }
}

}  // namespace lserve
