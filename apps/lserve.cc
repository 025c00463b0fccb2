// The program `lserve`: parses the command line and calls the command.
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "apps/bench_command.h"
#include "apps/calibrate_command.h"
#include "apps/config_file.h"
#include "apps/console.h"
#include "apps/eval_command.h"
#include "apps/inspect_command.h"
#include "apps/interrupt.h"
#include "apps/run_command.h"
#include "apps/serve_command.h"
#include "apps/tokenize_command.h"
#include "base/log.h"
#include "base/strings.h"
#include "loader/json_fields.h"
#include "lserve/version.h"

namespace lserve {
namespace {

constexpr const char kAvailable[] =
    "available commands: run, serve, bench, eval, calibrate, tokenize, inspect";

constexpr const char kMainFooter[] = R"(
Examples:
  lserve run models/needle --document report.txt --question "What is the access code for Blue Harbor?"
  lserve run models/needle --document report.txt                 # asks for questions, one a line
  lserve run models/needle --prompt "Once upon a time" --max-tokens 40
  lserve eval niah models/needle                                 # are sparse answers dense answers?
  lserve calibrate MODEL_DIR                                     # which KV heads may stream?
  lserve serve models/needle                                     # OpenAI's API on port 8000
  lserve inspect models/needle                                   # what is in a model directory
  lserve tokenize models/needle --text "Hello" --json
  lserve bench --shape 1b                                        # how fast is this machine?

A MODEL_DIR is a Hugging Face checkpoint: config.json, *.safetensors, and for text tokenizer.json.
Exit status: 0 done, 1 a problem with the input or the machine, 2 wrong usage, 130 Ctrl-C.
`lserve COMMAND --help` lists the options of a command.)";

constexpr const char kRunFooter[] = R"(
Examples:
  # Two questions; the document is read once, the second answer starts at once.
  lserve run models/needle --document a.txt b.txt --question "First?" --question "Second?"
  # How exact is sparse attention here? Ask again with --attention dense.
  lserve run models/needle --document long.txt --question "..." --attention sparse --json
  # Half of the memory for the same document:
  lserve run models/needle --document long.txt --kv-cache-dtype int8 --question "..."
  # Logits of every position, for comparisons:
  lserve run models/needle --tokens ids.txt --logits-out logits.npy --max-tokens 8 --temperature 0

Sizes may be written as 128k or 2G (k = 1024). Answers go to stdout, one summary line per answer
goes to stderr. Names that vLLM and llama.cpp use are accepted too: --ctx-size, --temp, -n, -ctk.)";

constexpr const char kBenchFooter[] = R"(
Examples:
  # A model, dense and sparse side by side: prefill of 8K and 32K tokens, decode after them.
  lserve bench models/needle --prompt 8k,32k --depth 8k,32k
  # What would Llama-3.2-1B do here? No checkpoint is needed: speed does not depend on weights.
  lserve bench --shape llama-3.2-1b --prompt 2k --depth 2k --repeat 3
  # Four sequences at a time, in an 8-bit cache:
  lserve bench --shape 100m --depth 8k --batch 1,4 --kv-cache-dtype int8
  # The kernels alone, and every figure as JSON Lines:
  lserve bench --kernels --json kernels.jsonl

Columns: tok/s is the median of the runs, then the least and the most. first token: from the request
to its first token; for decode, of the prompt before it. KV: cache bytes of all sequences. attn time:
share of the time that attention and the choice of its pages take. of ceiling: arithmetic per second
against a loop in registers (FLOP), or bytes of weights, pages and statistics per second against a
plain read of memory (read). cores: processors that our threads had on average; well below --threads,
others took them. gauge: the slowest of the 20 ms loops around the runs, against the ceiling. load: the
load average. More: bench/README.md.)";

constexpr const char kCalibrateFooter[] = R"(
Examples:
  # Half of the heads of a model stream from now on; the file lands in its directory.
  lserve calibrate MODEL_DIR
  # As many as cost at most 0.01 nats per token, measured on own texts too:
  lserve calibrate MODEL_DIR --text contracts.txt --length 16k --max-loss 0.01
  # Beside DuoAttention's trained pattern, without writing into the model's directory:
  lserve calibrate MODEL_DIR --compare full_attention_heads.tsv --output heads.json --svg heads.svg

The model reads documents with dense attention. Each KV head's output is computed a second time with
sink and window only, where answers are written; what changes most has to stay a retrieval head. The
cut is then made for real and its answers are compared with dense ones. Cost: each document is read
once to measure, then once per cut that is checked. The same command gives the same file.)";

// One of `lserve eval`'s.
struct EvalLine {
  CLI::App* command = nullptr;
  EvalOptions options;
  std::unique_ptr<FlagSet> flags;
};

