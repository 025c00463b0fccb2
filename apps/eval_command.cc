#include "apps/eval_command.h"

#include <memory>
#include <utility>

#include "apps/console.h"
#include "apps/eval_progress.h"
#include "apps/interrupt.h"
#include "apps/output_file.h"
#include "apps/prompts.h"
#include "base/mapped_file.h"
#include "base/strings.h"
#include "eval/fidelity.h"
#include "eval/longbench.h"
#include "eval/report.h"
#include "eval/ruler.h"

namespace lserve {
namespace {

Json OrNull(const std::optional<std::string>& text) {
  return text ? Json(*text) : Json();
}

// What makes two runs comparable: the header of the log, and a part of --json. The axes of the grid
// are not in it: a grid may grow between runs.
Json Settings(const EvalOptions& options, const EngineInfo& info) {
  const AttentionSettings& attention = options.engine.config.attention;
  const EngineConfig& config = options.engine.config;
  Json::Object object = {
      {"eval", Json(std::string(Name(options.kind)))},
      {"model", Json(info.model)},
      {"weight_bytes", Json(static_cast<int64_t>(info.weight_bytes))},
      {"kv_dtype", Json(info.kv_dtype)},
      {"attention", Json(std::string(Name(attention.mode)))},
      {"sparse_sink_tokens", Json(attention.sink_tokens)},
      {"sparse_recent_tokens", Json(attention.recent_tokens)},
      {"sparse_prefill_recent_tokens", Json(attention.prefill_recent_tokens)},
      {"sparse_min_context", Json(attention.min_context)},
      {"sparse_prefill_threshold", Json(attention.prefill_threshold)},
      {"sparse_prefill_max_tokens", Json(attention.prefill_max_tokens)},
      {"sparse_prefill_min_context", Json(attention.prefill_min_position)},
      {"selector_interval", Json(attention.selector_interval)},
      {"streaming_heads", Json(config.streaming_heads)},
  };
  if (options.kind == EvalKind::kFidelity) {
    object.emplace_back("length", Json(options.cut_length));
    object.emplace_back("decode_tokens", Json(options.decode_tokens));
    return Json(std::move(object));
  }
  object.emplace_back("streaming_ratio",
                      config.streaming_ratio ? Json(*config.streaming_ratio) : Json());
  object.emplace_back("streaming_kv_heads", Json(info.num_streaming_kv_heads));
  object.emplace_back("sparse_token_budget", Json(attention.token_budget));
  if (options.kind == EvalKind::kLongBench) {
    object.emplace_back("length", Json(options.cut_length));
    return Json(std::move(object));
  }
  object.emplace_back("seed", Json(options.seed));
  object.emplace_back("haystack", OrNull(options.haystack_file));
  if (options.kind == EvalKind::kNiah) object.emplace_back("wording", Json(options.wording));
  if (options.kind == EvalKind::kRuler) object.emplace_back("data", OrNull(options.data));
  return Json(std::move(object));
}

class Evaluation {
 public:
  explicit Evaluation(EvalOptions options) : options_(std::move(options)) {
    hooks_.should_stop = Interrupted;
    hooks_.on_progress = [this](const EvalProgress& progress) { bar_.Update(progress); };
  }

  Status Run() {
    LS_TRY(CheckWritable("--json", options_.json_file));
    LS_TRY(CheckWritable("--svg", options_.svg_file));
    return options_.kind == EvalKind::kFidelity ? RunFidelityEval() : RunTrialEval();
  }

 private:
  Result<std::shared_ptr<const RulerSource>> MakeSource() const {
    auto source = std::make_shared<RulerSource>();
    if (options_.haystack_file) {
      const std::string text = LS_TRY(ReadDocuments({*options_.haystack_file}));
      source->essay = LS_TRY(Haystack::FromText(text, *options_.haystack_file));
    }
    if (options_.kind == EvalKind::kRuler && options_.data) {
      const std::string text = LS_TRY(ReadTextFile(*options_.data));
      LS_TRY(CheckUtf8(*options_.data, text));
      source->qa = LS_TRY(ParseSquad(text, *options_.data));
    }
    return std::shared_ptr<const RulerSource>(std::move(source));
  }

