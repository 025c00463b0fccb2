// `lserve serve`: an engine behind HTTP until SIGTERM.
#pragma once

#include "apps/serve_options.h"

namespace lserve {

// The process's exit status.
int ServeCommand(ServeOptions options);

}  // namespace lserve
