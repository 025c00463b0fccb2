#include "apps/run_command.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>

#include "apps/answer_report.h"
#include "apps/console.h"
#include "apps/explanation.h"
#include "apps/interrupt.h"
#include "apps/line_reader.h"
#include "apps/npy_file.h"
#include "apps/progress_bar.h"
#include "apps/prompts.h"
#include "apps/quantities.h"
#include "apps/token_file.h"
#include "base/mapped_file.h"
#include "base/strings.h"

namespace lserve {
namespace {

constexpr int64_t kDefaultMaxTokens = 256;

// One prompt, ready for the engine.
struct Prompt {
  std::optional<std::string> question;
  std::vector<int32_t> tokens;
};

// Follows what one answer reads.
struct Explanation {
  PromptMap map;
  Reading reading;

  std::vector<Passage> Passages() const {
    constexpr int kMostPassages = 5;
    return map.Passages(reading.Parts(kMostPassages));
  }
};

// Prints answers for people as they come: those of later requests wait for the earlier ones.
class AnswerPrinter {
 public:
  // `explain` gives what stands below an answer; may be null.
  AnswerPrinter(Output& output,
                const std::vector<Prompt>& prompts,
                bool has_text,
                std::function<std::string(size_t)> explain)
      : output_(output),
        prompts_(prompts),
        explain_(std::move(explain)),
        has_text_(has_text),
        to_terminal_(StdoutIsTerminal()),
        progress_("reading"),
        pending_(prompts.size()) {}

  Status OnEvent(size_t index, const RequestEvent& event) {
    if (event.token || event.finished) {
      progress_.Clear();
    } else if (index == current_) {
      progress_.Update(event.prefill_done, static_cast<int64_t>(prompts_[index].tokens.size()));
    }
    std::string piece = to_terminal_ ? WithoutControls(event.text) : event.text;
    if (!has_text_ && event.token) piece = StrCat(*event.token, " ");
    Pending& pending = pending_[index];
    pending.text += piece;
    if (event.finished) {
      if (explain_) {
        pending.text += StrCat("\n", explain_(index));
        pending.text.pop_back();  // the line break that ends every answer follows
      }
      pending.summary = SummaryLine(
          {.text = {}, .token_ids = {}, .finish_reason = *event.finished, .stats = event.stats});
    }
    return Flush();
  }

 private:
  struct Pending {
    std::string text;     // not printed yet
    std::string summary;  // set once finished
  };

  Status Flush() {
    while (current_ < pending_.size()) {
      Pending& pending = pending_[current_];
      if (pending.text.empty() && pending.summary.empty()) return Status();
      if (!header_printed_ && prompts_[current_].question) {
        LS_TRY(output_.Write(StrCat("Q: ", *prompts_[current_].question, "\nA: ")));
      }
      header_printed_ = true;
      LS_TRY(output_.Write(std::exchange(pending.text, "")));
      if (pending.summary.empty()) return Status();
      LS_TRY(output_.Write(prompts_[current_].question ? "\n\n" : "\n"));
      PrintToStderr(StrCat("[", pending.summary, "]\n"));
      header_printed_ = false;
      ++current_;
    }
    return Status();
  }

  Output& output_;
  const std::vector<Prompt>& prompts_;
  std::function<std::string(size_t)> explain_;
  bool has_text_;
  bool to_terminal_;
  ProgressBar progress_;
  std::vector<Pending> pending_;
  size_t current_ = 0;
  bool header_printed_ = false;
};

class Runner {
 public:
  Runner(RunOptions options, std::unique_ptr<Engine> engine)
      : options_(std::move(options)), engine_(std::move(engine)) {}

  // False: a question from stdin was reported and passed over.
  bool all_answered() const { return all_answered_; }

  // Writes the answers; the caller prints the error.
  Status Run() {
    if (!options_.is_completion()) {
      LS_TRY(NeedTokenizer("--document and --question"));
      documents_ = LS_TRY(ReadDocumentParts(options_.documents));
      conversation_.document = documents_.text;
      conversation_.system = options_.system;
      conversation_.date = options_.date;
    }
    // At the start for people; in a log last, since an error is to be the only line.
    const bool first = options_.is_interactive() || (StderrIsTerminal() && !options_.json);
    if (first) PrintStart();
    LS_TRY(options_.is_interactive() ? RunInteractive() : RunGiven());
    if (!first) PrintStart();
    const bool audited = engine_->config().audit_rate > 0;
    if (!options_.json) {
      if (audited) PrintToStderr(StrCat("[", AuditLine(engine_->audit()), "]\n"));
      return Status();
    }
    const Json json =
        AnswersToJson(answers_, engine_->info(), audited ? &engine_->audit() : nullptr);
    return output_.Write(WriteJson(json, {.indent = 1}) + "\n");
  }

 private:
  void PrintStart() const {
    for (const std::string& warning : engine_->info().warnings) PrintNote(warning);
    if (!options_.json) PrintMemory();
  }

