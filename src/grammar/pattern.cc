#include "grammar/pattern.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/strings.h"

namespace lserve {
namespace {

constexpr size_t kMaxBytes = 4096;
constexpr int kMaxDepth = 32;
constexpr int kMaxRepeat = 1000;
constexpr int kUnbounded = -1;

using Range = std::pair<char32_t, char32_t>;
using Ranges = std::vector<Range>;

struct Node {
  enum class Kind : uint8_t { kSet, kSequence, kChoice, kRepeat };
  Kind kind = Kind::kSequence;
  Ranges set = {};
  std::vector<Node> parts = {};
  int least = 0;
  int most = 0;
};

Ranges Sorted(Ranges ranges) {
  std::sort(ranges.begin(), ranges.end());
  Ranges out;
  for (const Range& range : ranges) {
    if (!out.empty() && range.first <= out.back().second + 1) {
      out.back().second = std::max(out.back().second, range.second);
    } else {
      out.push_back(range);
    }
  }
  return out;
}

Ranges Complement(const Ranges& ranges) {
  Ranges out;
  char32_t next = 0;
  for (const auto& [low, high] : Sorted(ranges)) {
    if (low > next) out.emplace_back(next, low - 1);
    next = high + 1;
  }
  if (next <= 0x10ffff) out.emplace_back(next, 0x10ffff);
  return out;
}

const Ranges& Digits() {
  static const Ranges ranges = {{'0', '9'}};
  return ranges;
}
const Ranges& Words() {
  static const Ranges ranges = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
  return ranges;
}
const Ranges& Spaces() {
  static const Ranges ranges = {
      {'\t', '\r'},     {' ', ' '},       {0xa0, 0xa0},     {0x1680, 0x1680}, {0x2000, 0x200a},
      {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}, {0xfeff, 0xfeff}};
  return ranges;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<Node> Parse() {
    if (text_.size() > kMaxBytes) {
      return Wrong(StrCat("has ", text_.size(), " bytes"), StrCat("at most ", kMaxBytes));
    }
    Node choice = LS_TRY(Choice(0));
    if (!done()) return Wrong(StrCat("has a ) at ", at_), "a ( before it");
    return choice;
  }

 private:
  bool done() const { return at_ >= text_.size(); }
  char peek() const { return done() ? '\0' : text_[at_]; }
  bool Take(std::string_view what) {
    if (!text_.substr(at_).starts_with(what)) return false;
    at_ += what.size();
    return true;
  }
  Status Wrong(const std::string& what, const std::string& expected) const {
    return Status(Code::kInvalidArgument, StrCat(what, ", expected ", expected));
  }
  Status Unsupported(std::string_view what) const {
    return Status(Code::kUnsupported,
                  StrCat("has ", what, " at ", at_,
                         ", expected letters, classes, groups, |, *, +, ?, {m,n}, ^ and $ only"));
  }

  char32_t TakePoint() {
    // JSON strings are UTF-8 that was checked.
    const uint8_t lead = static_cast<uint8_t>(text_[at_++]);
    if (lead < 0x80) return lead;
    const int tail = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    char32_t point = lead & (0x3fu >> tail);
    for (int i = 0; i < tail && !done(); ++i)
      point = (point << 6) | (static_cast<uint8_t>(text_[at_++]) & 0x3fu);
    return std::min<char32_t>(point, 0x10ffff);
  }

  Result<Node> Choice(int depth) {
    if (depth > kMaxDepth)
      return Wrong(StrCat("nests deeper than ", kMaxDepth, " groups"), "fewer");
    Node choice{.kind = Node::Kind::kChoice};
    do choice.parts.push_back(LS_TRY(Sequence(depth)));
    while (Take("|"));
    return choice;
  }

  static Node AnyText() {
    Node any{.kind = Node::Kind::kSet, .set = {{0, 0x10ffff}}};
    return {.kind = Node::Kind::kRepeat, .parts = {any}, .least = 0, .most = kUnbounded};
  }

  Result<Node> Sequence(int depth) {
    Node sequence;
    // Only a whole alternative can be bound: inside groups there is no beginning or end.
    if (depth == 0 && !Take("^")) sequence.parts.push_back(AnyText());
    bool bound = depth > 0;
    while (!done() && peek() != '|' && peek() != ')') {
      if (depth == 0 && peek() == '$' && (at_ + 1 == text_.size() || text_[at_ + 1] == '|')) {
        ++at_;
        bound = true;
        break;
      }
      Node atom = LS_TRY(Atom(depth));
      sequence.parts.push_back(LS_TRY(Repeated(std::move(atom))));
    }
    if (!bound) sequence.parts.push_back(AnyText());
    return sequence;
  }

  Result<Node> Atom(int depth) {
    if (peek() == '^' || peek() == '$') return Unsupported(StrCat("an inner ", peek()));
    if (peek() == '*' || peek() == '+' || peek() == '?')
      return Wrong(StrCat("has a ", peek(), " at ", at_), "something to repeat before it");
    if (Take("(")) {
      if (!Take("?:") && peek() == '?') return Unsupported("a (? group");
      Node group = LS_TRY(Choice(depth + 1));
      if (!Take(")")) return Wrong("has an open (", "a ) at its end");
      return group;
    }
    Node set{.kind = Node::Kind::kSet};
    if (Take("[")) {
      set.set = LS_TRY(Class());
    } else if (Take(".")) {
      set.set = Complement({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}});
    } else if (Take("\\")) {
      set.set = LS_TRY(Escape());
    } else {
      const char32_t point = TakePoint();
      set.set = {{point, point}};
    }
    return set;
  }

