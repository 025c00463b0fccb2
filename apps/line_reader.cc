#include "apps/line_reader.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "apps/interrupt.h"
#include "base/strings.h"

namespace lserve {
namespace {
constexpr size_t kMaxLineBytes = size_t{64} << 20;
}

Result<std::optional<std::string>> LineReader::Next() {
  size_t searched = 0;
  for (;;) {
    const size_t end = buffer_.find('\n', searched);
    if (end != std::string::npos || (at_end_ && !buffer_.empty())) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end == std::string::npos ? end : end + 1);
      if (!line.empty() && line.back() == '\r') line.pop_back();
      return std::optional<std::string>(std::move(line));
    }
    if (at_end_ || Interrupted()) return std::optional<std::string>();
    searched = buffer_.size();
    if (searched > kMaxLineBytes) {
      return Status(Code::kInvalidArgument,
                    StrCat("stdin: a line of more than ", kMaxLineBytes,
                           " bytes, expected one question per line; is the input a text?"));
    }
    char chunk[4096];
    const ssize_t n = read(STDIN_FILENO, chunk, sizeof(chunk));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return Status(Code::kIoError,
                    StrCat("stdin: cannot read: ", std::strerror(errno),
                           ", expected one question per line; give --question TEXT instead"));
    }
    if (n == 0) at_end_ = true;
    buffer_.append(chunk, static_cast<size_t>(n));
  }
}

}  // namespace lserve
