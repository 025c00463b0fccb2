#include "tests/cli/program.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "base/check.h"

namespace lserve {
namespace {

struct Pipe {
  int read_end = -1;
  int write_end = -1;
  Pipe() {
    int fds[2];
    LS_CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    read_end = fds[0];
    write_end = fds[1];
  }
};

void Close(int& fd) {
  if (fd >= 0) close(fd);
  fd = -1;
}

// In the child: never returns.
[[noreturn]] void Exec(const std::vector<std::string>& command,
                       const Pipe& in,
                       const Pipe& out,
                       const Pipe& err,
                       const std::string& stdout_path) {
  dup2(in.read_end, STDIN_FILENO);
  const int file = stdout_path.empty() ? -1 : open(stdout_path.c_str(), O_WRONLY | O_CREAT, 0644);
  dup2(file >= 0 ? file : out.write_end, STDOUT_FILENO);
  dup2(err.write_end, STDERR_FILENO);
  std::vector<char*> arguments;
  for (const std::string& argument : command) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  execv(arguments[0], arguments.data());
  _exit(127);
}

// Reads what is there; closes `fd` at its end.
void Drain(int& fd, std::string& text) {
  char chunk[65536];
  const ssize_t n = read(fd, chunk, sizeof(chunk));
  if (n > 0) {
    text.append(chunk, static_cast<size_t>(n));
  } else if (n == 0 || errno != EINTR) {
    Close(fd);
  }
}

}  // namespace

ProgramResult RunProgram(const std::vector<std::string>& command, const ProgramInput& input) {
  signal(SIGPIPE, SIG_IGN);
  Pipe in, out, err;
  const pid_t child = fork();
  LS_CHECK_GE(child, 0);
  if (child == 0) {
    signal(SIGPIPE, SIG_DFL);
    Exec(command, in, out, err, input.stdout_path);
  }
  Close(in.read_end);
  Close(out.write_end);
  Close(err.write_end);

  ProgramResult result;
  size_t sent = 0;
  bool interrupted = false;
  while (out.read_end >= 0 || err.read_end >= 0) {
    if (in.write_end >= 0 && sent == input.stdin_text.size()) Close(in.write_end);
    pollfd fds[3] = {
        {out.read_end, POLLIN, 0}, {err.read_end, POLLIN, 0}, {in.write_end, POLLOUT, 0}};
    poll(fds, 3, -1);
    if (fds[0].revents != 0) Drain(out.read_end, result.out);
    if (fds[1].revents != 0) Drain(err.read_end, result.err);
    if (fds[2].revents != 0) {
      const ssize_t n = write(in.write_end, input.stdin_text.data() + sent,
                              std::min<size_t>(input.stdin_text.size() - sent, 4096));
      if (n > 0) sent += static_cast<size_t>(n);
      if (n < 0) Close(in.write_end);
    }
    if (input.close_stdout_after > 0 && result.out.size() >= input.close_stdout_after) {
      Close(out.read_end);
    }
    if (!interrupted && !input.interrupt_at.empty() &&
        (result.out + result.err).find(input.interrupt_at) != std::string::npos) {
      kill(child, SIGINT);
      interrupted = true;
    }
  }
  Close(in.write_end);
  int status = 0;
  rusage usage = {};
  while (wait4(child, &status, 0, &usage) < 0 && errno == EINTR) continue;
  result.peak_bytes = static_cast<uint64_t>(usage.ru_maxrss) * 1024;
  if (WIFEXITED(status)) result.exit_status = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  return result;
}

ScratchDir::ScratchDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "lserve_cli_XXXXXX").string();
  LS_CHECK(mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

ScratchDir::~ScratchDir() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

std::string ScratchDir::File(const std::string& name, const std::string& content) const {
  const std::filesystem::path path = path_ / name;
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << content;
  return path.string();
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

size_t CountLines(const std::string& text) {
  return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace lserve
