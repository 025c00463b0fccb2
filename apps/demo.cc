// lserve_demo: the program behind `./dev demo`. Hides facts in a long document, asks for them with
// dense and with sparse attention, and compares answers, times and memory. Exit status 0 only if
// every answer is right.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>

#include "apps/answering.h"
#include "apps/console.h"
#include "apps/engine_flags.h"
#include "apps/interrupt.h"
#include "apps/machine.h"
#include "apps/progress_bar.h"
#include "apps/prompts.h"
#include "apps/quantities.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/strings.h"
#include "eval/needle_document.h"

namespace lserve {
namespace {

struct DemoOptions {
  EngineFlags engine;
  int num_tokens = 32768;
  int seed = 1;
};

// One column of the table.
struct Mode {
  std::string name;
  AttentionSettings attention;
  bool is_comparison = false;  // shown; the exit status does not depend on it
  int num_right = 0;
  int num_asked = 0;
  int num_exact = 0;          // word for word
  double first_ttft_s = 0.0;  // of the question that read the document
  double later_ttft_ms = 0.0;
  double decode_ms = 0.0;  // all decode steps of the mode
  int64_t decode_steps = 0;
  uint64_t kv_bytes = 0;
  double pages_visited = 0.0;  // mean over the questions
  double pages_present = 0.0;
  int64_t tiles_visited = 0;
  int64_t tiles_present = 0;
  int64_t sparse_steps = 0;
  int64_t dense_steps = 0;
  int64_t selections = 0;

  double decode_ms_per_token() const {
    return decode_steps > 0 ? decode_ms / static_cast<double>(decode_steps) : 0.0;
  }
};

std::string Padded(std::string text, size_t width) {
  text.resize(std::max(text.size(), width), ' ');
  return text;
}

class Demo {
 public:
  Demo(const DemoOptions& options, std::unique_ptr<Engine> engine)
      : options_(options), engine_(std::move(engine)) {}

  Result<bool> Run() {
    const NeedleOptions needle = {.num_tokens = options_.num_tokens,
                                  .seed = static_cast<uint64_t>(options_.seed),
                                  .depths = {0.0, 0.17, 0.33, 0.5, 0.67, 0.83, 1.0},
                                  .num_distractors = 12};
    const NeedleDocument document = LS_TRY(MakeNeedleDocument(*engine_->tokenizer(), needle));
    std::vector<NeedleQuestion> questions = document.questions;
    questions.push_back(AskBoth(document.questions[1], document.questions[4]));
    LS_TRY(PrintHeader(document));

    std::vector<Mode> modes = MakeModes();
    for (Mode& mode : modes) {
      LS_TRY(RunMode(document, questions, mode));
      engine_->DropPrefixes();
      if (Interrupted()) return false;
    }
    LS_TRY(PrintTable(modes));
    return std::all_of(modes.begin(), modes.end(), [](const Mode& mode) {
      return mode.is_comparison || mode.num_right == mode.num_asked;
    });
  }

 private:
  std::vector<Mode> MakeModes() const {
    std::vector<Mode> modes(3);
    AttentionSettings attention = options_.engine.config.attention;
    attention.mode = AttentionMode::kDense;
    modes[0].name = "dense";
    modes[0].attention = attention;
    attention.mode = AttentionMode::kSparse;
    modes[1].attention = attention;
    modes[1].name = StrCat("sparse ", attention.token_budget);
    // A quarter of the pages, chosen anew at every step (ADR 0010).
    attention.token_budget = std::min(attention.token_budget, 1024);
    attention.selector_interval = 0;
    modes[2].attention = attention;
    modes[2].is_comparison = true;
    modes[2].name = StrCat("sparse ", attention.token_budget, ", each step");
    return modes;
  }

  Status PrintHeader(const NeedleDocument& document) {
    const EngineInfo& info = engine_->info();
    return output_.Write(StrCat("machine   ", MachineLine(), "\nmodel     ", info.model, ", ",
                                info.device, ", KV ", info.kv_dtype, ", ",
                                info.num_streaming_kv_heads, " of ", info.num_kv_heads,
                                " KV heads stream\ndocument  ", FormatCount(document.num_tokens),
                                " tokens, seed ", options_.seed, "\n"));
  }

