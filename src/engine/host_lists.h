// Page and tile lists that a device has chosen, as the host sees them, for counting what was read.
// Used by the engine.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "engine/sequence.h"

namespace lserve {

struct HostLists {
  std::vector<int> num_runs;  // [entries]
  std::vector<PageRun> runs;  // [entries, capacity]
  SelectionTable table;       // of the two
};
// Copies the first `entries` lists of a table, once the ops before it are done.
Result<HostLists> CopyLists(Backend* backend, const SelectionTable& table, int entries);

// The lists that a decode step of `sequence` read: copied if it has just chosen them, then kept.
Result<SelectionTable> DecodeLists(
    Backend* backend, Sequence* sequence, bool selects, const SelectionTable& table, int entries);

}  // namespace lserve
