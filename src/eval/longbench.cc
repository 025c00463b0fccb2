#include "eval/longbench.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/strings.h"
#include "eval/chat_prompt.h"
#include "eval/metrics.h"

namespace lserve {
namespace {

std::string Filled(std::string_view pattern, const LongBenchRow& row) {
  std::string text;
  while (!pattern.empty()) {
    const size_t at = pattern.find('{');
    text += pattern.substr(0, at);
    if (at == std::string_view::npos) break;
    pattern.remove_prefix(at);
    const bool is_context = pattern.starts_with("{context}");
    text += is_context ? row.context : row.input;
    pattern.remove_prefix(is_context ? 9 : 7);  // {context} or {input}
  }
  return text;
}

double ScoreOne(const LongBenchDataset& dataset,
                const LongBenchRow& row,
                std::string_view answer,
                const std::string& reference) {
  switch (dataset.metric) {
    case LongBenchMetric::kQaF1:
      return QaF1(answer, reference);
    case LongBenchMetric::kQaF1Chinese:
      return QaF1Chinese(answer, reference);
    case LongBenchMetric::kRougeL:
      return RougeL(answer, reference);
    case LongBenchMetric::kRougeLChinese:
      return RougeLChinese(answer, reference);
    case LongBenchMetric::kClassification:
      return ClassificationScore(answer, reference, row.classes);
    case LongBenchMetric::kRetrieval:
      return RetrievalScore(answer, reference, "Paragraph ");
    case LongBenchMetric::kRetrievalChinese:
      return RetrievalScore(answer, reference, "\u6bb5\u843d");
    case LongBenchMetric::kCount:
      return CountScore(answer, reference);
    case LongBenchMetric::kCode:
      return CodeSimilarity(answer, reference);
  }
  return 0.0;
}

Status BadField(const std::string& place, const char* name, const Json* found, const char* type) {
  return Status(Code::kInvalidArgument,
                StrCat(place, ": \"", name, "\" is ",
                       found == nullptr ? "missing" : found->TypeName(), ", expected ", type,
                       "; a row has input, context, answers, length, dataset, all_classes, _id"));
}

Result<std::vector<std::string>> Texts(const Json* array,
                                       const std::string& place,
                                       const char* name) {
  std::vector<std::string> texts;
  if (array == nullptr || !array->is_array()) {
    return BadField(place, name, array, "an array of strings");
  }
  for (const Json& item : array->as_array()) {
    if (!item.is_string()) return BadField(place, name, &item, "an array of strings");
    texts.push_back(item.as_string());
  }
  return texts;
}

// The files to read: "<dataset>.jsonl" of a known dataset, in order of their names.
Result<std::vector<std::filesystem::path>> FindFiles(const LongBenchOptions& options) {
  std::vector<std::filesystem::path> files;
  for (const std::string& name : options.datasets) {
    if (FindLongBenchDataset(name) == nullptr) {
      return Status(Code::kInvalidArgument,
                    StrCat("--datasets: got \"", name,
                           "\", expected a dataset of LongBench such as hotpotqa, gov_report or "
                           "lcc_e; is it spelt as its file?"));
    }
    files.push_back(std::filesystem::path(options.directory) / (name + ".jsonl"));
  }
  if (!files.empty()) return files;
  std::error_code error;
  for (std::filesystem::directory_iterator at(options.directory, error), end; !error && at != end;
       at.increment(error)) {
    const std::filesystem::path& path = at->path();
    if (path.extension() == ".jsonl" && FindLongBenchDataset(path.stem().string()) != nullptr) {
      files.push_back(path);
    }
  }
  if (error) {
    return Status(Code::kNotFound,
                  StrCat("--data: ", options.directory, " can not be read (", error.message(),
                         "), expected a folder with LongBench's files; unpack its data.zip"));
  }
  if (files.empty()) {
    return Status(Code::kNotFound,
                  StrCat("--data: ", options.directory,
                         " has no file of LongBench, expected names such as hotpotqa.jsonl; unpack "
                         "its data.zip"));
  }
  std::sort(files.begin(), files.end());
  return files;
}

Result<std::vector<LongBenchRow>> ReadRows(const std::filesystem::path& path, int64_t most) {
  const std::string text = LS_TRY(ReadTextFile(path.string()));
  std::vector<LongBenchRow> rows;
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    if (most > 0 && static_cast<int64_t>(rows.size()) >= most) break;
    rows.push_back(LS_TRY(ParseLongBenchRow(line, StrCat(path.string(), ": line ", number))));
  }
  if (rows.empty()) {
    return Status(Code::kInvalidArgument,
                  StrCat(path.string(), ": has no row, expected JSON Lines; is it complete?"));
  }
  return rows;
}

}  // namespace