  Result<Ranges> Escape() {
    if (done()) return Wrong("ends in a backslash", "a character after it");
    const char c = text_[at_];
    if (static_cast<uint8_t>(c) >= 0x80) {
      const char32_t point = TakePoint();
      return Ranges{{point, point}};
    }
    ++at_;
    const auto one = [](char32_t point) { return Ranges{{point, point}}; };
    switch (c) {
      case 'd':
        return Digits();
      case 'D':
        return Complement(Digits());
      case 'w':
        return Words();
      case 'W':
        return Complement(Words());
      case 's':
        return Spaces();
      case 'S':
        return Complement(Spaces());
      case 'n':
        return one('\n');
      case 'r':
        return one('\r');
      case 't':
        return one('\t');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case 'x':
      case 'u': {
        const size_t count = c == 'x' ? 2 : 4;
        char32_t point = 0;
        for (size_t i = 0; i < count; ++i) {
          const size_t digit =
              done()
                  ? std::string_view::npos
                  : std::string_view("0123456789abcdef").find(static_cast<char>(text_[at_] | 0x20));
          if (digit == std::string_view::npos)
            return Wrong(StrCat("has \\", c, " at ", at_), StrCat(count, " hexadecimal digits"));
          point = point * 16 + static_cast<char32_t>(digit);
          ++at_;
        }
        if (point >= 0xd800 && point <= 0xdfff) return Unsupported("half of a surrogate pair");
        return one(point);
      }
      default:
        break;
    }
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (is_letter || (c >= '0' && c <= '9')) return Unsupported(StrCat("\\", c));
    return one(static_cast<char32_t>(c));
  }

  Result<Ranges> Class() {
    const bool negated = Take("^");
    Ranges all;
    while (peek() != ']') {
      if (done()) return Wrong("has an open [", "a ] at its end");
      Ranges part = LS_TRY(ClassAtom());
      const bool is_range = peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']';
      if (is_range) {
        ++at_;
        const Ranges last = LS_TRY(ClassAtom());
        const bool are_points = part.size() == 1 && part[0].first == part[0].second &&
                                last.size() == 1 && last[0].first == last[0].second &&
                                part[0].first <= last[0].first;
        if (!are_points) return Wrong(StrCat("has a range at ", at_), "two characters in order");
        part[0].second = last[0].first;
      }
      all.insert(all.end(), part.begin(), part.end());
    }
    ++at_;
    return negated ? Complement(all) : Sorted(std::move(all));
  }
  Result<Ranges> ClassAtom() {
    if (Take("\\")) {
      if (Take("b")) return Ranges{{'\b', '\b'}};
      if (Take("-")) return Ranges{{'-', '-'}};
      return Escape();
    }
    const char32_t point = TakePoint();
    return Ranges{{point, point}};
  }

  std::optional<int> Number() {
    int value = 0;
    const size_t begin = at_;
    for (; !done() && peek() >= '0' && peek() <= '9' && at_ - begin < 6; ++at_)
      value = value * 10 + (peek() - '0');
    return at_ == begin ? std::nullopt : std::optional<int>(value);
  }

