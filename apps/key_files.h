// KeySources: where the API keys of `lserve serve` come from: command line, environment and files.
// They are read at the start, and the files again on SIGHUP. Used by serve_options.cc and
// serve_command.cc.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "server/key_limits.h"

namespace lserve {

struct KeySources {
  std::vector<std::string> keys;  // of the command line; LSERVE_API_KEY is added to them
  std::optional<std::string> key_file;
  std::optional<std::string> admin_key_file;  // LSERVE_ADMIN_KEY is added
  bool has_files() const { return key_file || admin_key_file; }
};

// The keys as all of the sources have them now. `others`: what a key may take whose line says
// nothing. Errors name the file and the line, and never show a key: a file that can not be read, is
// wrong or holds no key; an empty key; limits without a key.
Result<AccessKeys> ReadKeys(const KeySources& sources, const KeyLimits& others);

}  // namespace lserve
