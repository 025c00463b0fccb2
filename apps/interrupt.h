// Interrupt: turns the first Ctrl-C into a flag, so that what exists is still printed; the second
// one ends the program as usual. A server counts them. Used by the commands that run the engine.
#pragma once

namespace lserve {

void InstallSignalHandlers();
// A closed pipe and a file over its size limit come back as errors of write(), not as signals.
void IgnoreWriteSignals();
bool Interrupted();

// For a server: SIGTERM and Ctrl-C are counted instead.
void CountTerminations();
int Terminations();
// SIGHUP is remembered; TakeHangup: whether one came since the last call.
void RememberHangups();
bool TakeHangup();

}  // namespace lserve
