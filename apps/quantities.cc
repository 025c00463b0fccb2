#include "apps/quantities.h"

#include <charconv>
#include <cmath>
#include <cstdio>

#include "base/strings.h"
#include "loader/json_fields.h"

namespace lserve {
namespace {

Status Wrong(std::string_view what, std::string_view text, std::string_view expected) {
  return Status(Code::kInvalidArgument,
                StrCat(what, ": got ", Quoted(text), ", expected ", expected));
}

std::string Range(int64_t min, int64_t max) {
  if (max == INT64_MAX || max == INT32_MAX) return StrCat("of at least ", min);
  return StrCat("from ", min, " to ", max);
}

// The factor of a binary suffix, or 0 if there is no such suffix.
double SuffixFactor(std::string_view suffix) {
  if (suffix.empty() || suffix == "B") return 1.0;
  const std::string_view rest = suffix.substr(1);
  if (!rest.empty() && rest != "i" && rest != "iB" && rest != "B") return 0.0;
  switch (suffix[0]) {
    case 'k':
    case 'K':
      return 0x1p10;
    case 'm':
    case 'M':
      return 0x1p20;
    case 'g':
    case 'G':
      return 0x1p30;
    case 't':
    case 'T':
      return 0x1p40;
    default:
      return 0.0;
  }
}

}  // namespace

Result<int64_t> ParseInteger(std::string_view text,
                             int64_t min,
                             int64_t max,
                             std::string_view what) {
  int64_t value = 0;
  const std::from_chars_result end = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end.ec != std::errc() || end.ptr != text.data() + text.size() || value < min || value > max) {
    return Wrong(what, text, StrCat("a whole number ", Range(min, max)));
  }
  return value;
}

Result<int64_t> ParseSize(std::string_view text, int64_t min, int64_t max, std::string_view what) {
  const Status wrong = Wrong(
      what, text, StrCat("a whole number ", Range(min, max), ", or one with k, M or G as in 128k"));
  int64_t whole = 0;
  const char* const last = text.data() + text.size();
  const std::from_chars_result plain = std::from_chars(text.data(), last, whole);
  if (plain.ec == std::errc() && plain.ptr == last) {
    if (whole < min || whole > max) return wrong;
    return whole;
  }
  double value = 0.0;
  const std::from_chars_result end = std::from_chars(text.data(), last, value);
  if (end.ec != std::errc()) return wrong;
  value *= SuffixFactor(std::string_view(end.ptr, static_cast<size_t>(last - end.ptr)));
  // Also false for NaN; 2^62 keeps the conversion defined.
  if (!(value >= 1.0 && value <= 0x1p62)) return wrong;
  whole = static_cast<int64_t>(std::floor(value));
  if (whole < min || whole > max) return wrong;
  return whole;
}

Result<double> ParseNumber(std::string_view text, double min, double max, std::string_view what) {
  double value = 0.0;
  const std::from_chars_result end = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool is_number = end.ec == std::errc() && end.ptr == text.data() + text.size();
  if (!is_number || !(value >= min && value <= max)) {
    return Wrong(what, text, StrCat("a number from ", min, " to ", max));
  }
  return value;
}

std::string FormatFixed(double value, int decimals) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", decimals, value);
  return text;
}

std::string FormatBytes(uint64_t bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024.0 && unit + 1 < std::size(units)) {
    value /= 1024.0;
    ++unit;
  }
  return StrCat(FormatFixed(value, unit == 0 ? 0 : 1), " ", units[unit]);
}

std::string FormatSeconds(double seconds) {
  if (seconds < 1.0) return StrCat(FormatFixed(seconds * 1e3, 0), " ms");
  if (seconds < 100.0) return StrCat(FormatFixed(seconds, 1), " s");
  const int64_t whole = std::llround(seconds);
  return StrCat(whole / 60, " min ", whole % 60, " s");
}

std::string FormatCount(int64_t count) {
  std::string digits = StrCat(count < 0 ? -count : count);
  for (size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, ",");
  return count < 0 ? "-" + digits : digits;
}

}  // namespace lserve
