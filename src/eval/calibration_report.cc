// What a calibration says: the file, the terminal's view, the picture.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/strings.h"
#include "eval/calibration.h"
#include "eval/svg.h"
#include "eval/text_table.h"

namespace lserve {
namespace {

constexpr int64_t kMostColumns = 16;  // of a table of scores on a terminal

// A member of [layers * KV heads] as rows.
template <class ToJson>
Json Grid(const StreamingHeadsFile& file, ToJson to_json) {
  Json::Array rows;
  for (int64_t layer = 0; layer < file.layers; ++layer) {
    Json::Array row;
    for (int64_t head = 0; head < file.kv_heads; ++head) {
      row.push_back(to_json(static_cast<size_t>(layer * file.kv_heads + head)));
    }
    rows.push_back(Json(std::move(row)));
  }
  return Json(std::move(rows));
}

// Five digits are more than the samples carry, and keep the file readable.
Json Rounded(double value) {
  return Json(std::round(value * 1e5) / 1e5);
}

std::string MethodOf(const CalibrationOptions& options) {
  const std::string samples = StrCat("mean over ", options.samples.size(),
                                     " samples, questions and texts weighing the same");
  if (options.rank == HeadRank::kAblation) {
    return StrCat(
        "lserve calibrate --rank ablation: KL(dense || this head alone sees sink and "
        "window) in nats per token; ",
        samples);
  }
  return StrCat(
      "lserve calibrate: attention outside sink and window times relative change of the output "
      "without it, largest of a sample's queries; ",
      samples);
}

Json CheckToJson(const CutCheck& check) {
  const auto kl = [](const std::optional<double>& value) { return value ? Json(*value) : Json(); };
  return Json(Json::Object{{"heads", Json(check.name)},
                           {"streaming_kv_heads", Json(check.streaming_heads)},
                           {"answers", Json(check.answers)},
                           {"right", Json(check.right)},
                           {"answer_kl", kl(check.answer_kl)},
                           {"text_kl", kl(check.text_kl)}});
}

std::string HeadNames(const std::vector<size_t>& heads, int64_t kv_heads) {
  std::string names;
  for (const size_t head : heads) {
    names += StrCat(names.empty() ? "" : " ", static_cast<int64_t>(head) / kv_heads, ".",
                    static_cast<int64_t>(head) % kv_heads);
  }
  return names.empty() ? "none" : names;
}

float LargestScore(const StreamingHeadsFile& file) {
  return std::max(1e-9f, *std::max_element(file.score.begin(), file.score.end()));
}

std::string HeatMapText(const StreamingHeadsFile& file) {
  constexpr std::string_view kRamp = " .:-=+*#%@";
  const float largest = LargestScore(file);
  std::string text =
      StrCat("score of each KV head, in steps from 0 to ", Fixed(largest, 3), ": \"", kRamp,
             "\"; [x] retrieval, others stream\nlayers down, KV heads across\n");
  for (int64_t layer = 0; layer < file.layers; ++layer) {
    const std::string number = StrCat(layer);
    std::string line =
        StrCat(std::string(4 - std::min<size_t>(3, number.size()), ' '), number, " |");
    for (int64_t head = 0; head < file.kv_heads; ++head) {
      const size_t at = static_cast<size_t>(layer * file.kv_heads + head);
      const float share = std::max(0.0f, file.score[at]) / largest;
      const char cell = kRamp[std::min<size_t>(9, static_cast<size_t>(share * 9.999f))];
      const bool retrieval = (*file.kind)[at] == 1;
      line += StrCat(retrieval ? "[" : " ", std::string(1, cell), retrieval ? "]" : " ");
    }
    text += line + "|\n";
  }
  return text;
}

std::string ScoreTable(const CalibrationResult& result) {
  const StreamingHeadsFile& file = result.file;
  if (file.kv_heads > kMostColumns) return "";
  std::vector<std::vector<std::string>> rows = {{"layer"}};
  for (int64_t head = 0; head < file.kv_heads; ++head) rows[0].push_back(StrCat("head ", head));
  for (int64_t layer = 0; layer < file.layers; ++layer) {
    rows.push_back({StrCat(layer)});
    for (int64_t head = 0; head < file.kv_heads; ++head) {
      const size_t at = static_cast<size_t>(layer * file.kv_heads + head);
      rows.back().push_back(StrCat(Fixed(file.score[at], 3), " ",
                                   Percent(result.heads[at].outside, 0),
                                   (*file.kind)[at] == 1 ? " R" : "  "));
    }
  }
  return StrCat("\n", TextTable(rows),
                "score, share of the attention outside sink and window, R: retrieval\n");
}

// What each head costs alone, worst first, as far as it costs anything to speak of.
std::string AblationText(const CalibrationResult& result) {
  if (result.alone.empty()) return "";
  constexpr size_t kMostLines = 12;
  std::vector<size_t> order(result.alone.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return result.file.score[a] > result.file.score[b]; });
  std::vector<std::vector<std::string>> rows = {
      {"alone", "kind", "answers right", "KL, answers", "KL, texts"}};
  const auto kl = [](const std::optional<double>& value) { return value ? Fixed(*value, 5) : "-"; };
  for (size_t i = 0; i < std::min(kMostLines, order.size()); ++i) {
    const CutCheck& check = result.alone[order[i]];
    rows.push_back({check.name, (*result.file.kind)[order[i]] == 1 ? "retrieval" : "streaming",
                    check.answers > 0 ? StrCat(check.right, " of ", check.answers) : "-",
                    kl(check.answer_kl), kl(check.text_kl)});
  }
  return StrCat("\n", TextTable(rows), "What the samples lose when this head alone streams; the ",
                rows.size() - 1, " that cost most of ", result.alone.size(), ".\n");
}

std::string CheckTable(const CalibrationResult& result) {
  std::vector<std::vector<std::string>> rows = {
      {"heads", "streaming", "answers right", "KL, answers", "KL, texts"}};
  const auto kl = [](const std::optional<double>& value) { return value ? Fixed(*value, 5) : "-"; };
  for (const CutCheck& check : result.checks) {
    rows.push_back({check.name, StrCat(check.streaming_heads, " of ", result.file.score.size()),
                    check.answers > 0 ? StrCat(check.right, " of ", check.answers) : "-",
                    kl(check.answer_kl), kl(check.text_kl)});
  }
  return StrCat("\n", TextTable(rows),
                "Each cut ran as it will be served, retrieval heads reading everything; answers: "
                "those that dense attention\ngives right; KL(dense || cut) in nats per token.\n");
}

std::string ComparisonText(const CalibrationResult& result, const CalibrationOptions& options) {
  if (!options.other) return "";
  const HeadComparison c = CompareHeads(result.file, *options.other);
  return StrCat(
      "\n", options.other_name, ": rank correlation ", Fixed(c.rank_correlation, 3), "; of ",
      c.retrieval, " retrieval heads ", c.both_retrieval,
      " are the same\n  retrieval here only:  ", HeadNames(c.only_ours, result.file.kv_heads),
      "\n  retrieval there only: ", HeadNames(c.only_theirs, result.file.kv_heads), "\n");
}

}  // namespace