  Status RunGiven() {
    std::vector<Prompt> prompts;
    if (options_.is_completion()) {
      prompts.push_back(Prompt{std::nullopt, LS_TRY(CompletionTokens())});
    }
    for (const std::string& question : options_.questions) {
      LS_TRY(CheckUtf8("--question", question));
      prompts.push_back(
          Prompt{question, LS_TRY(MakePrompt(*tokenizer(), conversation_, question))});
    }
    int64_t keep_prefix = 0;
    if (prompts.size() > 1) {
      std::vector<std::vector<int32_t>> all;
      for (const Prompt& prompt : prompts) all.push_back(prompt.tokens);
      keep_prefix = CommonPrefix(all);
    }
    return Ask(prompts, keep_prefix);
  }

  Status RunInteractive() {
    LineReader reader;
    const bool show_prompt = StdinIsTerminal() && StderrIsTerminal();
    bool is_first = true;
    for (;;) {
      if (show_prompt) PrintToStderr("question (Ctrl-D ends): ");
      const std::optional<std::string> line = LS_TRY(reader.Next());
      if (!line) {
        if (show_prompt) PrintToStderr("\n");
        break;
      }
      if (line->find_first_not_of(" \t") == std::string::npos) continue;
      // One bad question does not cost the document that was read for all.
      if (const Status status = CheckQuestion(*line); !status.ok()) {
        ReportError(status);
        all_answered_ = false;
        continue;
      }
      std::vector<Prompt> prompts(1);
      prompts[0] = {*line, LS_TRY(MakePrompt(*tokenizer(), conversation_, *line))};
      int64_t keep_prefix = 0;
      if (is_first) {
        keep_prefix = LS_TRY(PrefixForAnyQuestion(*tokenizer(), conversation_, prompts[0].tokens));
      }
      is_first = false;
      LS_TRY(Ask(prompts, keep_prefix));
      if (Interrupted()) break;
    }
    if (!answers_.empty() || !all_answered_ || Interrupted()) return Status();
    return Status(Code::kInvalidArgument,
                  "stdin: ended without a question, expected one per line; give --question TEXT");
  }

  // What can be wrong with one question from the terminal, and the next may be right.
  Status CheckQuestion(const std::string& question) {
    LS_TRY(CheckUtf8("stdin", question));
    Result<std::vector<int32_t>> tokens = MakePrompt(*tokenizer(), conversation_, question);
    if (!tokens.ok()) return tokens.status();
    return MakeRequest({question, std::move(tokens).value()}).status();
  }

  // Answers `prompts`; the first one keeps its prefix for the others.
  Status Ask(const std::vector<Prompt>& prompts, int64_t keep_prefix) {
    std::vector<Request> requests;
    for (const Prompt& prompt : prompts) {
      requests.push_back(LS_TRY(MakeRequest(prompt)));
    }
    requests[0].keep_prefix = keep_prefix;
    std::vector<std::unique_ptr<Explanation>> explanations;
    if (options_.explain) {
      for (size_t i = 0; i < prompts.size(); ++i) {
        explanations.push_back(LS_TRY(Explain(prompts[i], requests[i])));
      }
    }
    std::optional<NpyFile> logits;
    if (options_.logits_file) {
      logits.emplace(LS_TRY(NpyFile::Create(*options_.logits_file,
                                            static_cast<int64_t>(prompts[0].tokens.size()),
                                            engine_->model_config().vocab_size)));
      requests[0].on_prompt_logits = [&file = *logits](int64_t, const ConstMatrix& rows) {
        for (int64_t row = 0; row < rows.rows; ++row) {
          LS_TRY(file.AppendRow(rows.row<float>(row)));
        }
        return Status();
      };
    }

    AnswerHooks hooks;
    hooks.should_stop = Interrupted;
    std::optional<AnswerPrinter> printer;
    std::optional<ProgressBar> progress;
    if (options_.json) {
      progress.emplace("reading");
      hooks.on_event = [&](size_t index, const RequestEvent& event) {
        progress->Update(event.prefill_done, static_cast<int64_t>(prompts[index].tokens.size()));
        if (event.token) progress->Clear();
        return Status();
      };
    } else {
      std::function<std::string(size_t)> explain;
      if (options_.explain) {
        explain = [&](size_t index) { return PassagesText(explanations[index]->Passages()); };
      }
      printer.emplace(output_, prompts, tokenizer() != nullptr, std::move(explain));
      hooks.on_event = [&printer](size_t index, const RequestEvent& event) {
        return printer->OnEvent(index, event);
      };
    }
    std::vector<Answer> answers = LS_TRY(AnswerAll(*engine_, std::move(requests), hooks));
    for (size_t i = 0; i < answers.size(); ++i) {
      answers_.push_back(
          ReportedAnswer{prompts[i].question, tokenizer() != nullptr, std::move(answers[i])});
      if (options_.explain) answers_.back().passages = explanations[i]->Passages();
    }
    if (Interrupted()) return options_.json ? Status() : output_.Write("\n");
    return logits ? logits->Finish() : Status();
  }

