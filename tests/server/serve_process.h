// The program itself, as a process that a test can signal. LS_PROGRAM names it.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lserve {

// `lserve serve` on a free port; its stderr is read until it listens.
class ServeProcess {
 public:
  // kSmall: one thread and a cache of 64 MiB. kDefault: what whoever gives no flag has.
  enum class Size : uint8_t { kSmall, kDefault };
  explicit ServeProcess(const std::vector<std::string>& more,
                        const std::vector<std::pair<std::string, std::string>>& environment = {},
                        Size size = Size::kSmall) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
      const std::string model = LS_SOURCE_DIR "/models/needle";
      std::vector<std::string> arguments = {LS_PROGRAM, "serve", model, "--port", "0"};
      if (size == Size::kSmall)
        arguments.insert(arguments.end(), {"--threads", "1", "--kv-cache-bytes", "64M"});
      arguments.insert(arguments.end(), more.begin(), more.end());
      std::vector<char*> argv;
      for (std::string& argument : arguments) argv.push_back(argument.data());
      argv.push_back(nullptr);
      execv(LS_PROGRAM, argv.data());
      _exit(127);
    }
    close(ends[1]);
    stderr_ = ends[0];
    listens_ = ReadUntil("listening at ");
    const std::string_view kAddress = "://127.0.0.1:";
    const size_t at = err_.find(kAddress);
    if (at != std::string::npos) port_ = std::atoi(err_.c_str() + at + kAddress.size());
  }
  ~ServeProcess() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(stderr_);
  }
  ServeProcess(const ServeProcess&) = delete;
  ServeProcess& operator=(const ServeProcess&) = delete;

  bool listens() const { return listens_; }
  int port() const { return port_; }  // 0: it does not listen, or on a Unix socket
  const std::string& err() const { return err_; }
  // Reads stderr up to the end of a line that has `text`; false: the process ended without one.
  bool ReadUntil(std::string_view text) {
    const size_t from = err_.size();
    char c = 0;
    while (read(stderr_, &c, 1) == 1) {
      err_.push_back(c);
      if (c == '\n' && err_.find(text, from) != std::string::npos) return true;
    }
    return false;
  }
  void Signal(int signal) const { kill(pid_, signal); }
  // The exit status, -1 for an end by a signal.
  int Wait() {
    char bytes[4096];
    for (ssize_t n = 0; (n = read(stderr_, bytes, sizeof(bytes))) > 0;)
      err_.append(bytes, static_cast<size_t>(n));
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = -1;
  int stderr_ = -1;
  int port_ = 0;
  bool listens_ = false;
  std::string err_;
};

}  // namespace lserve
