#include "eval/report.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "eval/svg.h"
#include "eval/text_table.h"

namespace lserve {
namespace {

struct Mean {
  double sums[2] = {};  // by Arm
  int64_t count = 0;

  std::optional<double> of(Arm arm) const {
    if (count == 0) return std::nullopt;
    return sums[static_cast<size_t>(arm)] / static_cast<double>(count);
  }
};

// Records as panels of rows and columns, in the order in which they appear.
class Grid {
 public:
  Grid(std::span<const TrialRecord> records, GridLayout layout) {
    for (const TrialRecord& record : records) {
      const bool by_depth = layout == GridLayout::kDepthByLength;
      const size_t panel = IndexOf(by_depth ? record.task : "", panels);
      const size_t row =
          IndexOf(by_depth ? Percent(record.depth.value_or(0.0), 0) : record.task, rows);
      const size_t column =
          IndexOf(layout == GridLayout::kTask ? "score" : Grouped(record.length), columns);
      Mean& mean = cells_[{panel, row, column}];
      for (const Arm arm : kArms) mean.sums[static_cast<size_t>(arm)] += record.arm(arm).score;
      ++mean.count;
    }
  }

  Mean at(size_t panel, size_t row, size_t column) const {
    const auto found = cells_.find({panel, row, column});
    return found == cells_.end() ? Mean() : found->second;
  }

  std::vector<std::string> panels, rows, columns;

 private:
  static size_t IndexOf(const std::string& name, std::vector<std::string>& names) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found != names.end()) return static_cast<size_t>(found - names.begin());
    names.push_back(name);
    return names.size() - 1;
  }

  std::map<std::tuple<size_t, size_t, size_t>, Mean> cells_;
};

std::string Cell(const Mean& mean) {
  if (mean.count == 0) return "-";
  return StrCat(Fixed(*mean.of(Arm::kDense) * 100.0, 1), " / ",
                Fixed(*mean.of(Arm::kSparse) * 100.0, 1));
}

const char* RowTitle(GridLayout layout) {
  return layout == GridLayout::kDepthByLength ? "depth" : "task";
}

// One line that fits a terminal.
std::string Shortened(const std::string& text) {
  constexpr size_t kMost = 100;
  std::string line;
  for (const char c : text) line.push_back(static_cast<unsigned char>(c) < 0x20 ? ' ' : c);
  if (line.size() <= kMost) return line;
  size_t end = kMost;
  while (end > 0 && (static_cast<unsigned char>(line[end]) & 0xc0) == 0x80) --end;
  return line.substr(0, end) + "...";
}

}  // namespace

TrialSummary Summarize(std::span<const TrialRecord> records) {
  TrialSummary summary;
  double visited = 0.0, present = 0.0, tiles_visited = 0.0, tiles_present = 0.0;
  for (const TrialRecord& record : records) {
    const ArmOutcome& sparse = record.arm(Arm::kSparse);
    ++summary.trials;
    summary.dense += record.arm(Arm::kDense).score;
    summary.sparse += sparse.score;
    summary.ran_sparse += record.ran_sparse ? 1 : 0;
    summary.worse += sparse.score < record.arm(Arm::kDense).score ? 1 : 0;
    visited += sparse.stats.pages_visited;
    present += sparse.stats.pages_present;
    tiles_visited += static_cast<double>(sparse.stats.prefill_tiles_visited);
    tiles_present += static_cast<double>(sparse.stats.prefill_tiles_present);
  }
  if (summary.trials > 0) {
    summary.dense /= static_cast<double>(summary.trials);
    summary.sparse /= static_cast<double>(summary.trials);
  }
  if (present > 0.0) summary.page_share = visited / present;
  if (tiles_present > 0.0) summary.tile_share = tiles_visited / tiles_present;
  return summary;
}

std::string TrialTables(std::span<const TrialRecord> records, GridLayout layout) {
  const Grid grid(records, layout);
  std::string text;
  for (size_t panel = 0; panel < grid.panels.size(); ++panel) {
    text += StrCat(grid.panels[panel].empty() ? "" : grid.panels[panel] + ": ",
                   "score in %, dense / sparse\n");
    std::vector<std::vector<std::string>> rows(1);
    rows[0].push_back(RowTitle(layout));
    rows[0].insert(rows[0].end(), grid.columns.begin(), grid.columns.end());
    for (size_t row = 0; row < grid.rows.size(); ++row) {
      rows.push_back({grid.rows[row]});
      for (size_t column = 0; column < grid.columns.size(); ++column) {
        rows.back().push_back(Cell(grid.at(panel, row, column)));
      }
    }
    text += TextTable(rows) + "\n";
  }
  return text;
}

