// Quantities: numbers as people write them on a command line ("4096", "128k", "1.5GiB") and as
// they like to read them. Strict: what is not a number as a whole is an error. Used by apps/ only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "base/strings.h"

namespace lserve {

// A decimal integer in [min, max]; `what` begins the message ("--threads").
Result<int64_t> ParseInteger(std::string_view text,
                             int64_t min,
                             int64_t max,
                             std::string_view what);

// The same with a binary suffix: k, M, G, T, each also as Ki or KiB (k = 1024: "128k" is 131072),
// and with a fraction before it.
Result<int64_t> ParseSize(std::string_view text, int64_t min, int64_t max, std::string_view what);

// A finite number in [min, max].
Result<double> ParseNumber(std::string_view text, double min, double max, std::string_view what);

// "a,b": calls `add` with each part. An empty part or list is an error.
template <class Add>
Status ForEachValue(const std::string& list, const char* flag, Add add) {
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    const std::string part = list.substr(begin, end - begin);
    if (part.empty()) {
      return Status(Code::kInvalidArgument,
                    StrCat(flag, ": got \"", list,
                           "\", expected values separated by commas; remove the empty one"));
    }
    LS_TRY(add(part));
    begin = end + 1;
  }
  return Status();
}

std::string FormatFixed(double value, int decimals);
std::string FormatBytes(uint64_t bytes);    // "12.7 MiB"
std::string FormatSeconds(double seconds);  // "850 ms", "12.3 s", "4 min 10 s"
std::string FormatCount(int64_t count);     // "131,072"

}  // namespace lserve
