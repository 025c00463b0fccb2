// `lserve eval`: runs one of the evaluations of src/eval, prints its table and writes its files.
#pragma once

#include "apps/eval_options.h"

namespace lserve {

// Returns the exit status. What was finished before an error or Ctrl-C is reported all the same.
int EvalCommand(EvalOptions options);

}  // namespace lserve