  // Makes `request` tell where it reads.
  Result<std::unique_ptr<Explanation>> Explain(const Prompt& prompt, Request& request) {
    // A plain prompt has no name, and explains itself.
    Documents plain;
    if (options_.is_completion() && tokenizer() != nullptr) {
      plain.text = LS_TRY(tokenizer()->Decode(prompt.tokens));
      plain.parts.push_back({.source = options_.prompt_file, .begin = 0, .end = plain.text.size()});
    }
    PromptMap map = LS_TRY(
        PromptMap::Make(tokenizer(), prompt.tokens, options_.is_completion() ? plain : documents_));
    const Reading reading(static_cast<int64_t>(prompt.tokens.size()), map.first(), map.last());
    auto explanation = std::make_unique<Explanation>(Explanation{std::move(map), reading});
    request.on_attention = [to = &explanation->reading](const AttentionView& view) {
      return to->Observe(view);
    };
    return explanation;
  }

  Result<Request> MakeRequest(const Prompt& prompt) {
    const int64_t length = static_cast<int64_t>(prompt.tokens.size());
    const int64_t longest = engine_->info().max_model_len;
    if (length >= longest) {
      return Status(
          Code::kInvalidArgument,
          StrCat(Source(), ": the prompt has ", length, " tokens, expected at most ", longest - 1,
                 " (", engine_->info().model, " holds ", longest,
                 " with the answer); shorten it, or raise --max-model-len if the model allows"));
    }
    Request request;
    request.prompt = prompt.tokens;
    request.sampling = MakeSampling(options_.sampling, engine_->model_config().generation);
    const int64_t preferred = options_.logits_file ? 1 : kDefaultMaxTokens;
    request.max_tokens = options_.max_tokens.value_or(std::min(preferred, longest - length));
    request.ignore_eos = options_.ignore_eos;
    request.stop = options_.stop;
    request.stop_token_ids = options_.stop_token_ids;
    return request;
  }

  // For people: where the memory goes.
  void PrintMemory() const {
    const EngineInfo& info = engine_->info();
    PrintToStderr(StrCat("[", info.device, " | weights ", FormatBytes(info.weight_bytes),
                         info.quantization == "none" ? "" : StrCat(" ", info.quantization),
                         " | KV cache up to ", FormatBytes(info.kv_budget_bytes), " | workspace ",
                         FormatBytes(info.workspace_bytes), " | in all at most ",
                         FormatBytes(info.peak_bytes), "]\n"));
  }

  // What the user has to shorten.
  std::string Source() const {
    if (options_.tokens_file) return *options_.tokens_file;
    if (options_.prompt_file) return *options_.prompt_file;
    if (options_.prompt) return "--prompt";
    if (options_.documents.empty()) return "--question";
    return options_.documents.size() == 1
               ? StrCat(options_.documents[0], " with the question")
               : StrCat(options_.documents.size(), " documents with the question");
  }

  Result<std::vector<int32_t>> CompletionTokens() {
    if (options_.tokens_file) {
      const std::string text = LS_TRY(ReadTextStream(*options_.tokens_file));
      return ParseTokens(text, engine_->model_config().vocab_size, *options_.tokens_file);
    }
    LS_TRY(NeedTokenizer("--prompt and --prompt-file"));
    const std::string text =
        options_.prompt_file ? LS_TRY(ReadDocuments({*options_.prompt_file})) : *options_.prompt;
    EncodeOptions encode;
    encode.match_special_tokens = options_.match_special_tokens;
    std::vector<int32_t> ids = LS_TRY(tokenizer()->Encode(text, encode));
    if (ids.empty()) {
      return Status(Code::kInvalidArgument,
                    "--prompt: the text has no tokens, expected at least one; give some text");
    }
    return ids;
  }

  Status NeedTokenizer(const char* what) const {
    if (tokenizer() != nullptr) return Status();
    return Status(Code::kInvalidArgument,
                  StrCat(options_.engine.config.model_dir,
                         ": has no tokenizer.json, expected one "
                         "for ",
                         what, "; add the model's file, or give token ids with --tokens"));
  }

  const Tokenizer* tokenizer() const { return engine_->tokenizer(); }

  RunOptions options_;
  std::unique_ptr<Engine> engine_;
  Documents documents_;
  Conversation conversation_;
  std::vector<ReportedAnswer> answers_;
  bool all_answered_ = true;
  Output output_;
};

}  // namespace

int RunCommand(RunOptions options) {
  InstallSignalHandlers();
  Result<std::unique_ptr<Engine>> engine = Engine::Create(options.engine.config);
  if (!engine.ok()) return ReportError(engine.status());
  Runner runner(std::move(options), std::move(engine).value());
  const Status status = runner.Run();
  if (Interrupted()) return kExitInterrupt;
  if (!status.ok()) return ReportError(status);
  return runner.all_answered() ? kExitOk : kExitFailed;
}

}  // namespace lserve
