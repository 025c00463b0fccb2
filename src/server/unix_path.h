// The file of a Unix socket before it is bound. Used by http_server.cc only.
#pragma once

#include <string>

#include "base/status.h"

namespace lserve {

// Removes a socket file that no process listens on any more. Error: something else has the name.
Status FreeUnixPath(const std::string& path);

}  // namespace lserve
