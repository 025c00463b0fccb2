#include "engine/host_lists.h"

#include <utility>

namespace lserve {

Result<HostLists> CopyLists(Backend* backend, const SelectionTable& table, int entries) {
  HostLists lists;
  lists.num_runs.resize(static_cast<size_t>(entries));
  lists.runs.resize(static_cast<size_t>(entries) * static_cast<size_t>(table.capacity));
  LS_TRY(backend->CopyToHost(lists.num_runs.data(), table.num_runs,
                             lists.num_runs.size() * sizeof(int)));
  LS_TRY(backend->CopyToHost(lists.runs.data(), table.runs, lists.runs.size() * sizeof(PageRun)));
  lists.table = {.capacity = table.capacity,
                 .max_pages = table.max_pages,
                 .num_runs = lists.num_runs.data(),
                 .runs = lists.runs.data()};
  return lists;
}

Result<SelectionTable> DecodeLists(
    Backend* backend, Sequence* sequence, bool selects, const SelectionTable& table, int entries) {
  if (selects || sequence->selected_num_runs.empty()) {
    HostLists lists = LS_TRY(CopyLists(backend, table, entries));
    sequence->selected_num_runs = std::move(lists.num_runs);
    sequence->selected_runs = std::move(lists.runs);
  }
  return SelectionTable{.capacity = table.capacity,
                        .max_pages = table.max_pages,
                        .num_runs = sequence->selected_num_runs.data(),
                        .runs = sequence->selected_runs.data()};
}

}  // namespace lserve
