#include "apps/calibrate_command.h"

#include <filesystem>
#include <memory>
#include <utility>

#include "apps/console.h"
#include "apps/eval_progress.h"
#include "apps/interrupt.h"
#include "apps/output_file.h"
#include "apps/prompts.h"
#include "apps/quantities.h"
#include "base/strings.h"
#include "eval/calibration.h"

namespace lserve {
namespace {

class Calibrator {
 public:
  explicit Calibrator(CalibrateOptions options) : options_(std::move(options)) {
    if (!options_.output_file) {
      const std::filesystem::path model = options_.engine.config.model_dir;
      options_.output_file = (model / "streaming_heads.json").string();
    }
  }

  Status Run() {
    LS_TRY(CheckOutputs());
    LS_TRY(Prepare());
    EvalProgressBar bar;
    EvalHooks hooks;
    hooks.should_stop = Interrupted;
    hooks.on_progress = [&](const EvalProgress& progress) { bar.Update(progress); };
    const CalibrationResult result = LS_TRY(RunCalibration(calibration_, hooks));
    bar.Clear();
    if (result.interrupted) return Status();
    LS_TRY(WriteOutput(options_.output_file,
                       WriteJson(CalibrationToJson(result, calibration_), {.indent = 1}) + "\n"));
    if (options_.svg_file) LS_TRY(WriteOutput(options_.svg_file, CalibrationSvg(result)));
    Output output;
    LS_TRY(output.Write(CalibrationText(result, calibration_)));
    PrintToStderr(StrCat("[", calibration_.samples.size(), " samples measured in ",
                         FormatSeconds(result.measure_seconds), ", ", result.checks.size(),
                         " cuts checked on ", calibration_.checks.size(), " in ",
                         FormatSeconds(result.check_seconds), " | ", *options_.output_file, "]\n"));
    return Status();
  }

 private:
  Status CheckOutputs() const {
    std::error_code ignored;
    if (!options_.overwrite && std::filesystem::exists(*options_.output_file, ignored)) {
      return Status(Code::kIoError, StrCat(*options_.output_file,
                                           ": is there already, expected no file; give --output "
                                           "FILE, or --overwrite to replace it"));
    }
    LS_TRY(CheckWritable("--output", options_.output_file));
    return CheckWritable("--svg", options_.svg_file);
  }

  // Everything that can be wrong with the input, before the long work.
  Status Prepare() {
    EngineConfig config = options_.engine.config;
    config.streaming_heads = "none";
    calibration_.config = config;
    calibration_.rank = options_.rank == "ablation" ? HeadRank::kAblation : HeadRank::kPeak;
    calibration_.target_ratio = options_.target_ratio;
    calibration_.max_loss = options_.max_loss;
    calibration_.ratios = options_.ratios;
    if (options_.compare_file) {
      calibration_.other = LS_TRY(LoadStreamingHeads(*options_.compare_file));
      calibration_.other_name = *options_.compare_file;
    }
    const std::unique_ptr<Engine> engine = LS_TRY(Engine::Create(config));
    for (const std::string& warning : engine->info().warnings) PrintNote(warning);
    if (engine->tokenizer() == nullptr) {
      return Status(Code::kInvalidArgument,
                    StrCat(config.model_dir,
                           ": has no tokenizer.json, expected one to make documents with; add the "
                           "model's file"));
    }
    if (options_.length > engine->info().max_model_len) {
      return Status(Code::kInvalidArgument,
                    StrCat("--length: got ", options_.length, " tokens, expected at most ",
                           engine->info().max_model_len, ", which is what ", engine->info().model,
                           " holds; leave it out, or raise --max-model-len if the model allows"));
    }
    LS_TRY(MakeDocuments(*engine->tokenizer()));
    for (const std::string& path : options_.texts) LS_TRY(AddText(*engine->tokenizer(), path));
    if (options_.texts.empty()) {
      const std::vector<int32_t> tokens = LS_TRY(MadeText(*engine->tokenizer(), 2 * options_.length,
                                                          static_cast<uint64_t>(options_.seed)));
      LS_TRY(AddTokens("made text", tokens));
    }
    return Status();
  }

  int64_t OutOfSight() const {
    const AttentionSettings& attention = options_.engine.config.attention;
    return int64_t{attention.sink_tokens} + attention.recent_tokens;
  }

  Status MakeDocuments(const Tokenizer& tokenizer) {
    if (options_.documents == 0) return Status();
    constexpr int64_t kRoom = 256;  // for facts that no streaming head sees
    if (options_.length < OutOfSight() + kRoom) {
      return Status(Code::kInvalidArgument,
                    StrCat("--length: got ", options_.length, " tokens, expected at least ",
                           OutOfSight() + kRoom,
                           ", more than a streaming head sees; raise it, or lower "
                           "--sparse-recent-tokens"));
    }
    PasskeyOptions passkey{.length = options_.length,
                           .documents = options_.documents,
                           .questions = options_.questions,
                           .seed = 2 * static_cast<uint64_t>(options_.seed)};
    calibration_.samples = LS_TRY(PasskeySamples(tokenizer, passkey));
    ++passkey.seed;
    calibration_.checks = LS_TRY(PasskeySamples(tokenizer, passkey));
    return Status();
  }

  Status AddText(const Tokenizer& tokenizer, const std::string& path) {
    const std::string text = LS_TRY(ReadDocuments({path}));
    return AddTokens(path, LS_TRY(tokenizer.Encode(text)));
  }

  // Every second part is for the checks; the only part of a short text serves both.
  Status AddTokens(const std::string& name, const std::vector<int32_t>& tokens) {
    std::vector<CalibrationSample> parts =
        LS_TRY(TextSamples(name, tokens, options_.length, options_.text_parts, OutOfSight()));
    if (parts.size() == 1) parts.push_back(parts[0]);
    for (size_t i = 0; i < parts.size(); ++i) {
      (i % 2 == 0 ? calibration_.samples : calibration_.checks).push_back(std::move(parts[i]));
    }
    return Status();
  }

  CalibrateOptions options_;
  CalibrationOptions calibration_;
};

}  // namespace

int CalibrateCommand(CalibrateOptions options) {
  InstallSignalHandlers();
  Calibrator calibrator(std::move(options));
  const Status status = calibrator.Run();
  if (Interrupted()) return kExitInterrupt;
  return status.ok() ? kExitOk : ReportError(status);
}

}  // namespace lserve
