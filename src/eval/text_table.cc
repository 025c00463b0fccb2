#include "eval/text_table.h"

#include <algorithm>
#include <charconv>

#include "base/strings.h"
#include "tokenizer/unicode.h"

namespace lserve {

std::string TextTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const std::vector<std::string>& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], CountCodePoints(row[i]));
    }
  }
  std::string text;
  for (const std::vector<std::string>& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - CountCodePoints(row[i]), ' ');
      if (i > 0) text += "  ";
      text += i == 0 ? row[i] + padding : padding + row[i];
    }
    while (text.ends_with(' ')) text.pop_back();
    text += "\n";
  }
  return text;
}

std::string Fixed(double value, int decimals) {
  char digits[400];
  const std::to_chars_result end =
      std::to_chars(digits, digits + sizeof(digits), value, std::chars_format::fixed, decimals);
  return {digits, end.ptr};
}

std::string Percent(double share, int decimals) {
  return Fixed(share * 100.0, decimals) + "%";
}

std::string Grouped(int64_t count) {
  std::string digits = StrCat(count);
  for (size_t at = digits.size(); at > 3 + (count < 0 ? 1u : 0u);) {
    at -= 3;
    digits.insert(at, ",");
  }
  return digits;
}

}  // namespace lserve