constexpr const char kServeFooter[] = R"(
Examples:
  lserve serve models/needle                       # http://127.0.0.1:8000/v1
  curl -s localhost:8000/v1/chat/completions -H "Content-Type: application/json" \
    -d '{"messages":[{"role":"user","content":"..."}],"stream":true}'
  lserve serve models/needle --host 0.0.0.0 --api-key-file keys.txt   # for others: with a key
  lserve serve models/needle --max-model-len 128k --kv-cache-dtype int8 --max-num-seqs 4

The server listens on this machine only unless --host says otherwise. Beside OpenAI's fields a
request may hold "sparse": {"attention": "dense", "token_budget": 8192}. /metrics is for Prometheus,
/health says that the process lives, /ready that the engine makes steps. SIGTERM ends it when what
is being answered is done; a second one at once. SIGHUP reads the certificate and the files of keys
again; a file that is wrong changes nothing.)";

// Everything CLI11 needs while it parses.
struct CommandLine {
  CLI::App app{"Answers questions about long documents with Llama-family models.", "lserve"};
  CLI::App* run = nullptr;
  CLI::App* bench = nullptr;
  CLI::App* eval = nullptr;
  CLI::App* calibrate = nullptr;
  CLI::App* serve = nullptr;
  CLI::App* tokenize = nullptr;
  CLI::App* inspect = nullptr;
  RunOptions run_options;
  BenchOptions bench_options;
  CalibrateOptions calibrate_options;
  ServeOptions serve_options;
  TokenizeOptions tokenize_options;
  InspectOptions inspect_options;
  std::unique_ptr<FlagSet> run_flags;
  std::unique_ptr<FlagSet> bench_flags;
  std::unique_ptr<FlagSet> calibrate_flags;
  std::unique_ptr<FlagSet> serve_flags;
  std::unique_ptr<FlagSet> tokenize_flags;
  std::unique_ptr<FlagSet> inspect_flags;
  std::array<EvalLine, std::size(kEvalKinds)> evals;
};

void AddModel(CLI::App* command, std::string& field) {
  command->add_option("MODEL_DIR,--model,-m,--model-path", field, "directory of the checkpoint")
      ->option_text("DIR");
}

void DeclareEval(CommandLine& line) {
  line.eval = line.app.add_subcommand("eval", "dense against sparse attention, on what it answers");
  line.eval->require_subcommand(0, 1);
  for (const EvalKind kind : kEvalKinds) {
    EvalLine& eval = line.evals[static_cast<size_t>(kind)];
    eval.command = line.eval->add_subcommand(std::string(Name(kind)), DescriptionOf(kind));
    eval.command->get_formatter()->column_width(38);
    eval.command->footer(ExamplesOf(kind));
    eval.options.kind = kind;
    AddModel(eval.command, eval.options.engine.config.model_dir);
    eval.flags = std::make_unique<FlagSet>(*eval.command);
    AddEvalFlags(*eval.flags, eval.options);
  }
}

void Declare(CommandLine& line) {
  line.app.set_version_flag("--version", StrCat("lserve ", kVersion));
  line.app.footer(kMainFooter);
  line.app.get_formatter()->column_width(38);
  line.run = line.app.add_subcommand("run", "ask questions about documents, or continue a prompt");
  AddModel(line.run, line.run_options.engine.config.model_dir);
  line.run_flags = std::make_unique<FlagSet>(*line.run);
  AddRunFlags(*line.run_flags, line.run_options);
  line.run->footer(kRunFooter);

  line.bench = line.app.add_subcommand("bench", "how fast a model or a shape runs on this machine");
  AddModel(line.bench, line.bench_options.engine.config.model_dir);
  line.bench_flags = std::make_unique<FlagSet>(*line.bench);
  AddBenchFlags(*line.bench_flags, line.bench_options);
  line.bench->footer(kBenchFooter);

  DeclareEval(line);

  line.calibrate = line.app.add_subcommand("calibrate", "find out which KV heads may stream");
  AddModel(line.calibrate, line.calibrate_options.engine.config.model_dir);
  line.calibrate_flags = std::make_unique<FlagSet>(*line.calibrate);
  AddCalibrateFlags(*line.calibrate_flags, line.calibrate_options);
  line.calibrate->footer(kCalibrateFooter);

  line.serve = line.app.add_subcommand("serve", "answer over HTTP, as OpenAI's API");
  AddModel(line.serve, line.serve_options.engine.config.model_dir);
  line.serve_flags = std::make_unique<FlagSet>(*line.serve);
  AddServeFlags(*line.serve_flags, line.serve_options);
  line.serve->footer(kServeFooter);

  line.tokenize = line.app.add_subcommand("tokenize", "text to token ids and back");
  AddModel(line.tokenize, line.tokenize_options.model_dir);
  line.tokenize_flags = std::make_unique<FlagSet>(*line.tokenize);
  AddTokenizeFlags(*line.tokenize_flags, line.tokenize_options);

  line.inspect = line.app.add_subcommand("inspect", "what is in a model directory");
  AddModel(line.inspect, line.inspect_options.model_dir);
  line.inspect_flags = std::make_unique<FlagSet>(*line.inspect);
  AddInspectFlags(*line.inspect_flags, line.inspect_options);
}

