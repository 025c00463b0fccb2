#include "tokenizer/known_splits.h"

#include "tokenizer/unicode.h"

namespace lserve {
namespace {

enum class Kind : uint8_t { kLetter, kNumber, kSpace, kOther };

Kind KindOf(char32_t c) {
  if (IsLetter(c)) return Kind::kLetter;
  if (IsNumber(c)) return Kind::kNumber;
  return IsWhiteSpace(c) ? Kind::kSpace : Kind::kOther;
}

bool IsNewline(char c) {
  return c == '\r' || c == '\n';
}

// The end of the run of characters of `kind` from `at` on.
size_t EndOfRun(std::string_view text, size_t at, Kind kind) {
  while (at < text.size()) {
    const CodePoint c = DecodeAt(text, at);
    if (KindOf(c.value) != kind) break;
    at += c.bytes;
  }
  return at;
}

// Lower case of the letters that occur in the contractions; U+017F folds to s.
char FoldContraction(char32_t c) {
  if (c == 0x17f) return 's';
  if (c >= 'A' && c <= 'Z') return static_cast<char>(c - 'A' + 'a');
  return c < 0x80 ? static_cast<char>(c) : '\0';
}

// 's 't 're 've 'm 'll 'd: the end of the contraction at `at`, or `at` if there is none.
size_t EndOfContraction(std::string_view text, size_t at, bool any_case) {
  if (text[at] != '\'' || at + 1 >= text.size()) return at;
  const auto letter = [&](size_t i, size_t* end) {
    if (i >= text.size()) return '\0';
    const CodePoint c = DecodeAt(text, i);
    *end = i + c.bytes;
    if (any_case) return FoldContraction(c.value);
    return c.value < 0x80 ? static_cast<char>(c.value) : '\0';
  };
  size_t first_end = at;
  const char first = letter(at + 1, &first_end);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return first_end;
  size_t second_end = at;
  const char second = letter(first_end, &second_end);
  const bool two = (first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
                   (first == 'l' && second == 'l');
  return two ? second_end : at;
}

// `\s+(?!\S)|\s+` on the run of white space [at, end): all of it before the end of the text,
// otherwise all but its last character, which goes with what follows.
size_t EndOfSpaces(std::string_view text, size_t at, size_t end) {
  if (end == text.size()) return end;
  const size_t last = end - DecodeBefore(text, end).bytes;
  return last > at ? last : end;
}

size_t EndOfGpt2(std::string_view text, size_t at) {
  const size_t contraction = EndOfContraction(text, at, /*any_case=*/false);
  if (contraction > at) return contraction;
  const size_t start = text[at] == ' ' && at + 1 < text.size() ? at + 1 : at;
  const Kind kind = KindOf(DecodeAt(text, start).value);
  if (kind != Kind::kSpace) return EndOfRun(text, start, kind);
  return EndOfSpaces(text, at, EndOfRun(text, at, Kind::kSpace));
}

size_t EndOfNumber(std::string_view text, size_t at, int max_digits) {
  for (int i = 0; i < max_digits && at < text.size(); ++i) {
    const CodePoint c = DecodeAt(text, at);
    if (KindOf(c.value) != Kind::kNumber) break;
    at += c.bytes;
  }
  return at;
}

size_t EndOfLlama3(std::string_view text, size_t at, int max_digits) {
  const size_t contraction = EndOfContraction(text, at, /*any_case=*/true);
  if (contraction > at) return contraction;
  const CodePoint c = DecodeAt(text, at);
  const Kind kind = KindOf(c.value);
  if (kind == Kind::kLetter) return EndOfRun(text, at, Kind::kLetter);
  if (kind == Kind::kNumber) return EndOfNumber(text, at, max_digits);
  const size_t next = at + c.bytes;
  const Kind next_kind =
      next < text.size() ? KindOf(DecodeAt(text, next).value) : Kind::kSpace;  // end: no letter
  if (next_kind == Kind::kLetter && !IsNewline(text[at])) {
    return EndOfRun(text, next, Kind::kLetter);
  }
  if (kind == Kind::kOther || (text[at] == ' ' && next_kind == Kind::kOther)) {
    size_t end = EndOfRun(text, kind == Kind::kOther ? at : next, Kind::kOther);
    while (end < text.size() && IsNewline(text[end])) ++end;
    return end;
  }
  const size_t run_end = EndOfRun(text, at, Kind::kSpace);
  const size_t newline = text.substr(at, run_end - at).find_last_of("\r\n");
  if (newline != std::string_view::npos) return at + newline + 1;
  return EndOfSpaces(text, at, run_end);
}

}  // namespace

std::optional<KnownSplit> FindKnownSplit(std::string_view pattern) {
  if (pattern == kGpt2Pattern) return KnownSplit::kGpt2;
  if (pattern == kLlama3Pattern) return KnownSplit::kLlama3;
  if (pattern == kQwen2Pattern) return KnownSplit::kQwen2;
  return std::nullopt;
}

size_t EndOfKnownSplit(KnownSplit split, std::string_view text, size_t at) {
  switch (split) {
    case KnownSplit::kGpt2:
      return EndOfGpt2(text, at);
    case KnownSplit::kLlama3:
      return EndOfLlama3(text, at, 3);
    case KnownSplit::kQwen2:
      return EndOfLlama3(text, at, 1);
  }
  return text.size();
}

}  // namespace lserve
