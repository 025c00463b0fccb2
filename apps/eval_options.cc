#include "apps/eval_options.h"

#include <algorithm>
#include <utility>

#include "apps/quantities.h"
#include "base/strings.h"

namespace lserve {
namespace {

Status Usage(std::string message) {
  return Status(Code::kInvalidArgument, std::move(message));
}

// Names of an enumeration; `all` is what the message offers.
template <class T, class Parse>
Status ParseNames(const std::string& list,
                  const char* flag,
                  Parse parse,
                  const std::string& all,
                  std::vector<T>& out) {
  return ForEachValue(list, flag, [&](const std::string& part) {
    const std::optional<T> value = parse(part);
    if (!value) return Usage(StrCat(flag, ": got \"", part, "\", expected of ", all));
    if (std::find(out.begin(), out.end(), *value) == out.end()) out.push_back(*value);
    return Status();
  });
}

template <class Range>
std::string AllNames(const Range& values) {
  std::string names;
  for (const auto value : values) names += StrCat(names.empty() ? "" : "|", Name(value));
  return names;
}

Status ParseLengths(EvalOptions& out) {
  constexpr int64_t kShortest = 256, kLongest = int64_t{1} << 30;
  return ForEachValue(out.lengths_text, "--lengths", [&](const std::string& part) {
    out.lengths.push_back(LS_TRY(ParseSize(part, kShortest, kLongest, "--lengths")));
    return Status();
  });
}

void AddGridFlags(FlagSet& flags, EvalOptions& out) {
  flags.Text("--lengths", out.lengths_text, "LIST",
             "tokens of prompt and answer together, as 4k,16k,128k (k = 1024)");
  flags.Integer("--samples", out.samples, 1, "COUNT", "prompts per cell, from different seeds");
  flags.Size("--seed,-s", out.seed, 0, {}, "NUMBER", "of what is random in the prompts");
  flags.Text("--haystack", out.haystack_file, "FILE",
             "UTF-8 text to hide RULER's needles in. Default: made-up manual pages");
}

void AddOutputFlags(FlagSet& flags, EvalOptions& out) {
  flags.Group("Results");
  flags.Text("--json", out.json_file, "FILE", "write everything as one JSON object");
  flags.Text("--svg", out.svg_file, "FILE", "draw the table as a picture");
  flags.Text("--resume", out.log_file, "FILE",
             "keep every finished cell in this file (JSON Lines), and skip those that are in it");
}

}  // namespace

std::string_view Name(EvalKind kind) {
  constexpr std::string_view kNames[] = {"niah", "ruler", "longbench", "fidelity"};
  return kNames[static_cast<size_t>(kind)];
}

const char* DescriptionOf(EvalKind kind) {
  constexpr const char* kTexts[] = {
      "facts hidden in documents: lengths x depths",
      "RULER's synthetic tasks: needles, variables, common and frequent words, QA",
      "LongBench's data with its prompts and metrics",
      "logits, sparse against dense, at every position of a text",
  };
  return kTexts[static_cast<size_t>(kind)];
}

const char* ExamplesOf(EvalKind kind) {
  constexpr const char* kTexts[] = {
      R"(
Examples:
  lserve eval niah models/needle --lengths 4k,16k --svg niah.svg
  lserve eval niah models/needle --lengths 32k --sparse-token-budget 1024 --resume niah.jsonl

Every prompt is asked twice, with dense and with sparse attention; counters must show that each ran.)",
      R"(
Examples:
  lserve eval ruler MODEL_DIR --lengths 4k,16k --samples 10 --json ruler.json
  lserve eval ruler MODEL_DIR --tasks qa --data squad-dev.json

Tasks: niah_single_1-3, niah_multikey_1-3, niah_multivalue, niah_multiquery, vt, cwe, fwe, and qa with
--data. Words and essays are our own, so figures compare with each other more than with the paper.)",
      R"(
Examples:
  lserve eval longbench MODEL_DIR --data LongBench/data --rows 20 --resume longbench.jsonl
  lserve eval longbench MODEL_DIR --data LongBench/data --datasets hotpotqa,gov_report

Chinese answers are compared character by character, not by jieba's words as published.)",
      R"(
Examples:
  lserve eval fidelity MODEL_DIR --document book.txt --budgets 256,1024,4096 --ratios 0,0.5
  lserve eval fidelity models/needle --document manual.txt --svg fidelity.svg

The text is read (prefill) and its end is decoded token by token, dense and sparse, at equal tokens.)",
  };
  return kTexts[static_cast<size_t>(kind)];
}

