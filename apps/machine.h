// Machine: what this computer can run lserve on: processors, memory, GPUs. Used by
// `lserve inspect` and the demo.
#pragma once

#include <cstdint>
#include <string>

#include "base/json.h"

namespace lserve {

std::string ProcessorName();      // as /proc/cpuinfo says, or "unknown processor"
uint64_t AvailableMemoryBytes();  // MemAvailable of /proc/meminfo; 0 if unknown
std::string MachineLine();        // "AMD EPYC ..., 2 cores, 15.3 GiB available"

// The table of `lserve inspect --support`, as JSON and for people.
Json SupportJson();
std::string SupportTable();

}  // namespace lserve
