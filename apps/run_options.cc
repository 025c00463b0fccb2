#include "apps/run_options.h"

#include <ctime>
#include <filesystem>

#include "base/strings.h"

namespace lserve {
ChatDate Today() {
  const std::time_t now = std::time(nullptr);
  std::tm local = {};
  localtime_r(&now, &local);
  ChatDate date;
  date.year = local.tm_year + 1900;
  date.month = local.tm_mon + 1;
  date.day = local.tm_mday;
  return date;
}

namespace {

Status Usage(std::string message) {
  return Status(Code::kInvalidArgument, std::move(message));
}

Status CheckPromptSources(const RunOptions& options) {
  const int completions =
      (options.prompt ? 1 : 0) + (options.prompt_file ? 1 : 0) + (options.tokens_file ? 1 : 0);
  if (completions > 1) {
    return Usage(
        "--prompt, --prompt-file and --tokens: got more than one, expected one; each is the whole "
        "prompt");
  }
  if (completions == 1 &&
      (!options.questions.empty() || !options.documents.empty() || options.system)) {
    return Usage(
        "--prompt, --prompt-file or --tokens: got --document, --question or --system as well, "
        "expected one kind of prompt; ask about documents with --document and --question");
  }
  for (const std::string& question : options.questions) {
    if (question.find_first_not_of(" \t\r\n") == std::string::npos) {
      return Usage("--question: got an empty text, expected a question; give it in quotes");
    }
  }
  if (options.logits_file && options.logits_file->empty()) {
    return Usage("--logits-out: got an empty name, expected a file to write; is a variable unset?");
  }
  for (const std::optional<std::string>& input : {options.tokens_file, options.prompt_file}) {
    std::error_code ignored;
    if (options.logits_file && input &&
        std::filesystem::equivalent(*options.logits_file, *input, ignored)) {
      return Usage(StrCat("--logits-out: got ", *options.logits_file,
                          ", which is the prompt, expected another file; it would be overwritten"));
    }
  }
  if (options.logits_file && !options.is_completion() && options.questions.size() != 1) {
    return Usage(
        StrCat("--logits-out: got ", options.questions.size(),
               " questions, expected one prompt; use --tokens, --prompt or one --question"));
  }
  return Status();
}

}  // namespace

void AddRunFlags(FlagSet& flags, RunOptions& out) {
  // One after another, so that the printed times are those of one question alone.
  out.engine.config.max_num_seqs = 1;
  flags.Group("What to ask");
  flags.Texts("--document", out.documents, "FILE",
              "UTF-8 text to ask about; several are joined by a blank line");
  flags.Texts("--question", out.questions, "TEXT",
              "each is a fresh conversation about the documents, which are read once. Without any, "
              "questions come from stdin, one a line");
  flags.Text("--system,--system-prompt", out.system, "TEXT", "system message before the document");
  flags.Text("--prompt,-p", out.prompt, "TEXT",
             "continue this text instead: no chat template, special tokens added around it");
  flags.Text("--prompt-file,-f,--file", out.prompt_file, "FILE", "the same from a file");
  flags.Text("--tokens", out.tokens_file, "FILE",
             "continue these token ids: decimal, separated by white space; needs no tokenizer");
  flags.Switch("--match-special-tokens", out.match_special_tokens,
               "with --prompt: text such as <|eot_id|> becomes that token");
  flags.Text("--chat-date", out.date_text, "YYYY-MM-DD",
             "the date that some chat templates write. Default: today");
  flags.Group("Answer");
  flags.Integer("--max-tokens,--predict,--n-predict,-n,--max-new-tokens", out.max_tokens, 1,
                "TOKENS", "longest answer. Default: 256, or what fits; 1 with --logits-out");
  flags.Switch("--ignore-eos", out.ignore_eos, "do not stop at the model's end tokens");
  flags.Texts("--stop", out.stop, "TEXT", "the answer ends before this text");
  flags.Integers("--stop-token-id", out.stop_token_ids, "ID", "the answer ends at this token");
  flags.Text("--logits-out", out.logits_file, "FILE.npy",
             "write float32 logits of every prompt position, [tokens, vocabulary]");
  flags.Switch("--explain", out.explain,
               "name the passages that the retrieval heads attended most while the answer was "
               "written");
  flags.Number("--audit-rate", out.engine.config.audit_rate, 0.0, 1.0, "SHARE",
               "measure what sparse attention leaves out, in this share of the decode steps and "
               "questions; such a step is computed twice, and the times include it");
  flags.Switch("--json", out.json, "one JSON object on stdout and nothing else");
  flags.Switch("--print-config", out.print_config,
               "print the options in effect as JSON, and do nothing else");
  AddSamplingFlags(flags, out.sampling);
  AddEngineFlags(flags, out.engine);
}

Status FinishRunOptions(RunOptions& out) {
  LS_TRY(FinishEngineFlags(out.engine));
  LS_TRY(CheckPromptSources(out));
  out.date = out.date_text ? LS_TRY(ParseChatDate(*out.date_text)) : Today();
  const std::vector<std::string> problems = MakeSampling(out.sampling, {}).Problems();
  if (!problems.empty()) return Usage(problems[0]);
  return Status();
}

}  // namespace lserve
