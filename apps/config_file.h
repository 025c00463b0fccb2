// --config FILE: options from a JSON object whose members are the options' names, as --print-config
// writes it. Used by lserve.cc.
#pragma once

#include <string>
#include <vector>

#include "apps/flags.h"
#include "base/status.h"

namespace lserve {

// Puts the options of the file that `arguments` name, if any, in the place of --config. What stands
// on the command line itself wins; null and false say nothing. Error: the file, or a member that is
// no option.
Status ExpandConfigFile(const FlagSet& flags, std::vector<std::string>* arguments);

}  // namespace lserve
