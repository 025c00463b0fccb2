#include "eval/ask.h"

#include <utility>

#include "attention/policy.h"
#include "base/check.h"
#include "base/strings.h"
#include "kv/page.h"

namespace lserve {

Result<std::optional<Asked>> Ask(Engine& engine, Request request, const AskHooks& hooks) {
  LS_CHECK(!engine.has_work()) << "an evaluation shares its engine";
  const RequestId id = LS_TRY(engine.Add(std::move(request)));
  Asked asked;
  while (engine.has_work()) {
    for (const RequestEvent& event : LS_TRY(engine.Step())) {
      if (event.id != id) continue;
      asked.text += event.text;
      asked.stats = event.stats;
      if (event.finished == FinishReason::kError) return event.error;
      if (!event.token && hooks.on_prefill) hooks.on_prefill(event.prefill_done);
    }
    if (hooks.should_stop && hooks.should_stop()) {
      engine.Cancel(id);
      while (engine.has_work()) LS_TRY(engine.Step());
      return std::optional<Asked>();
    }
  }
  return std::optional<Asked>(std::move(asked));
}

std::string_view Name(Arm arm) {
  return arm == Arm::kDense ? "dense" : "sparse";
}

AttentionSettings ArmSettings(const AttentionSettings& base, Arm arm) {
  AttentionSettings settings = base;
  if (arm == Arm::kDense) settings.mode = AttentionMode::kDense;
  return settings;
}

ExpectedPath ExpectPath(const AttentionSettings& settings,
                        const EngineInfo& info,
                        int64_t prompt_tokens) {
  ExpectedPath expected;
  const int64_t first_sparse = FirstSparsePosition(settings);
  if (prompt_tokens <= first_sparse) return expected;
  const bool has_streaming = info.num_streaming_kv_heads > 0;
  const bool has_retrieval = info.num_streaming_kv_heads < info.num_kv_heads;
  // Prefill reads whole tiles: sink and window may each touch one more, and the queries' own tile.
  constexpr int64_t kEdges = int64_t{3} * kTileTokens;
  expected.sparse_prefill =
      has_streaming &&
      prompt_tokens - first_sparse > settings.sink_tokens + settings.prefill_window() + kEdges;
  // The first decode step stands at position `prompt_tokens`.
  const bool selects = has_retrieval && NumPages(prompt_tokens + 1) > BudgetPages(settings);
  const bool streams =
      has_streaming && prompt_tokens - settings.recent_tokens + 1 > settings.sink_tokens;
  expected.sparse_decode = selects || streams;
  return expected;
}

Status CheckPath(const AttentionSettings& settings,
                 const EngineInfo& info,
                 const RequestStats& stats,
                 std::string_view what) {
  const auto wrong = [&](std::string_view counter, auto value, std::string_view expected) {
    return Status(Code::kInvalidArgument,
                  StrCat(what, ": ", counter, " is ", value, ", expected ", expected,
                         "; another path ran than the one compared, so nothing is reported for "
                         "it: please report this with the command line"));
  };
  const bool tiles_left_out = stats.prefill_tiles_visited < stats.prefill_tiles_present;
  if (settings.mode == AttentionMode::kDense) {
    if (stats.sparse_steps != 0) return wrong("sparse_steps", stats.sparse_steps, "0 when dense");
    if (stats.selections != 0) return wrong("selections", stats.selections, "0 when dense");
    if (stats.pages_visited != stats.pages_present) {
      return wrong("pages_visited", stats.pages_visited, "every page when dense");
    }
    if (tiles_left_out) {
      return wrong("prefill_tiles_visited", stats.prefill_tiles_visited, "every tile when dense");
    }
    return Status();
  }
  const ExpectedPath expected = ExpectPath(settings, info, stats.prompt_tokens);
  if (expected.sparse_prefill && stats.cached_tokens == 0 && !tiles_left_out) {
    return wrong("prefill_tiles_visited", stats.prefill_tiles_visited, "fewer than all tiles");
  }
  const bool decoded = stats.sparse_steps + stats.dense_steps > 0;
  if (decoded && expected.sparse_decode && (stats.dense_steps > 0 || stats.sparse_steps == 0)) {
    return wrong("dense_steps", stats.dense_steps, "0 when sparse");
  }
  if (decoded && expected.sparse_decode && stats.pages_visited >= stats.pages_present) {
    return wrong("pages_visited", stats.pages_visited, "fewer than all pages");
  }
  return Status();
}

}  // namespace lserve
