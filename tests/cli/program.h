// Program: starts a program with its own stdin, stdout and stderr and collects what it says; and a
// scratch directory with a copy of the bundled model to break. For the tests of the command line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace lserve {

struct ProgramResult {
  int exit_status = -1;  // -1: ended by a signal
  int signal = 0;
  uint64_t peak_bytes = 0;  // most memory that it had at a time (VmHWM)
  std::string out;
  std::string err;
};

struct ProgramInput {
  std::string stdin_text;
  std::string stdout_path;  // if set, stdout goes there instead of ProgramResult::out
  // Closes the reading end of stdout after this many bytes; 0: never.
  size_t close_stdout_after = 0;
  // Sends SIGINT once stderr or stdout has this text; empty: never.
  std::string interrupt_at;
};

ProgramResult RunProgram(const std::vector<std::string>& command, const ProgramInput& input = {});

// A directory that is removed again.
class ScratchDir {
 public:
  ScratchDir();
  ~ScratchDir();
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;

  // The path of `name` in it.
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  // Writes a file and returns its path.
  std::string File(const std::string& name, const std::string& content) const;

 private:
  std::filesystem::path path_;
};

std::string ReadFile(const std::string& path);
size_t CountLines(const std::string& text);

}  // namespace lserve
