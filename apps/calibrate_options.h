// CalibrateOptions: what `lserve calibrate` is told, parsed and checked as far as that goes without
// a model. Used by calibrate_command.cc and lserve.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "apps/engine_flags.h"

namespace lserve {

struct CalibrateOptions {
  EngineFlags engine;
  std::vector<std::string> texts;
  int64_t length = 4096;
  int documents = 4;
  int questions = 5;
  int text_parts = 4;
  int64_t seed = 1;
  std::string rank = "peak";
  std::optional<double> target_ratio;
  std::optional<double> max_loss;
  std::string ratios_text = "0.25,0.5,0.75";
  std::vector<double> ratios;
  std::optional<std::string> compare_file;
  std::optional<std::string> output_file;
  bool overwrite = false;
  std::optional<std::string> svg_file;
};

void AddCalibrateFlags(FlagSet& flags, CalibrateOptions& out);
// Usage errors: contradictions, lists that are none, settings out of range.
Status FinishCalibrateOptions(CalibrateOptions& out);

}  // namespace lserve