const LongBenchDataset* FindLongBenchDataset(std::string_view name) {
  if (name.ends_with("_e")) name.remove_suffix(2);
  for (const LongBenchDataset& dataset : LongBenchDatasets()) {
    if (name == dataset.name) return &dataset;
  }
  return nullptr;
}

Result<LongBenchRow> ParseLongBenchRow(std::string_view line, const std::string& place) {
  const Result<Json> parsed = ParseJson(line);
  if (!parsed.ok() || !parsed.value().is_object()) {
    return Status(Code::kInvalidArgument,
                  StrCat(place, " is no JSON object",
                         parsed.ok() ? "" : StrCat(" (", parsed.status().message(), ")"),
                         ", expected a row of LongBench; is the file complete?"));
  }
  const Json& json = parsed.value();
  LongBenchRow row;
  const auto text = [&](const char* name, std::string& out) {
    const Json* found = json.Find(name);
    if (found == nullptr || !found->is_string()) return BadField(place, name, found, "a string");
    out = found->as_string();
    return Status();
  };
  LS_TRY(text("input", row.input));
  LS_TRY(text("context", row.context));
  LS_TRY(text("_id", row.id));
  row.answers = LS_TRY(Texts(json.Find("answers"), place, "answers"));
  if (row.answers.empty()) {
    return BadField(place, "answers", nullptr, "at least one answer");
  }
  const Json* classes = json.Find("all_classes");
  if (classes == nullptr) return BadField(place, "all_classes", classes, "an array or null");
  if (!classes->is_null()) row.classes = LS_TRY(Texts(classes, place, "all_classes"));
  const Json* length = json.Find("length");
  if (length == nullptr || !length->is_int()) return BadField(place, "length", length, "a number");
  row.length = length->as_int();
  return row;
}

double ScoreLongBench(const LongBenchDataset& dataset,
                      const LongBenchRow& row,
                      std::string_view answer) {
  if (dataset.first_line_only) {
    while (answer.starts_with('\n')) answer.remove_prefix(1);
    answer = answer.substr(0, answer.find('\n'));
  }
  double best = 0.0;
  for (const std::string& reference : row.answers) {
    best = std::max(best, ScoreOne(dataset, row, answer, reference));
  }
  return best;
}

Result<std::string> LongBenchPrompt(const Tokenizer& tokenizer,
                                    const LongBenchDataset& dataset,
                                    const LongBenchRow& row,
                                    int64_t max_tokens) {
  std::string text = Filled(dataset.prompt, row);
  const std::vector<int32_t> tokens = LS_TRY(PlainTokens(tokenizer, text));
  if (static_cast<int64_t>(tokens.size()) <= max_tokens) return text;
  const size_t half = static_cast<size_t>(max_tokens / 2);
  const std::span<const int32_t> all(tokens);
  return StrCat(LS_TRY(tokenizer.Decode(all.first(half))),
                LS_TRY(tokenizer.Decode(all.last(half))));
}

Result<std::vector<TrialSpec>> LongBenchTrials(const Tokenizer& tokenizer,
                                               const LongBenchOptions& options) {
  std::vector<TrialSpec> specs;
  for (const std::filesystem::path& path : LS_TRY(FindFiles(options))) {
    const std::string name = path.stem().string();
    const LongBenchDataset* dataset = FindLongBenchDataset(name);
    std::vector<LongBenchRow> rows = LS_TRY(ReadRows(path, options.samples));
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto row = std::make_shared<const LongBenchRow>(std::move(rows[i]));
      const auto make = [&tokenizer, dataset, row,
                         most = options.max_prompt_tokens]() -> Result<TrialPrompt> {
        TrialPrompt prompt;
        // The chat template and the answer need room as well.
        constexpr int64_t kTemplateTokens = 64;
        const int64_t room = most - dataset->max_tokens - kTemplateTokens;
        const std::string text = LS_TRY(LongBenchPrompt(tokenizer, *dataset, *row, room));
        prompt.tokens = LS_TRY(EvalPrompt(tokenizer, text, "",
                                          dataset->chat ? ChatUse::kIfAvailable : ChatUse::kNever));
        prompt.max_tokens = dataset->max_tokens;
        // As published: samsum's answers would go on with another dialogue.
        if (std::string_view(dataset->name) == "samsum") prompt.stop = {"\n"};
        prompt.expected = row->answers;
        prompt.score = [dataset, row](const std::string& answer) {
          return ScoreLongBench(*dataset, *row, answer);
        };
        return prompt;
      };
      specs.push_back({.task = name,
                       .length = row->length,
                       .depth = {},
                       .sample = static_cast<int64_t>(i),
                       .make = make});
    }
  }
  return specs;
}

}  // namespace lserve
