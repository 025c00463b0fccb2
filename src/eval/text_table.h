// TextTable: columns of text aligned for a terminal, and numbers as its cells. Used by the reports
// of this folder.
#pragma once

#include <string>
#include <vector>

namespace lserve {

// The first row is the heading, the first column is aligned left, the others right. Ends with a
// line break; empty without rows.
std::string TextTable(const std::vector<std::vector<std::string>>& rows);

std::string Fixed(double value, int decimals);
std::string Percent(double share, int decimals = 1);  // 0.5: "50.0%"
std::string Grouped(int64_t count);                   // "131,072"

}  // namespace lserve
