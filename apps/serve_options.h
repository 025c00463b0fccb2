// ServeOptions: what `lserve serve` is told, parsed and checked as far as that goes without a
// model. Used by serve_command.cc only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "apps/engine_flags.h"
#include "apps/key_files.h"
#include "server/server.h"

namespace lserve {

struct ServeOptions {
  EngineFlags engine;
  SamplingFlags sampling;
  ServerConfig server;
  KeySources keys;
  std::optional<std::string> date_text;
  std::string uds;
  std::optional<std::string> config_file;  // config_file.h has read it before the flags are parsed
  bool no_prefix_caching = false;
  std::string scheduling_policy = "priority";
  bool no_access_log = false;
  bool print_config = false;
  bool ignored = false;  // of switches that change nothing here
};

void AddServeFlags(FlagSet& flags, ServeOptions& out);
// Usage errors; reads the files of keys.
Status FinishServeOptions(ServeOptions& out);

}  // namespace lserve