// The first word, if it is no flag and no command: CLI11's own message would be a riddle.
int CheckCommand(const std::string& word) {
  for (const char* known : {"run", "serve", "bench", "eval", "calibrate", "tokenize", "inspect"}) {
    if (word == known) return kExitOk;
  }
  if (word.starts_with("-")) return kExitOk;
  return ReportUsage(StrCat("unknown command ", Quoted(word), "; ", kAvailable));
}

// The options of the command that the arguments call, or null.
const FlagSet* FlagsOf(const CommandLine& line, const std::vector<std::string>& arguments) {
  if (arguments.empty()) return nullptr;
  if (arguments[0] == "run") return line.run_flags.get();
  if (arguments[0] == "bench") return line.bench_flags.get();
  if (arguments[0] == "eval" && arguments.size() > 1) {
    for (const EvalLine& eval : line.evals) {
      if (eval.command->get_name() == arguments[1]) return eval.flags.get();
    }
    return nullptr;
  }
  if (arguments[0] == "calibrate") return line.calibrate_flags.get();
  if (arguments[0] == "serve") return line.serve_flags.get();
  if (arguments[0] == "tokenize") return line.tokenize_flags.get();
  if (arguments[0] == "inspect") return line.inspect_flags.get();
  return nullptr;
}

// `lserve eval` without a known word after it.
int ReportEvalKind(const CLI::App& eval) {
  const std::vector<std::string> extras = eval.remaining();
  return ReportUsage(
      StrCat("eval: got ", extras.empty() ? "nothing after it" : Quoted(extras[0]),
             ", expected niah, ruler, longbench or fidelity; see lserve eval --help"));
}

int ReportParseError(const CLI::ParseError& error, const CommandLine& line) {
  const CLI::App* command = nullptr;
  const FlagSet* flags = nullptr;
  if (line.run->parsed()) command = line.run, flags = line.run_flags.get();
  if (line.bench->parsed()) command = line.bench, flags = line.bench_flags.get();
  if (line.calibrate->parsed()) command = line.calibrate, flags = line.calibrate_flags.get();
  if (line.serve->parsed()) command = line.serve, flags = line.serve_flags.get();
  if (line.tokenize->parsed()) command = line.tokenize, flags = line.tokenize_flags.get();
  if (line.inspect->parsed()) command = line.inspect, flags = line.inspect_flags.get();
  const char* group = "";
  for (const EvalLine& eval : line.evals) {
    if (eval.command->parsed()) command = eval.command, flags = eval.flags.get(), group = "eval ";
  }
  if (command == nullptr && line.eval->parsed()) return ReportEvalKind(*line.eval);
  if (command == nullptr) return ReportUsage(StrCat(error.what(), "; see lserve --help"));
  const std::string help = StrCat("see lserve ", group, command->get_name(), " --help");
  const std::vector<std::string> extras = command->remaining();
  if (extras.empty()) return ReportUsage(StrCat(error.what(), "; ", help));
  const bool is_flag = extras[0].starts_with("-");
  const std::string closest = is_flag ? flags->Closest(extras[0]) : "";
  return ReportUsage(StrCat(is_flag ? "unknown option " : "unexpected argument ", Quoted(extras[0]),
                            closest.empty() ? "" : StrCat("; did you mean ", closest, "?"),
                            closest.empty() ? "; " : " ", help));
}

// Prints the problem of a command's flags, or its notes. The exit status, kExitOk to go on.
int CheckFlags(const FlagSet& flags, const std::string& model_dir, bool needs_model) {
  if (!flags.status().ok()) return ReportUsage(flags.status().message());
  if (needs_model && model_dir.empty()) {
    return ReportUsage(
        "MODEL_DIR is missing, expected the directory of a checkpoint; put it right after the "
        "command, or after --model");
  }
  for (const std::string& note : flags.notes()) PrintNote(note);
  return kExitOk;
}

int Run(CommandLine& line) {
  RunOptions& options = line.run_options;
  const bool needs_model = !options.print_config;
  const int flags = CheckFlags(*line.run_flags, options.engine.config.model_dir, needs_model);
  if (flags != kExitOk) return flags;
  if (const Status status = FinishRunOptions(options); !status.ok()) {
    return ReportUsage(status.message());
  }
  if (!options.print_config) return RunCommand(std::move(options));
  Output output;
  const Status status = output.Write(WriteJson(line.run_flags->Effective(), {.indent = 1}) + "\n");
  return status.ok() ? kExitOk : ReportError(status);
}

