#include "eval/trial.h"

#include <utility>

#include "base/strings.h"

namespace lserve {
namespace {

struct Counter {
  const char* name;
  int64_t RequestStats::*field;
};
constexpr Counter kCounters[] = {
    {"prompt_tokens", &RequestStats::prompt_tokens},
    {"completion_tokens", &RequestStats::completion_tokens},
    {"prefill_tiles_visited", &RequestStats::prefill_tiles_visited},
    {"prefill_tiles_present", &RequestStats::prefill_tiles_present},
    {"dense_steps", &RequestStats::dense_steps},
    {"sparse_steps", &RequestStats::sparse_steps},
    {"selections", &RequestStats::selections},
};
struct Measure {
  const char* name;
  double RequestStats::*field;
};
constexpr Measure kMeasures[] = {
    {"ttft_ms", &RequestStats::ttft_ms},
    {"pages_visited", &RequestStats::pages_visited},
    {"pages_present", &RequestStats::pages_present},
};

Json ToJson(const ArmOutcome& outcome) {
  const RequestStats& stats = outcome.stats;
  Json::Object object = {{"text", Json(outcome.text)}, {"score", Json(outcome.score)}};
  for (const Counter& counter : kCounters) {
    object.emplace_back(counter.name, Json(stats.*counter.field));
  }
  for (const Measure& measure : kMeasures) {
    object.emplace_back(measure.name, Json(stats.*measure.field));
  }
  object.emplace_back("decode_ms_per_token",
                      stats.decode_ms_per_token ? Json(*stats.decode_ms_per_token) : Json());
  object.emplace_back("kv_bytes", Json(static_cast<int64_t>(stats.kv_bytes)));
  return Json(std::move(object));
}

// Reads the members of one record; the first that is wrong is kept.
class Reader {
 public:
  Reader(const Json& json, std::string source) : json_(json), source_(std::move(source)) {}

  double Number(const char* name) {
    const Json* found = Get(name, json_.Find(name), [](const Json& j) { return j.is_number(); });
    return found != nullptr ? found->as_double() : 0.0;
  }
  int64_t Integer(const char* name) {
    const Json* found = Get(name, json_.Find(name), [](const Json& j) { return j.is_int(); });
    return found != nullptr ? found->as_int() : 0;
  }
  std::string Text(const char* name) {
    const Json* found = Get(name, json_.Find(name), [](const Json& j) { return j.is_string(); });
    return found != nullptr ? found->as_string() : std::string();
  }
  std::optional<double> MaybeNumber(const char* name) {
    const Json* found = json_.Find(name);
    if (found == nullptr || !found->is_number()) return std::nullopt;
    return found->as_double();
  }
  const Status& status() const { return status_; }

 private:
  template <class Is>
  const Json* Get(const char* name, const Json* found, Is is) {
    if (found != nullptr && is(*found)) return found;
    if (status_.ok()) {
      status_ = Status(
          Code::kInvalidArgument,
          StrCat(source_, ": \"", name, "\" is ", found == nullptr ? "missing" : found->TypeName(),
                 ", expected a value of lserve eval; was the file edited?"));
    }
    return nullptr;
  }

