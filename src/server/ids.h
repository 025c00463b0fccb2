// Random names of requests, replies and calls, and seeds. Used by the service and by replies.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lserve {

uint64_t RandomBits();
// `prefix` and 24 hexadecimal digits: "chatcmpl-6f...".
std::string RandomName(std::string_view prefix);

}  // namespace lserve