int Bench(CommandLine& line) {
  const int flags = CheckFlags(*line.bench_flags, "", false);
  if (flags != kExitOk) return flags;
  const Status status = FinishBenchOptions(line.bench_options);
  return status.ok() ? BenchCommand(line.bench_options) : ReportUsage(status.message());
}

int Eval(EvalLine& line) {
  EvalOptions& options = line.options;
  const int flags = CheckFlags(*line.flags, options.engine.config.model_dir, true);
  if (flags != kExitOk) return flags;
  const Status status = FinishEvalOptions(options);
  return status.ok() ? EvalCommand(std::move(options)) : ReportUsage(status.message());
}

int Calibrate(CommandLine& line) {
  CalibrateOptions& options = line.calibrate_options;
  const int flags = CheckFlags(*line.calibrate_flags, options.engine.config.model_dir, true);
  if (flags != kExitOk) return flags;
  const Status status = FinishCalibrateOptions(options);
  return status.ok() ? CalibrateCommand(std::move(options)) : ReportUsage(status.message());
}

int Serve(CommandLine& line) {
  ServeOptions& options = line.serve_options;
  const bool needs_model = !options.print_config;
  const int flags = CheckFlags(*line.serve_flags, options.engine.config.model_dir, needs_model);
  if (flags != kExitOk) return flags;
  if (const Status status = FinishServeOptions(options); !status.ok()) {
    return ReportUsage(status.message());
  }
  if (!options.print_config) return ServeCommand(std::move(options));
  Output output;
  const Status status =
      output.Write(WriteJson(line.serve_flags->Effective(), {.indent = 1}) + "\n");
  return status.ok() ? kExitOk : ReportError(status);
}

int Dispatch(CommandLine& line) {
  if (line.run->parsed()) return Run(line);
  if (line.bench->parsed()) return Bench(line);
  for (EvalLine& eval : line.evals) {
    if (eval.command->parsed()) return Eval(eval);
  }
  if (line.eval->parsed()) return ReportEvalKind(*line.eval);
  if (line.calibrate->parsed()) return Calibrate(line);
  if (line.serve->parsed()) return Serve(line);
  if (line.tokenize->parsed()) {
    const TokenizeOptions& options = line.tokenize_options;
    const int flags = CheckFlags(*line.tokenize_flags, options.model_dir, true);
    if (flags != kExitOk) return flags;
    const Status status = FinishTokenizeOptions(options);
    return status.ok() ? TokenizeCommand(options) : ReportUsage(status.message());
  }
  if (line.inspect->parsed()) {
    const InspectOptions& options = line.inspect_options;
    const int flags = CheckFlags(*line.inspect_flags, options.model_dir, !options.support);
    return flags == kExitOk ? InspectCommand(options) : flags;
  }
  return ReportUsage(StrCat("no command given; ", kAvailable, "; see lserve --help"));
}

int Main(const std::vector<std::string>& arguments) {
  SetLogLevel(LogLevel::kWarning);
  IgnoreWriteSignals();
  if (!arguments.empty()) {
    const int command = CheckCommand(arguments[0]);
    if (command != kExitOk) return command;
  }
  CommandLine line;
  Declare(line);
  std::vector<std::string> expanded;
  for (const std::string& argument : arguments) {
    // An empty value after `=`: CLI11 would take the next argument instead.
    const bool is_empty = argument.starts_with("--") && argument.find('=') == argument.size() - 1;
    expanded.push_back(
        ExpandShortName(is_empty ? argument.substr(0, argument.size() - 1) : argument));
    if (is_empty) expanded.emplace_back();
  }
  if (const FlagSet* flags = FlagsOf(line, arguments)) {
    expanded = flags->OneValueEach(expanded);
    if (arguments[0] == "serve") {
      if (const Status status = ExpandConfigFile(*flags, &expanded); !status.ok())
        return ReportUsage(status.message());
    }
  }
  std::reverse(expanded.begin(), expanded.end());  // as CLI11 wants it
  try {
    line.app.parse(expanded);
  } catch (const CLI::Success& success) {  // --help, --version
    std::ostringstream text;
    line.app.exit(success, text);
    Output output;
    const Status status = output.Write(text.str());
    return status.ok() ? kExitOk : ReportError(status);
  } catch (const CLI::ParseError& error) {
    return ReportParseError(error, line);
  }
  return Dispatch(line);
}

}  // namespace
}  // namespace lserve

// Our own code throws nothing; the standard library does when memory is out.
int main(int argc, char** argv) try {
  return lserve::Main(std::vector<std::string>(argv + 1, argv + argc));
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s: %s; is there enough free memory?\n", "lserve", error.what());
  return 1;
}
