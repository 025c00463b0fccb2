// Python's string operations that filters and methods share.
#include <utf8proc.h>

#include <algorithm>
#include <cstring>

#include "base/strings.h"
#include "tokenizer/jinja/runtime.h"
#include "tokenizer/unicode.h"

namespace lserve::jinja {

bool IsPythonSpace(char32_t c) {
  return IsWhiteSpace(c) || (c >= 0x1c && c <= 0x1f);
}

// std::string::find tries every place afresh, which a text of one letter makes quadratic; glibc's
// memmem is the linear two-way search.
size_t FindText(std::string_view text, std::string_view needle, size_t from) {
  if (from > text.size() || needle.size() > text.size() - from) return std::string_view::npos;
  const void* found = memmem(text.data() + from, text.size() - from, needle.data(), needle.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

size_t FindLastText(std::string_view text, std::string_view needle) {
  const std::string text_back(text.rbegin(), text.rend());
  const std::string needle_back(needle.rbegin(), needle.rend());
  const size_t at = FindText(text_back, needle_back);
  return at == std::string_view::npos ? at : text.size() - needle.size() - at;
}

Result<Str> Strip(Runtime& runtime, const Str& s, const Str* characters, Side side) {
  LS_TRY(runtime.Scan(s.text.size()));
  std::vector<char32_t> dropped;  // sorted
  if (characters != nullptr) {
    LS_TRY(runtime.Scan(characters->text.size()));
    for (size_t at = 0; at < characters->text.size();) {
      const CodePoint c = DecodeAt(characters->text, at);
      dropped.push_back(c.value);
      at += c.bytes;
    }
    std::sort(dropped.begin(), dropped.end());
  }
  const auto drops = [&](const CodePoint& c) {
    if (characters == nullptr) return IsPythonSpace(c.value);
    return std::binary_search(dropped.begin(), dropped.end(), c.value);
  };
  size_t begin = 0;
  size_t end = s.text.size();
  while (side != Side::kRight && begin < end) {
    const CodePoint c = DecodeAt(s.text, begin);
    if (!drops(c)) break;
    begin += c.bytes;
  }
  while (side != Side::kLeft && end > begin) {
    const CodePoint c = DecodeBefore(s.text, end);
    if (!drops(c)) break;
    end -= c.bytes;
  }
  return s.Sub(begin, end);
}

std::vector<Str> SplitLines(const Str& s) {
  const auto ends_line = [](char32_t c) {
    return (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
  };
  std::vector<Str> lines;
  size_t begin = 0;
  for (size_t at = 0; at < s.text.size();) {
    const CodePoint c = DecodeAt(s.text, at);
    if (ends_line(c.value)) {
      lines.push_back(s.Sub(begin, at));
      if (c.value == '\r' && at + 1 < s.text.size() && s.text[at + 1] == '\n') ++at;
      begin = at + c.bytes;
    }
    at += c.bytes;
  }
  if (begin < s.text.size()) lines.push_back(s.Sub(begin, s.text.size()));
  return lines;
}

// What replaces a text of the user counts as the user's, too.
Result<Str> ReplaceText(
    Runtime& runtime, const Str& s, const Str& from, const Str& to, int64_t count) {
  LS_TRY(runtime.Scan(s.text.size() + from.text.size()));
  Str out;
  size_t done = 0;
  const auto copy = [&](size_t end) { out.Append(s.Sub(done, end)); };
  const auto insert = [&](bool user) {
    const size_t begin = out.text.size();
    out.Append(to);
    if (user) out.Mark(begin, out.text.size());
    return out.text.size() <= runtime.limits().max_output_bytes ? Status()
                                                                : runtime.Charge(out.text.size());
  };
  if (from.text.empty()) {
    // Python puts `to` before every character and at the end.
    while (count != 0) {
      LS_TRY(insert(false));
      --count;
      if (done == s.text.size()) break;
      const size_t end = done + DecodeAt(s.text, done).bytes;
      copy(end);
      done = end;
    }
    copy(s.text.size());
    return out;
  }
  for (size_t at; count != 0 && (at = FindText(s.text, from.text, done)) != std::string::npos;
       --count) {
    copy(at);
    done = at + from.text.size();
    LS_TRY(insert(!s.Sub(at, done).user.empty()));
  }
  copy(s.text.size());
  return out;
}

// One character at a time: of Unicode's special casings only the sharp s is known here.
Result<Str> ChangeCase(Runtime& runtime, const Str& s, Case to) {
  LS_TRY(runtime.Scan(s.text.size()));
  Str out;
  bool start = true;
  bool same_length = true;
  for (size_t at = 0; at < s.text.size();) {
    const CodePoint c = DecodeAt(s.text, at);
    at += c.bytes;
    const auto point = static_cast<utf8proc_int32_t>(c.value);
    const bool upper = to == Case::kUpper || (to != Case::kLower && start);
    const size_t before = out.text.size();
    if (upper && c.value == 0xdf) {
      out.text += to == Case::kUpper || to == Case::kTitleWords ? "SS" : "Ss";
    } else {
      AppendUtf8(static_cast<char32_t>(upper ? utf8proc_toupper(point) : utf8proc_tolower(point)),
                 out.text);
    }
    same_length = same_length && out.text.size() - before == c.bytes;
    if (to == Case::kCapitalize) {
      start = false;
    } else if (to == Case::kTitle) {
      start = !IsLetter(c.value);
    } else if (to == Case::kTitleWords) {
      start = c.value == '-' || c.value == '(' || c.value == '{' || c.value == '[' ||
              c.value == '<' || IsPythonSpace(c.value);
    }
  }
  if (same_length) {
    out.user = s.user;
  } else if (!s.user.empty()) {
    out.MarkAll();
  }
  return out;
}

}  // namespace lserve::jinja
