#include "tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace lserve {
namespace {

unsigned char ByteAt(std::string_view s, size_t i) {
  return static_cast<unsigned char>(s[i]);
}

// What may follow a lead byte: how long the sequence is and the range of its second byte, which
// excludes overlong forms, surrogates and values beyond U+10FFFF. (The Unicode Standard, table
// 3-7.)
struct Lead {
  size_t length = 0;  // 0: no lead byte
  unsigned char low = 0x80;
  unsigned char high = 0xbf;
};

Lead LeadOf(unsigned char c) {
  if (c < 0x80) return {1};
  if (c < 0xc2) return {0};
  if (c < 0xe0) return {2};
  if (c < 0xf0) {
    return {3, static_cast<unsigned char>(c == 0xe0 ? 0xa0 : 0x80),
            static_cast<unsigned char>(c == 0xed ? 0x9f : 0xbf)};
  }
  if (c < 0xf5) {
    return {4, static_cast<unsigned char>(c == 0xf0 ? 0x90 : 0x80),
            static_cast<unsigned char>(c == 0xf4 ? 0x8f : 0xbf)};
  }
  return {0};
}

utf8proc_category_t CategoryOf(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

// Letters and numbers of Unicode 15.1 and 16, which utf8proc 2.8 does not know yet and the
// tokenizers of today do. A newer utf8proc makes the table superfluous, not wrong.
struct PointRange {
  char32_t first;
  char32_t last;
};
constexpr PointRange kNewLetters[] = {
    {0x1c89, 0x1c8a},   {0xa7cb, 0xa7cd},   {0xa7da, 0xa7dc},   {0x105c0, 0x105f3},
    {0x10d4a, 0x10d65}, {0x10d6f, 0x10d85}, {0x10ec2, 0x10ec4}, {0x11380, 0x11389},
    {0x1138b, 0x1138b}, {0x1138e, 0x1138e}, {0x11390, 0x113b5}, {0x113b7, 0x113b7},
    {0x113d1, 0x113d1}, {0x113d3, 0x113d3}, {0x11bc0, 0x11be0}, {0x13460, 0x143fa},
    {0x16100, 0x1611d}, {0x16d40, 0x16d6c}, {0x18cff, 0x18cff}, {0x1e5d0, 0x1e5ed},
    {0x1e5f0, 0x1e5f0}, {0x2ebf0, 0x2ee5d}};
constexpr PointRange kNewNumbers[] = {{0x10d40, 0x10d49}, {0x116d0, 0x116e3}, {0x11bf0, 0x11bf9},
                                      {0x16130, 0x16139}, {0x16d70, 0x16d79}, {0x1ccf0, 0x1ccf9},
                                      {0x1e5f1, 0x1e5fa}};

template <size_t n>
bool IsIn(const PointRange (&ranges)[n], char32_t c) {
  return std::any_of(ranges, ranges + n,
                     [c](const PointRange& r) { return c >= r.first && c <= r.last; });
}

bool IsUnassigned(utf8proc_category_t category) {
  return category == UTF8PROC_CATEGORY_CN;
}

bool AllAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

utf8proc_option_t DecomposeOptions(NormalForm form) {
  const bool compatibility = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
                                        (compatibility ? UTF8PROC_COMPAT : 0));
}

// Sorts every run of combining marks by its class, keeping the order of equals. utf8proc's own
// reordering swaps neighbours, which is quadratic on a long run of marks.
void OrderMarks(std::vector<utf8proc_int32_t>& points) {
  const auto combining_class = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  for (size_t i = 0; i < points.size();) {
    if (combining_class(points[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < points.size() && combining_class(points[end]) != 0) ++end;
    std::stable_sort(points.begin() + static_cast<ptrdiff_t>(i),
                     points.begin() + static_cast<ptrdiff_t>(end),
                     [&](auto a, auto b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
}

}  // namespace

Utf8Step NextUtf8(std::string_view bytes) {
  const Lead lead = LeadOf(ByteAt(bytes, 0));
  if (lead.length == 0) return {1, false};
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == bytes.size()) return {0, false};
    const unsigned char c = ByteAt(bytes, i);
    const bool fits = i == 1 ? c >= lead.low && c <= lead.high : c >= 0x80 && c <= 0xbf;
    if (!fits) return {i, false};
  }
  return {lead.length, true};
}

size_t FindInvalidUtf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    if (ByteAt(text, i) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Step step = NextUtf8(text.substr(i));
    if (!step.valid) return i;
    i += step.bytes;
  }
  return text.size();
}

CodePoint DecodeAt(std::string_view text, size_t at) {
  const unsigned char c = ByteAt(text, at);
  if (c < 0x80) return {c, 1};
  const size_t length = LeadOf(c).length;
  LS_DCHECK(length >= 2 && at + length <= text.size());
  char32_t value = c & (0xffu >> (length + 1));
  for (size_t i = 1; i < length; ++i) value = (value << 6) | (ByteAt(text, at + i) & 0x3fu);
  return {value, length};
}

CodePoint DecodeBefore(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (ByteAt(text, at) & 0xc0u) == 0x80u) --at;
  return DecodeAt(text, at);
}

void AppendUtf8(char32_t point, std::string& out) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (point < 0x80) {
    put(point);
  } else if (point < 0x800) {
    put(0xc0u | (point >> 6));
    put(0x80u | (point & 0x3fu));
  } else if (point < 0x10000) {
    put(0xe0u | (point >> 12));
    put(0x80u | ((point >> 6) & 0x3fu));
    put(0x80u | (point & 0x3fu));
  } else {
    put(0xf0u | (point >> 18));
    put(0x80u | ((point >> 12) & 0x3fu));
    put(0x80u | ((point >> 6) & 0x3fu));
    put(0x80u | (point & 0x3fu));
  }
}

size_t CountCodePoints(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u;
  }));
}

bool IsLetter(char32_t c) {
  if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  const utf8proc_category_t category = CategoryOf(c);
  if (IsUnassigned(category)) return IsIn(kNewLetters, c);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool IsNumber(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  const utf8proc_category_t category = CategoryOf(c);
  if (IsUnassigned(category)) return IsIn(kNewNumbers, c);
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool IsWhiteSpace(char32_t c) {
  if (c <= 0x20) return c == 0x20 || (c >= 0x09 && c <= 0x0d);
  return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
         c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool IsWordCharacter(char32_t c) {
  if (IsLetter(c)) return true;
  const utf8proc_category_t category = CategoryOf(c);
  return (category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ND) ||
         category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_PC || c == 0x200c ||
         c == 0x200d;
}

std::string Normalize(std::string_view text, NormalForm form) {
  if (AllAscii(text)) return std::string(text);
  const utf8proc_option_t options = DecomposeOptions(form);
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = DecodeAt(text, i);
    i += c.bytes;
    // The longest decomposition in Unicode has 18 characters (U+FDFA).
    utf8proc_int32_t parts[32];
    int boundary_class = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.value),
                                                           parts, 32, options, &boundary_class);
    LS_CHECK(count >= 0 && count <= 32);
    points.insert(points.end(), parts, parts + count);
  }
  OrderMarks(points);
  utf8proc_ssize_t count = static_cast<utf8proc_ssize_t>(points.size());
  if (form == NormalForm::kNfc || form == NormalForm::kNfkc) {
    count = utf8proc_normalize_utf32(
        points.data(), count, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    LS_CHECK(count >= 0);
  }
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    AppendUtf8(static_cast<char32_t>(points[static_cast<size_t>(i)]), out);
  }
  return out;
}

}  // namespace lserve