  Status CheckTokenizer(const Tokenizer* tokenizer) const {
    if (tokenizer != nullptr) return Status();
    return Status(Code::kInvalidArgument,
                  StrCat(options_.engine.config.model_dir,
                         ": has no tokenizer.json, expected one to make prompts with; add the "
                         "model's file"));
  }

  Status CheckLengths(const EngineInfo& info) const {
    for (const int64_t length : options_.lengths) {
      if (length <= info.max_model_len) continue;
      return Status(Code::kInvalidArgument,
                    StrCat("--lengths: got ", length, " tokens, expected at most ",
                           info.max_model_len, ", which is what ", info.model,
                           " holds; leave it out, or raise --max-model-len if the model allows"));
    }
    return Status();
  }

  Result<std::vector<TrialSpec>> MakeTrials(const Engine& engine) {
    const Tokenizer& tokenizer = *engine.tokenizer();
    const uint64_t seed = static_cast<uint64_t>(options_.seed);
    switch (options_.kind) {
      case EvalKind::kNiah:
        if (options_.wording == "auto") {
          options_.wording = engine.info().model.starts_with("needle") ? "needle" : "ruler";
        }
        return NiahTrials(tokenizer, {.kinds = options_.kinds,
                                      .lengths = options_.lengths,
                                      .depths = options_.depths,
                                      .samples = options_.samples,
                                      .seed = seed,
                                      .wording = options_.wording == "needle" ? NiahWording::kNeedle
                                                                              : NiahWording::kRuler,
                                      .source = LS_TRY(MakeSource())});
      case EvalKind::kRuler:
        return RulerTrials(tokenizer, {.tasks = options_.tasks,
                                       .lengths = options_.lengths,
                                       .samples = options_.samples,
                                       .seed = seed,
                                       .source = LS_TRY(MakeSource())});
      default:
        if (options_.cut_length == 0 || options_.cut_length > engine.info().max_model_len) {
          options_.cut_length = engine.info().max_model_len;
        }
        return LongBenchTrials(tokenizer, {.directory = *options_.data,
                                           .datasets = options_.datasets,
                                           .samples = options_.row_limit,
                                           .max_prompt_tokens = options_.cut_length});
    }
  }

  GridLayout Layout() const {
    switch (options_.kind) {
      case EvalKind::kNiah:
        return GridLayout::kDepthByLength;
      case EvalKind::kRuler:
        return GridLayout::kTaskByLength;
      default:
        return GridLayout::kTask;
    }
  }

  Result<ResultLog> OpenLog(const Json& settings) {
    ResultLog log = LS_TRY(ResultLog::Open(options_.log_file.value_or(""), settings));
    if (log.num_resumed() > 0) {
      PrintNote(StrCat(log.num_resumed(), " finished cells of ", *options_.log_file, " are used"));
    }
    return log;
  }

  Status RunTrialEval() {
    const std::unique_ptr<Engine> engine = LS_TRY(Engine::Create(options_.engine.config));
    const EngineInfo& info = engine->info();
    for (const std::string& warning : info.warnings) PrintNote(warning);
    LS_TRY(CheckTokenizer(engine->tokenizer()));
    LS_TRY(CheckLengths(info));
    const std::vector<TrialSpec> specs = LS_TRY(MakeTrials(*engine));
    TrialReport report{.eval = std::string(Name(options_.kind)),
                       .layout = Layout(),
                       .settings = Settings(options_, info),
                       .complete = true};
    ResultLog log = LS_TRY(OpenLog(report.settings));
    const TrialRun run = RunTrials(*engine, specs, log, hooks_);
    bar_.Clear();
    report.complete = run.records.size() == specs.size();
    // What there is, also after an error.
    if (!run.records.empty()) {
      LS_TRY(output_.Write(
          StrCat(TrialTables(run.records, report.layout), SummaryLines(run.records))));
    }
    LS_TRY(WriteOutput(options_.json_file,
                       WriteJson(TrialsToJson(run.records, report, info), {.indent = 1}) + "\n"));
    LS_TRY(WriteOutput(options_.svg_file, TrialsToSvg(run.records, report, info)));
    LS_TRY(run.status);
    if (!report.complete || Summarize(run.records).ran_sparse > 0) return Status();
    return NothingSparse(info.num_streaming_kv_heads);
  }

