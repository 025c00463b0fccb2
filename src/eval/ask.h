// Asking: one request through an engine to its end, and the two arms of an evaluation (dense and
// sparse at equal prompts) with the check that each ran the attention it stands for. Used by
// trial.cc and fidelity.cc; the command line answers people with apps/answering.h.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "lserve/engine.h"

namespace lserve {

struct AskHooks {
  std::function<bool()> should_stop;
  std::function<void(int64_t prefill_done)> on_prefill;
};

struct Asked {
  std::string text;
  RequestStats stats;
};

// Nothing, if `should_stop` said so. The engine must have no other work.
Result<std::optional<Asked>> Ask(Engine& engine, Request request, const AskHooks& hooks);

enum class Arm : uint8_t { kDense, kSparse };
inline constexpr Arm kArms[] = {Arm::kDense, Arm::kSparse};
std::string_view Name(Arm arm);

// `base` with the arm's mode: dense, or `base`'s own, which must not be dense.
AttentionSettings ArmSettings(const AttentionSettings& base, Arm arm);

// Which parts of a request must leave something out. Between the two there are lengths at which
// only tiles at the edges differ; then nothing is promised.
struct ExpectedPath {
  bool sparse_prefill = false;
  bool sparse_decode = false;
  bool sparse() const { return sparse_prefill || sparse_decode; }
};
ExpectedPath ExpectPath(const AttentionSettings& settings,
                        const EngineInfo& info,
                        int64_t prompt_tokens);

// An error if the counters contradict what the settings promise: the evaluation would compare
// something else than it says.
Status CheckPath(const AttentionSettings& settings,
                 const EngineInfo& info,
                 const RequestStats& stats,
                 std::string_view what);

}  // namespace lserve
