// EvalOptions: what `lserve eval niah|ruler|longbench|fidelity` is told, parsed and checked as far
// as that goes without a model. Used by eval_command.cc and lserve.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/engine_flags.h"
#include "eval/niah.h"

namespace lserve {

enum class EvalKind : uint8_t { kNiah, kRuler, kLongBench, kFidelity };
inline constexpr EvalKind kEvalKinds[] = {EvalKind::kNiah, EvalKind::kRuler, EvalKind::kLongBench,
                                          EvalKind::kFidelity};
std::string_view Name(EvalKind kind);      // "niah"
const char* DescriptionOf(EvalKind kind);  // for --help
const char* ExamplesOf(EvalKind kind);

struct EvalOptions {
  EvalKind kind = EvalKind::kNiah;
  EngineFlags engine;
  // Texts until FinishEvalOptions() checks them; lists are separated by commas.
  std::string lengths_text;
  std::string depths_text = "0,0.25,0.5,0.75,1";
  std::string kinds_text = "single,multikey,multivalue,multiquery";
  std::string tasks_text;
  std::string datasets_text;
  std::string budgets_text = "256,1024,4096";
  std::string ratios_text;
  std::string wording = "auto";
  int64_t seed = 1;
  int samples = 1;
  int row_limit = 0;
  int decode_tokens = 256;
  int64_t cut_length = 0;  // 0: no cut

  std::optional<std::string> haystack_file;
  std::optional<std::string> data;  // a file (ruler) or a folder (longbench)
  std::vector<std::string> documents;
  std::optional<std::string> json_file;
  std::optional<std::string> svg_file;
  std::optional<std::string> log_file;

  // What the lists say.
  std::vector<int64_t> lengths;
  std::vector<double> depths;
  std::vector<NiahKind> kinds;
  std::vector<RulerTask> tasks;
  std::vector<std::string> datasets;
  std::vector<int> budgets;
  std::vector<double> ratios;
};

void AddEvalFlags(FlagSet& flags, EvalOptions& out);
// Usage errors: lists that are none, settings out of range.
Status FinishEvalOptions(EvalOptions& out);

}  // namespace lserve