  Result<Node> Repeated(Node atom) {
    int least = 1, most = 1;
    if (Take("*")) {
      least = 0;
      most = kUnbounded;
    } else if (Take("+")) {
      most = kUnbounded;
    } else if (Take("?")) {
      least = 0;
    } else if (Take("{")) {
      const std::optional<int> first = Number();
      std::optional<int> last = first;
      if (Take(",")) last = peek() == '}' ? std::optional<int>(kUnbounded) : Number();
      const bool good = first && last && (*last == kUnbounded || *first <= *last);
      if (!good || !Take("}") || *first > kMaxRepeat || *last > kMaxRepeat) {
        return Wrong(StrCat("has a { at ", at_),
                     StrCat("{m}, {m,} or {m,n} of at most ", kMaxRepeat));
      }
      least = *first;
      most = *last;
    } else {
      return atom;
    }
    Take("?");  // lazy: the same texts
    if (peek() == '*' || peek() == '+' || peek() == '?' || peek() == '{')
      return Wrong(StrCat("has a ", peek(), " at ", at_), "one repetition per item");
    Node repeat{.kind = Node::Kind::kRepeat, .least = least, .most = most};
    repeat.parts.push_back(std::move(atom));
    return repeat;
  }

  std::string_view text_;
  size_t at_ = 0;
};

void Emit(const Node& node,
          GrammarBuilder& builder,
          JsonRules& rules,
          Grammar::StateId from,
          Grammar::StateId to) {
  if (builder.full()) return;
  switch (node.kind) {
    case Node::Kind::kSet:
      for (const auto& [low, high] : node.set) rules.AddStringPoints(from, low, high, to);
      return;
    case Node::Kind::kSequence:
      for (const Node& part : node.parts) {
        const Grammar::StateId next = builder.NewState();
        Emit(part, builder, rules, from, next);
        from = next;
      }
      return builder.AddSilent(from, to);
    case Node::Kind::kChoice:
      for (const Node& part : node.parts) Emit(part, builder, rules, from, to);
      return;
    case Node::Kind::kRepeat: {
      const Node& part = node.parts[0];
      const int copies = node.most == kUnbounded ? node.least : node.most;
      for (int i = 0; i < copies && !builder.full(); ++i) {
        if (i >= node.least) builder.AddSilent(from, to);
        const Grammar::StateId next = builder.NewState();
        Emit(part, builder, rules, from, next);
        from = next;
      }
      if (node.most == kUnbounded) {
        // A state of its own: what loops here must not loop in the caller's states.
        const Grammar::StateId loop = builder.NewState();
        builder.AddSilent(from, loop);
        Emit(part, builder, rules, loop, loop);
        from = loop;
      }
      return builder.AddSilent(from, to);
    }
  }
}

// Days as the calendar has them, 29 February in leap years only. The macros are local to this
// table.
#define LS_DATE                                                                             \
  "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|" \
  "02-(0[1-9]|1[0-9]|2[0-8]))|([0-9]{2}(0[48]|[2468][048]|[13579][26])|"                    \
  "([02468][048]|[13579][26])00)-02-29)"
#define LS_TIME \
  "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
#define LS_BYTE "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
constexpr std::pair<std::string_view, std::string_view> kFormats[] = {
    {"date", "^" LS_DATE "$"},
    {"time", "^" LS_TIME "$"},
    {"date-time", "^" LS_DATE "T" LS_TIME "$"},
    {"uuid", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
    {"email",
     "^[A-Za-z0-9_%+-]+(\\.[A-Za-z0-9_%+-]+)*@"
     "([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\\.)+[A-Za-z]{2,24}$"},
    {"ipv4", "^(" LS_BYTE "\\.){3}" LS_BYTE "$"},
};
#undef LS_DATE
#undef LS_TIME
#undef LS_BYTE

}  // namespace

Status AddPattern(std::string_view pattern,
                  GrammarBuilder* builder,
                  JsonRules* rules,
                  Grammar::StateId from,
                  Grammar::StateId to) {
  const Node node = LS_TRY(Parser(pattern).Parse());
  Emit(node, *builder, *rules, from, to);
  return Status();
}

std::string_view PatternOfFormat(std::string_view format) {
  for (const auto& [name, pattern] : kFormats) {
    if (name == format) return pattern;
  }
  return "";
}

std::string_view KnownFormats() {
  return "date, time, date-time, uuid, email or ipv4";
}

}  // namespace lserve