std::string SummaryLines(std::span<const TrialRecord> records) {
  const TrialSummary summary = Summarize(records);
  std::string text = StrCat("dense ", Percent(summary.dense), ", sparse ", Percent(summary.sparse),
                            " of ", summary.trials, " trials; sparse is worse in ", summary.worse,
                            "\n", "path: dense read every page and tile; sparse left some out in ",
                            summary.ran_sparse, " of ", summary.trials, " trials, read ",
                            Percent(summary.page_share), " of the pages in decode and ",
                            Percent(summary.tile_share), " of the tiles in prefill\n");
  constexpr int kMost = 5;
  int shown = 0;
  for (const TrialRecord& record : records) {
    const ArmOutcome& sparse = record.arm(Arm::kSparse);
    if (sparse.score >= record.arm(Arm::kDense).score || shown++ >= kMost) continue;
    text +=
        StrCat("worse: ", record.task, ", ", Grouped(record.length), " tokens",
               record.depth ? StrCat(", depth ", Percent(*record.depth, 0)) : std::string(),
               ", sample ", record.sample, "\n  dense:  ", Shortened(record.arm(Arm::kDense).text),
               "\n  sparse: ", Shortened(sparse.text), "\n");
  }
  return text;
}

Json TrialsToJson(std::span<const TrialRecord> records,
                  const TrialReport& report,
                  const EngineInfo& info) {
  const TrialSummary summary = Summarize(records);
  std::vector<std::tuple<std::string, int64_t, std::optional<double>>> order;
  std::map<std::tuple<std::string, int64_t, std::optional<double>>, Mean> means;
  Json::Array trials;
  for (const TrialRecord& record : records) {
    // LongBench's lengths are of single documents, not an axis.
    const int64_t length = report.layout == GridLayout::kTask ? 0 : record.length;
    const auto key = std::make_tuple(record.task, length, record.depth);
    const auto [at, is_new] = means.try_emplace(key);
    if (is_new) order.push_back(key);
    for (const Arm arm : kArms) at->second.sums[static_cast<size_t>(arm)] += record.arm(arm).score;
    ++at->second.count;
    trials.push_back(ToJson(record));
  }
  Json::Array cells;
  for (const auto& key : order) {
    const auto& [task, length, depth] = key;
    const Mean& mean = means.at(key);
    cells.push_back(Json(Json::Object{{"task", Json(task)},
                                      {"length", length > 0 ? Json(length) : Json()},
                                      {"depth", depth ? Json(*depth) : Json()},
                                      {"trials", Json(mean.count)},
                                      {"dense", Json(*mean.of(Arm::kDense))},
                                      {"sparse", Json(*mean.of(Arm::kSparse))}}));
  }
  return Json(Json::Object{
      {"eval", Json(report.eval)},
      {"model", Json(info.model)},
      {"device", Json(info.device)},
      {"kv_dtype", Json(info.kv_dtype)},
      {"kv_heads", Json(info.num_kv_heads)},
      {"streaming_kv_heads", Json(info.num_streaming_kv_heads)},
      {"settings", report.settings},
      {"complete", Json(report.complete)},
      {"summary", Json(Json::Object{{"trials", Json(summary.trials)},
                                    {"dense", Json(summary.dense)},
                                    {"sparse", Json(summary.sparse)},
                                    {"ran_sparse", Json(summary.ran_sparse)},
                                    {"worse", Json(summary.worse)},
                                    {"pages_visited_share", Json(summary.page_share)},
                                    {"prefill_tiles_visited_share", Json(summary.tile_share)}})},
      {"cells", Json(std::move(cells))},
      {"trials", Json(std::move(trials))},
  });
}

std::string TrialsToSvg(std::span<const TrialRecord> records,
                        const TrialReport& report,
                        const EngineInfo& info) {
  const Grid grid(records, report.layout);
  HeatMap map;
  map.title = StrCat("lserve eval ", report.eval, ": ", info.model, ", score in %",
                     report.complete ? "" : " (incomplete)");
  map.x_label = report.layout == GridLayout::kTask ? "" : "tokens";
  map.y_label = RowTitle(report.layout);
  map.columns = grid.columns;
  map.rows = grid.rows;
  for (size_t panel = 0; panel < grid.panels.size(); ++panel) {
    for (const Arm arm : kArms) {
      const std::string& name = grid.panels[panel];
      HeatPanel heat{StrCat(name.empty() ? "" : name + ", ", Name(arm)), {}};
      for (size_t row = 0; row < grid.rows.size(); ++row) {
        heat.values.emplace_back();
        for (size_t column = 0; column < grid.columns.size(); ++column) {
          heat.values.back().push_back(grid.at(panel, row, column).of(arm));
        }
      }
      map.panels.push_back(std::move(heat));
    }
  }
  return DrawHeatMap(map);
}

}  // namespace lserve