  Status RunMode(const NeedleDocument& document,
                 const std::vector<NeedleQuestion>& questions,
                 Mode& mode) {
    LS_TRY(output_.Write(StrCat("\n== ", mode.name, "\n")));
    const Conversation conversation = {
        .document = document.text, .system = std::nullopt, .date = std::nullopt};
    std::vector<std::vector<int32_t>> prompts;
    for (const NeedleQuestion& question : questions) {
      prompts.push_back(LS_TRY(MakePrompt(*engine_->tokenizer(), conversation, question.question)));
    }
    const int64_t keep_prefix = CommonPrefix(prompts);
    for (size_t i = 0; i < questions.size() && !Interrupted(); ++i) {
      Request request;
      request.prompt = prompts[i];
      request.sampling.temperature = 0.0;
      request.max_tokens = 128;
      request.attention = mode.attention;
      request.keep_prefix = i == 0 ? keep_prefix : 0;
      ProgressBar progress("reading");
      AnswerHooks hooks;
      hooks.should_stop = Interrupted;
      hooks.on_event = [&](size_t, const RequestEvent& event) {
        if (event.token) progress.Clear();
        if (!event.token) {
          progress.Update(event.prefill_done, static_cast<int64_t>(prompts[i].size()));
        }
        return Status();
      };
      const Answer answer = LS_TRY(AnswerOne(*engine_, std::move(request), hooks));
      progress.Clear();
      LS_TRY(Count(questions[i], answer, i == 0, mode));
    }
    return Status();
  }

  Status Count(const NeedleQuestion& question, const Answer& answer, bool is_first, Mode& mode) {
    const bool right = HasSameValues(answer.text, question.answer);
    const RequestStats& stats = answer.stats;
    mode.num_asked += 1;
    mode.num_right += right ? 1 : 0;
    mode.num_exact += answer.text == question.answer ? 1 : 0;
    if (is_first) {
      mode.first_ttft_s = stats.ttft_ms / 1e3;
      mode.tiles_visited = stats.prefill_tiles_visited;
      mode.tiles_present = stats.prefill_tiles_present;
    } else {
      mode.later_ttft_ms = std::max(mode.later_ttft_ms, stats.ttft_ms);
    }
    const int64_t steps = stats.dense_steps + stats.sparse_steps;
    mode.decode_ms += stats.decode_ms_per_token.value_or(0.0) * static_cast<double>(steps);
    mode.decode_steps += steps;
    mode.dense_steps += stats.dense_steps;
    mode.sparse_steps += stats.sparse_steps;
    mode.selections += stats.selections;
    mode.kv_bytes = std::max(mode.kv_bytes, stats.kv_bytes);
    mode.pages_visited += stats.pages_visited * static_cast<double>(steps);
    mode.pages_present += stats.pages_present * static_cast<double>(steps);
    std::string lines = StrCat(right ? "  right  " : "  WRONG  ", question.question, "\n         ",
                               answer.text, "\n");
    if (!right) lines += StrCat("         expected: ", question.answer, "\n");
    return output_.Write(lines);
  }

  Status PrintTable(const std::vector<Mode>& modes) {
    std::string table = "\n" + Padded("", 42);
    for (const Mode& mode : modes) table += Padded(mode.name, 20);
    table += "\n";
    const auto row = [&](const char* label, auto cell) {
      table += Padded(label, 42);
      for (const Mode& mode : modes) table += Padded(cell(mode), 20);
      table += "\n";
    };
    const Mode& dense = modes[0];
    const auto times = [](double of, double by) {
      return by > 0.0 ? StrCat(" (", FormatFixed(of / by, 2), "x)") : std::string();
    };
    const auto mean = [](double sum, const Mode& mode) {
      return mode.decode_steps > 0 ? sum / static_cast<double>(mode.decode_steps) : 0.0;
    };
    row("answers right", [](const Mode& m) { return StrCat(m.num_right, " of ", m.num_asked); });
    row("  of them word for word", [](const Mode& m) { return StrCat(m.num_exact); });
    row("time to first token, document read", [&](const Mode& m) {
      return StrCat(FormatSeconds(m.first_ttft_s), times(dense.first_ttft_s, m.first_ttft_s));
    });
    row("  prefill tiles visited / present",
        [](const Mode& m) { return StrCat(m.tiles_visited, " / ", m.tiles_present); });
    row("time to first token, next questions",
        [](const Mode& m) { return StrCat("<= ", FormatSeconds(m.later_ttft_ms / 1e3)); });
    row("decode, ms per token", [&](const Mode& m) {
      return StrCat(FormatFixed(m.decode_ms_per_token(), 2),
                    times(dense.decode_ms_per_token(), m.decode_ms_per_token()));
    });
    row("  pages visited / present per step", [&](const Mode& m) {
      return StrCat(FormatFixed(mean(m.pages_visited, m), 0), " / ",
                    FormatFixed(mean(m.pages_present, m), 0));
    });
    row("  steps dense / sparse, selections", [](const Mode& m) {
      return StrCat(m.dense_steps, " / ", m.sparse_steps, ", ", m.selections);
    });
    row("KV cache", [&](const Mode& m) {
      return StrCat(FormatBytes(m.kv_bytes),
                    times(static_cast<double>(dense.kv_bytes), static_cast<double>(m.kv_bytes)));
    });
    return output_.Write(table);
  }