  // Both arms were the same: no result about sparsity.
  Status NothingSparse(int64_t num_streaming) const {
    return Status(Code::kInvalidArgument,
                  StrCat("the sparse arm left nothing out in any cell (",
                         options_.kind == EvalKind::kFidelity
                             ? std::string("budgets ") + options_.budgets_text
                             : StrCat("budget ", options_.engine.config.attention.token_budget),
                         ", ", num_streaming,
                         " streaming heads), expected sparse attention; give longer "
                         "texts, a smaller budget or --streaming-heads"));
  }

  Result<std::vector<FidelityText>> ReadTexts(const Tokenizer& tokenizer) const {
    std::vector<FidelityText> texts;
    for (const std::string& path : options_.documents) {
      const std::string text = LS_TRY(ReadDocuments({path}));
      FidelityText read{path, LS_TRY(tokenizer.Encode(text))};
      if (options_.cut_length > 0 &&
          static_cast<int64_t>(read.tokens.size()) > options_.cut_length) {
        read.tokens.resize(static_cast<size_t>(options_.cut_length));
      }
      texts.push_back(std::move(read));
    }
    return texts;
  }

  Status RunFidelityEval() {
    FidelityOptions fidelity;
    fidelity.config = options_.engine.config;
    fidelity.ratios = options_.ratios;
    fidelity.budgets = options_.budgets;
    fidelity.decode_tokens = options_.decode_tokens;
    EngineInfo info;
    {
      // The model's own checks and its tokenizer; the runs make their engines anew for each ratio.
      const std::unique_ptr<Engine> engine = LS_TRY(Engine::Create(options_.engine.config));
      info = engine->info();
      LS_TRY(CheckTokenizer(engine->tokenizer()));
      fidelity.texts = LS_TRY(ReadTexts(*engine->tokenizer()));
    }
    for (const FidelityText& text : fidelity.texts) {
      LS_TRY(CheckFidelityText(text, fidelity.decode_tokens, info.max_model_len));
    }
    const Json settings = Settings(options_, info);
    ResultLog log = LS_TRY(OpenLog(settings));
    FidelityRun run = RunFidelity(fidelity, log, hooks_);
    bar_.Clear();
    if (run.info.model.empty()) run.info = info;  // every cell was in the log
    const bool complete = run.status.ok() && !run.interrupted;
    if (!run.records.empty()) LS_TRY(output_.Write(FidelityTable(run.records)));
    LS_TRY(WriteOutput(options_.json_file,
                       WriteJson(FidelityToJson(run, settings, complete), {.indent = 1}) + "\n"));
    LS_TRY(WriteOutput(options_.svg_file, FidelityToSvg(run, complete)));
    LS_TRY(run.status);
    int64_t most_streaming = 0;
    for (const FidelityRecord& record : run.records) {
      if (record.visited < record.present) return Status();
      most_streaming = std::max(most_streaming, record.streaming_heads);
    }
    return complete ? NothingSparse(most_streaming) : Status();
  }

  EvalOptions options_;
  EvalHooks hooks_;
  EvalProgressBar bar_;
  Output output_;
};

}  // namespace

int EvalCommand(EvalOptions options) {
  InstallSignalHandlers();
  Evaluation evaluation(std::move(options));
  const Status status = evaluation.Run();
  if (Interrupted()) return kExitInterrupt;
  return status.ok() ? kExitOk : ReportError(status);
}

}  // namespace lserve
