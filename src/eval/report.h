// Report: what a list of trial records says: tables for people, one JSON object for programs, a
// heat map. Numbers only; it prints and writes nothing. Used by `lserve eval niah|ruler|longbench`.
#pragma once

#include <span>
#include <string>

#include "base/json.h"
#include "eval/trial.h"
#include "lserve/engine.h"

namespace lserve {

enum class GridLayout : uint8_t {
  kDepthByLength,  // one grid per task
  kTaskByLength,
  kTask,  // one column
};

struct TrialReport {
  std::string eval;  // "niah"
  GridLayout layout = GridLayout::kTaskByLength;
  Json settings;  // the header of the log
  bool complete = true;
};

struct TrialSummary {
  int64_t trials = 0;
  double dense = 0.0, sparse = 0.0;  // mean score
  int64_t ran_sparse = 0;            // trials in which the sparse arm left something out
  int64_t worse = 0;                 // the sparse arm's score is lower
  double page_share = 1.0;           // pages visited / present in the sparse arm's decode
  double tile_share = 1.0;           // the same of prefill tiles
};
TrialSummary Summarize(std::span<const TrialRecord> records);

std::string TrialTables(std::span<const TrialRecord> records, GridLayout layout);
// Means, work left out, and the trials that sparse attention got wrong.
std::string SummaryLines(std::span<const TrialRecord> records);
Json TrialsToJson(std::span<const TrialRecord> records,
                  const TrialReport& report,
                  const EngineInfo& info);
std::string TrialsToSvg(std::span<const TrialRecord> records,
                        const TrialReport& report,
                        const EngineInfo& info);

}  // namespace lserve
