#include "apps/console.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/strings.h"

namespace lserve {
namespace {

// Returns 0 or the errno.
int WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    text.remove_prefix(static_cast<size_t>(n));
  }
  return 0;
}

}  // namespace

void PrintToStderr(std::string_view text) {
  WriteAll(STDERR_FILENO, text);  // there is nowhere left to say that this failed
}

int ReportError(const Status& status) {
  PrintToStderr(StrCat("lserve: error: ", OneLine(status.message()), "\n"));
  return kExitFailed;
}

int ReportUsage(std::string_view message) {
  PrintToStderr(StrCat("lserve: error: ", OneLine(message), "\n"));
  return kExitUsage;
}

void PrintNote(std::string_view message) {
  PrintToStderr(StrCat("lserve: note: ", OneLine(message), "\n"));
}

bool StdoutIsTerminal() {
  return isatty(STDOUT_FILENO) == 1;
}
bool StderrIsTerminal() {
  return isatty(STDERR_FILENO) == 1;
}
bool StdinIsTerminal() {
  return isatty(STDIN_FILENO) == 1;
}

std::string OneLine(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
    out.push_back(control ? ' ' : c);
  }
  return out;
}

std::string WithoutControls(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
    if (control && c != '\n' && c != '\t') {
      out += "\xef\xbf\xbd";  // U+FFFD
    } else {
      out.push_back(c);
    }
  }
  return out;
}

Status Output::Write(std::string_view text) {
  if (!status_.ok()) return status_;
  const int error = WriteAll(STDOUT_FILENO, text);
  if (error == EPIPE) {
    status_ = Status(Code::kIoError,
                     "stdout: the reader closed the pipe before the output ended; "
                     "read to the end, or write to a file");
  } else if (error != 0) {
    status_ = Status(Code::kIoError, StrCat("stdout: cannot write: ", std::strerror(error),
                                            "; free some disk space or write somewhere else"));
  }
  return status_;
}

}  // namespace lserve
