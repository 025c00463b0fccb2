#include "apps/interrupt.h"

#include <csignal>

namespace lserve {
namespace {

// A signal handler can reach nothing else.
// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables)
volatile std::sig_atomic_t interrupted = 0;
// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables)
volatile std::sig_atomic_t terminations = 0;
// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables)
volatile std::sig_atomic_t hangup = 0;

}  // namespace

void InstallSignalHandlers() {
  struct sigaction on_interrupt = {};
  on_interrupt.sa_handler = [](int) { interrupted = 1; };
  // No SA_RESTART: a read from the terminal must return.
  on_interrupt.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &on_interrupt, nullptr);
}

void IgnoreWriteSignals() {
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, nullptr);
  sigaction(SIGXFSZ, &ignore, nullptr);
}

bool Interrupted() {
  return interrupted != 0;
}

void CountTerminations() {
  struct sigaction count = {};
  count.sa_handler = [](int) { terminations = terminations + 1; };
  sigaction(SIGTERM, &count, nullptr);
  sigaction(SIGINT, &count, nullptr);
}

int Terminations() {
  return terminations;
}

void RememberHangups() {
  struct sigaction remember = {};
  remember.sa_handler = [](int) { hangup = 1; };
  sigaction(SIGHUP, &remember, nullptr);
}

bool TakeHangup() {
  if (hangup == 0) return false;
  // One that comes just now is answered together with the one before it.
  hangup = 0;
  return true;
}

}  // namespace lserve
