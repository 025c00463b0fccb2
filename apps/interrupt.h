// Interrupt: turns the first Ctrl-C into a flag, so that what exists is still printed; the second
// one ends the program as usual. Used by the commands that run the engine.
#pragma once

namespace lserve {

// Also ignores SIGPIPE: a closed pipe comes back as an error of write().
void InstallSignalHandlers();
bool Interrupted();

}  // namespace lserve