Json CalibrationToJson(const CalibrationResult& result, const CalibrationOptions& options) {
  const StreamingHeadsFile& file = result.file;
  const AttentionSettings& attention = options.config.attention;
  Json::Array checks;
  for (const CutCheck& check : result.checks) checks.push_back(CheckToJson(check));
  return Json(Json::Object{
      {"model", Json(result.info.model)},
      {"layers", Json(file.layers)},
      {"kv_heads", Json(file.kv_heads)},
      {"sink_tokens", Json(attention.sink_tokens)},
      {"window_tokens", Json(attention.recent_tokens)},
      {"method", Json(MethodOf(options))},
      {"score", Grid(file, [&](size_t i) { return Rounded(double{file.score[i]}); })},
      {"kind", Grid(file, [&](size_t i) { return Json(int64_t{(*file.kind)[i]}); })},
      {"attention_outside", Grid(file, [&](size_t i) { return Rounded(result.heads[i].outside); })},
      {"checks", Json(std::move(checks))},
  });
}

std::string CalibrationText(const CalibrationResult& result, const CalibrationOptions& options) {
  return StrCat(HeatMapText(result.file), ScoreTable(result), AblationText(result),
                CheckTable(result), ComparisonText(result, options));
}

std::string CalibrationSvg(const CalibrationResult& result) {
  const StreamingHeadsFile& file = result.file;
  HeatMap map{.title = StrCat("lserve calibrate: ", result.info.model),
              .x_label = "KV head",
              .y_label = "layer",
              .columns = {},
              .rows = {},
              .panels = {{"score, share of the largest", {}},
                         {"attention outside sink and window", {}},
                         {"kind: 1 retrieval, 0 streaming", {}}}};
  for (int64_t head = 0; head < file.kv_heads; ++head) map.columns.push_back(StrCat(head));
  const double largest = LargestScore(file);
  for (int64_t layer = 0; layer < file.layers; ++layer) {
    map.rows.push_back(StrCat(layer));
    for (HeatPanel& panel : map.panels) panel.values.emplace_back();
    for (int64_t head = 0; head < file.kv_heads; ++head) {
      const size_t at = static_cast<size_t>(layer * file.kv_heads + head);
      map.panels[0].values.back().emplace_back(std::max(0.0, double{file.score[at]}) / largest);
      map.panels[1].values.back().emplace_back(std::clamp(result.heads[at].outside, 0.0, 1.0));
      map.panels[2].values.back().emplace_back(static_cast<double>((*file.kind)[at]));
    }
  }
  return DrawHeatMap(map);
}

}  // namespace lserve