  const Json& json_;
  std::string source_;
  Status status_;
};

Result<ArmOutcome> ArmFromJson(const Json& json, const std::string& source) {
  Reader reader(json, source);
  ArmOutcome outcome;
  outcome.text = reader.Text("text");
  outcome.score = reader.Number("score");
  for (const Counter& counter : kCounters) {
    outcome.stats.*counter.field = reader.Integer(counter.name);
  }
  for (const Measure& measure : kMeasures) {
    outcome.stats.*measure.field = reader.Number(measure.name);
  }
  outcome.stats.decode_ms_per_token = reader.MaybeNumber("decode_ms_per_token");
  outcome.stats.kv_bytes = static_cast<uint64_t>(reader.Integer("kv_bytes"));
  if (!reader.status().ok()) return reader.status();
  return outcome;
}

bool LeftSomethingOut(const RequestStats& stats) {
  return stats.sparse_steps > 0 || stats.pages_visited < stats.pages_present ||
         stats.prefill_tiles_visited < stats.prefill_tiles_present;
}

// One trial in both arms; nothing if it was interrupted.
Result<std::optional<TrialRecord>> RunTrial(Engine& engine,
                                            const TrialSpec& spec,
                                            const EvalHooks& hooks,
                                            EvalProgress progress) {
  const TrialPrompt prompt = LS_TRY(spec.make());
  TrialRecord record{.task = spec.task,
                     .length = spec.length,
                     .depth = spec.depth,
                     .sample = spec.sample,
                     .expected = prompt.expected,
                     .arms = {},
                     .ran_sparse = false};
  const double work = WorkOf(static_cast<int64_t>(prompt.tokens.size()));
  for (const Arm arm : kArms) {
    Request request;
    request.prompt = prompt.tokens;
    request.sampling.temperature = 0.0;
    request.max_tokens = prompt.max_tokens;
    request.stop = prompt.stop;
    request.attention = ArmSettings(engine.config().attention, arm);
    const AttentionSettings settings = *request.attention;
    AskHooks ask_hooks;
    ask_hooks.should_stop = hooks.should_stop;
    const double before = progress.work_done;
    ask_hooks.on_prefill = [&](int64_t done) {
      progress.work_done = before + WorkOf(done) / 2.0;
      if (hooks.on_progress) hooks.on_progress(progress);
    };
    std::optional<Asked> asked = LS_TRY(Ask(engine, std::move(request), ask_hooks));
    if (!asked) return std::optional<TrialRecord>();
    progress.work_done = before + work / 2.0;
    const std::string what = StrCat(spec.key(), " (", Name(arm), ")");
    LS_TRY(CheckPath(settings, engine.info(), asked->stats, what));
    ArmOutcome& outcome = record.arm(arm);
    outcome.score = prompt.score(asked->text);
    outcome.text = std::move(asked->text);
    outcome.stats = asked->stats;
  }
  record.ran_sparse = LeftSomethingOut(record.arm(Arm::kSparse).stats);
  return std::optional<TrialRecord>(std::move(record));
}

}  // namespace

std::string TrialSpec::key() const {
  return StrCat(task, "/", length, "/", depth ? StrCat(*depth) : std::string("-"), "/", sample);
}

Json ToJson(const TrialRecord& record) {
  Json::Array expected;
  for (const std::string& text : record.expected) expected.push_back(Json(text));
  return Json(Json::Object{
      {"task", Json(record.task)},
      {"length", Json(record.length)},
      {"depth", record.depth ? Json(*record.depth) : Json()},
      {"sample", Json(record.sample)},
      {"expected", Json(std::move(expected))},
      {"ran_sparse", Json(record.ran_sparse)},
      {"dense", ToJson(record.arm(Arm::kDense))},
      {"sparse", ToJson(record.arm(Arm::kSparse))},
  });
}

Result<TrialRecord> TrialFromJson(const Json& json, const std::string& source) {
  Reader reader(json, source);
  TrialRecord record;
  record.task = reader.Text("task");
  record.length = reader.Integer("length");
  record.depth = reader.MaybeNumber("depth");
  record.sample = reader.Integer("sample");
  if (!reader.status().ok()) return reader.status();
  if (const Json* expected = json.Find("expected"); expected != nullptr && expected->is_array()) {
    for (const Json& text : expected->as_array()) {
      if (text.is_string()) record.expected.push_back(text.as_string());
    }
  }
  for (const Arm arm : kArms) {
    const Json* outcome = json.Find(Name(arm));
    record.arm(arm) =
        LS_TRY(ArmFromJson(outcome != nullptr ? *outcome : Json(), StrCat(source, " ", Name(arm))));
  }
  record.ran_sparse = LeftSomethingOut(record.arm(Arm::kSparse).stats);
  return record;
}

double WorkOf(int64_t tokens) {
  constexpr double kEqualAt = 8192.0;
  const double n = static_cast<double>(tokens);
  return n + n * n / kEqualAt;
}

TrialRun RunTrials(Engine& engine,
                   std::span<const TrialSpec> specs,
                   ResultLog& log,
                   const EvalHooks& hooks) {
  TrialRun run;
  EvalProgress progress;
  for (const TrialSpec& spec : specs) {
    if (log.Find(spec.key()) != nullptr) continue;
    ++progress.cells_total;
    progress.work_total += WorkOf(spec.length);
  }
  for (const TrialSpec& spec : specs) {
    const std::string key = spec.key();
    if (const Json* known = log.Find(key)) {
      Result<TrialRecord> record = TrialFromJson(*known, StrCat("record ", key));
      if (!record.ok()) {
        run.status = record.status();
        return run;
      }
      run.records.push_back(std::move(record).value());
      continue;
    }
    progress.label = key;
    if (hooks.on_progress) hooks.on_progress(progress);
    Result<std::optional<TrialRecord>> record = RunTrial(engine, spec, hooks, progress);
    if (!record.ok()) {
      run.status = record.status();
      return run;
    }
    if (!record.value().has_value()) {
      run.interrupted = true;
      return run;
    }
    ++progress.cells_done;
    progress.work_done += WorkOf(spec.length);
    run.records.push_back(*std::move(record).value());
    run.status = log.Append(key, ToJson(run.records.back()));
    if (!run.status.ok()) return run;
  }
  return run;
}

}  // namespace lserve
