#include "apps/token_file.h"

#include <charconv>

#include "base/strings.h"
#include "loader/json_fields.h"

namespace lserve {

Result<std::vector<int32_t>> ParseTokens(std::string_view text,
                                         int64_t vocab_size,
                                         const std::string& where) {
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  std::vector<int32_t> ids;
  int64_t line = 1;
  size_t at = 0;
  while (at < text.size()) {
    if (kSpace.find(text[at]) != std::string_view::npos) {
      line += text[at] == '\n' ? 1 : 0;
      ++at;
      continue;
    }
    const size_t end = std::min(text.find_first_of(kSpace, at), text.size());
    const std::string_view word = text.substr(at, end - at);
    int32_t id = -1;
    const std::from_chars_result parsed =
        std::from_chars(word.data(), word.data() + word.size(), id);
    if (parsed.ec != std::errc() || parsed.ptr != word.data() + word.size() || id < 0 ||
        id >= vocab_size) {
      return Status(Code::kInvalidArgument,
                    StrCat(where, ": line ", line, ": token ", ids.size() + 1, " is ", Quoted(word),
                           ", expected a whole number from 0 to ", vocab_size - 1,
                           "; token ids are decimal, separated by white space"));
    }
    ids.push_back(id);
    at = end;
  }
  if (ids.empty()) {
    return Status(Code::kInvalidArgument,
                  StrCat(where,
                         ": holds no token ids, expected at least one; token ids are "
                         "decimal, separated by white space"));
  }
  return ids;
}

}  // namespace lserve