  const DemoOptions& options_;
  std::unique_ptr<Engine> engine_;
  Output output_;
};

int RunDemo(DemoOptions& options) {
  if (const Status status = FinishEngineFlags(options.engine); !status.ok()) {
    return ReportUsage(status.message());
  }
  InstallSignalHandlers();
  IgnoreWriteSignals();
  const Stopwatch watch;
  Result<std::unique_ptr<Engine>> engine = Engine::Create(options.engine.config);
  if (!engine.ok()) return ReportError(engine.status());
  if (engine.value()->tokenizer() == nullptr) {
    return ReportError(Status(Code::kInvalidArgument,
                              StrCat(options.engine.config.model_dir,
                                     ": has no tokenizer.json, expected the bundled model; "
                                     "run from the repository or give --model models/needle")));
  }
  const Result<bool> all_right = Demo(options, std::move(engine).value()).Run();
  if (!all_right.ok()) return ReportError(all_right.status());
  if (Interrupted()) return kExitInterrupt;
  PrintToStderr(StrCat("\ndemo: ", all_right.value() ? "all answers are right" : "WRONG ANSWERS",
                       " (", FormatSeconds(watch.seconds()), ")\n"));
  return all_right.value() ? kExitOk : kExitFailed;
}

int Main(const std::vector<std::string>& arguments) {
  SetLogLevel(LogLevel::kWarning);
  CLI::App app("Hides facts in a long document and asks for them, dense and sparse.",
               "lserve_demo");
  FlagSet flags(app);
  DemoOptions options;
  std::string& model_dir = options.engine.config.model_dir;
  std::error_code error;
  const bool in_repository = std::filesystem::exists("models/needle/config.json", error);
  model_dir = in_repository ? "models/needle" : LS_SOURCE_DIR "/models/needle";
  flags.Group("Demo");
  flags.Text("--model,-m", model_dir, "DIR", "the bundled model, or one trained like it");
  flags.Integer("--context", options.num_tokens, 2048, "TOKENS", "length of the document");
  flags.Integer("--document-seed", options.seed, 0, "NUMBER", "another document for each");
  AddEngineFlags(flags, options.engine);
  std::vector<std::string> reversed;
  for (const std::string& argument : arguments) reversed.push_back(ExpandShortName(argument));
  std::reverse(reversed.begin(), reversed.end());
  try {
    app.parse(reversed);
  } catch (const CLI::Success& success) {
    app.exit(success);
    return kExitOk;
  } catch (const CLI::ParseError& parse_error) {
    return ReportUsage(StrCat(parse_error.what(), "; see lserve_demo --help"));
  }
  if (!flags.status().ok()) return ReportUsage(flags.status().message());
  for (const std::string& note : flags.notes()) PrintNote(note);
  return RunDemo(options);
}

}  // namespace
}  // namespace lserve

// Our own code throws nothing; the standard library does when memory is out.
int main(int argc, char** argv) try {
  return lserve::Main(std::vector<std::string>(argv + 1, argv + argc));
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s: %s; is there enough free memory?\n", "lserve_demo", error.what());
  return 1;
}