void AddEvalFlags(FlagSet& flags, EvalOptions& out) {
  // The sparse arm; what `auto` leaves dense below --sparse-min-context is not what is asked here.
  out.engine.attention_mode = "sparse";
  out.engine.config.max_num_seqs = 1;
  flags.Group("What to measure");
  switch (out.kind) {
    case EvalKind::kNiah:
      out.lengths_text = "4k,8k,16k";
      AddGridFlags(flags, out);
      flags.Text("--depths", out.depths_text, "LIST", "where the fact stands: 0 first, 1 last");
      flags.Text("--kinds", out.kinds_text, "LIST",
                 "single: one fact; multikey: among others of its form; multivalue: several values "
                 "of one key; multiquery: several keys at once");
      flags.Choice("--wording", out.wording, {"auto", "needle", "ruler"},
                   "needle: what models/needle was trained on; ruler: RULER's. auto: needle if the "
                   "model's name begins so");
      break;
    case EvalKind::kRuler:
      out.lengths_text = "4k";
      AddGridFlags(flags, out);
      flags.Text("--tasks", out.tasks_text, "LIST", "Default: all; qa only with --data");
      flags.Text("--data", out.data, "FILE", "questions for the task qa: JSON as SQuAD's");
      break;
    case EvalKind::kLongBench:
      flags.Text("--data", out.data, "DIR", "folder with hotpotqa.jsonl and so on");
      flags.Text("--datasets", out.datasets_text, "LIST", "Default: all whose files are there");
      flags.Integer("--rows", out.row_limit, 0, "COUNT", "of each dataset, from the first; 0: all");
      flags.Size("--length", out.cut_length, 256, {"auto", "0"}, "TOKENS",
                 "longer prompts lose their middle; auto: what the model holds");
      break;
    case EvalKind::kFidelity:
      flags.Texts("--document", out.documents, "FILE", "UTF-8 text; several are measured each");
      flags.Size("--length", out.cut_length, 16, {"auto", "0"}, "TOKENS",
                 "use only the beginning of each text; auto: all of it");
      flags.Integer("--decode-tokens", out.decode_tokens, 2, "TOKENS",
                    "of the end of each text, decoded one by one");
      flags.Text("--budgets", out.budgets_text, "LIST",
                 "tokens that a retrieval head reads per decode step");
      flags.Text("--ratios", out.ratios_text, "LIST",
                 "shares of streaming heads, cut by the scores of the file. Default: the file's "
                 "own choice");
      break;
  }
  AddOutputFlags(flags, out);
  AddEngineFlags(flags, out.engine);
}

Status FinishEvalOptions(EvalOptions& out) {
  LS_TRY(FinishEngineFlags(out.engine));
  if (out.engine.config.attention.mode == AttentionMode::kDense) {
    return Usage(
        "--attention: got dense, expected sparse or auto; the dense arm always runs beside it");
  }
  for (const auto& [flag, file] :
       {std::pair("--json", out.json_file), std::pair("--svg", out.svg_file),
        std::pair("--resume", out.log_file)}) {
    if (file && file->empty()) {
      return Usage(StrCat(flag, ": got an empty name, expected a file; is a variable unset?"));
    }
  }
  if (!out.lengths_text.empty()) LS_TRY(ParseLengths(out));
  switch (out.kind) {
    case EvalKind::kNiah:
      LS_TRY(ForEachValue(out.depths_text, "--depths", [&](const std::string& part) {
        out.depths.push_back(LS_TRY(ParseNumber(part, 0.0, 1.0, "--depths")));
        return Status();
      }));
      return ParseNames(out.kinds_text, "--kinds", ParseNiahKind, AllNames(kNiahKinds), out.kinds);
    case EvalKind::kRuler:
      if (!out.tasks_text.empty()) {
        LS_TRY(ParseNames(out.tasks_text, "--tasks", ParseRulerTask, AllNames(kRulerTasks),
                          out.tasks));
      } else {
        for (const RulerTask task : kRulerTasks) {
          if (task != RulerTask::kQa || out.data) out.tasks.push_back(task);
        }
      }
      if (std::find(out.tasks.begin(), out.tasks.end(), RulerTask::kQa) != out.tasks.end() &&
          !out.data) {
        return Usage("--tasks: got qa without data, expected --data FILE; SQuAD's dev set will do");
      }
      return Status();
    case EvalKind::kLongBench:
      if (!out.data || out.data->empty()) {
        return Usage("--data is missing, expected the folder with LongBench's .jsonl files");
      }
      if (out.datasets_text.empty()) return Status();
      return ForEachValue(out.datasets_text, "--datasets", [&](const std::string& part) {
        out.datasets.push_back(part);
        return Status();
      });
    case EvalKind::kFidelity:
      if (out.documents.empty()) {
        return Usage("--document is missing, expected a text to compare on; give --document FILE");
      }
      LS_TRY(ForEachValue(out.budgets_text, "--budgets", [&](const std::string& part) {
        AttentionSettings settings = out.engine.config.attention;
        settings.token_budget =
            static_cast<int>(LS_TRY(ParseSize(part, 1, int64_t{1} << 30, "--budgets")));
        const std::vector<std::string> problems = settings.Problems();
        if (!problems.empty()) return Usage(StrCat("--budgets: ", problems[0]));
        out.budgets.push_back(settings.token_budget);
        return Status();
      }));
      if (out.ratios_text.empty()) return Status();
      if (out.engine.config.streaming_ratio) {
        return Usage("--ratios: got --streaming-ratio as well, expected one of them");
      }
      return ForEachValue(out.ratios_text, "--ratios", [&](const std::string& part) {
        out.ratios.push_back(LS_TRY(ParseNumber(part, 0.0, 1.0, "--ratios")));
        return Status();
      });
  }
  return Status();
}

}  // namespace lserve
