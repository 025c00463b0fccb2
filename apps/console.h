// Console: the program's stdout and stderr. Messages are one line each, whatever foreign text they
// quote; a full disk or a closed pipe on stdout is a Status, never a signal. Used by apps/ only.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace lserve {

// What the process returns: design 4.2, and the shell's convention for Ctrl-C.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;       // the input or the machine
inline constexpr int kExitUsage = 2;        // the command line
inline constexpr int kExitInterrupt = 130;  // 128 + SIGINT

// Print `lserve: error: ...` and return the exit status.
int ReportError(const Status& status);
int ReportUsage(std::string_view message);
// Prints `lserve: note: ...`.
void PrintNote(std::string_view message);
void PrintToStderr(std::string_view text);

bool StdoutIsTerminal();
bool StderrIsTerminal();
bool StdinIsTerminal();

// `text` without line breaks and control characters.
std::string OneLine(std::string_view text);
// `text` as a terminal may get it: an answer must not move the cursor or set the window title.
std::string WithoutControls(std::string_view text);

// Writes to stdout, unbuffered: a stream of tokens is seen as it comes. The first failure sticks.
class Output {
 public:
  Status Write(std::string_view text);
  const Status& status() const { return status_; }

 private:
  Status status_;
};

}  // namespace lserve
