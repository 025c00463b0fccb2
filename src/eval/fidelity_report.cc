// What the records of a fidelity run say: table, JSON, curves.
#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "base/strings.h"
#include "eval/fidelity.h"
#include "eval/svg.h"
#include "eval/text_table.h"

namespace lserve {
namespace {

using Setting = std::pair<std::optional<double>, std::optional<int>>;  // ratio, budget

// All texts together, by setting: prefill of a ratio first, then its budgets.
std::map<Setting, FidelityRecord> Merged(std::span<const FidelityRecord> records) {
  std::map<Setting, FidelityRecord> merged;
  for (const FidelityRecord& record : records) {
    const Setting setting{record.ratio, record.budget};
    const auto [at, is_new] = merged.try_emplace(setting, record);
    if (is_new) continue;
    FidelityRecord& sum = at->second;
    sum.divergence.Add(record.divergence);
    sum.visited += record.visited;
    sum.present += record.present;
    sum.recall.Add(record.recall);
  }
  return merged;
}

struct Means {
  double same_top = 0.0, same_clear = 0.0, kl = 0.0, covered = 0.0, perplexity = 0.0,
         reference_perplexity = 0.0;
  double share = 1.0;

  explicit Means(const FidelityRecord& record) {
    const Divergence& sum = record.divergence;
    const double n = std::max<double>(1.0, static_cast<double>(sum.positions));
    same_top = static_cast<double>(sum.same_top) / n;
    same_clear =
        static_cast<double>(sum.same_clear) / std::max<double>(1.0, static_cast<double>(sum.clear));
    kl = sum.kl / n;
    covered = sum.covered / n;
    perplexity = std::exp(sum.loss / n);
    reference_perplexity = std::exp(sum.reference_loss / n);
    if (record.present > 0.0) share = record.visited / record.present;
  }
};

std::string HeadsName(const FidelityRecord& record) {
  return record.ratio ? Percent(*record.ratio, 0) + " streaming"
                      : StrCat(record.streaming_heads, " streaming heads");
}

// [layers][KV heads].
template <class ToJson>
Json Grid(const HeadRecall& recall, ToJson to_json) {
  Json::Array rows, row;
  for (size_t i = 0; i < recall.sum.size(); ++i) {
    row.push_back(to_json(i));
    if (static_cast<int64_t>(row.size()) < recall.kv_heads) continue;
    rows.push_back(Json(std::move(row)));
    row = {};
  }
  return Json(std::move(rows));
}

// Mean over the heads that stream, or that do not; nothing without one.
std::optional<double> MeanRecall(const HeadRecall& recall, bool streaming) {
  double sum = 0.0;
  int64_t count = 0;
  for (size_t i = 0; i < recall.sum.size() && recall.positions > 0; ++i) {
    if ((recall.streaming[i] == 1) != streaming) continue;
    sum += recall.mean(i);
    ++count;
  }
  return count > 0 ? std::optional(sum / static_cast<double>(count)) : std::nullopt;
}

std::string RecallText(const HeadRecall& recall, bool streaming) {
  const std::optional<double> mean = MeanRecall(recall, streaming);
  return mean ? Percent(*mean) : "-";
}

Json MeansToJson(const FidelityRecord& record) {
  const Means means(record);
  Json::Object object = {
      {"ratio", record.ratio ? Json(*record.ratio) : Json()},
      {"streaming_kv_heads", Json(record.streaming_heads)},
      {"phase", Json(record.budget ? "decode" : "prefill")},
      {"budget", record.budget ? Json(*record.budget) : Json()},
      {"positions", Json(record.divergence.positions)},
      {"top1_agreement", Json(means.same_top)},
      {"clear_positions", Json(record.divergence.clear)},
      {"clear_top1_agreement", Json(means.same_clear)},
      {"kl", Json(means.kl)},
      {"kl_covered_probability", Json(means.covered)},
      {"perplexity_dense", Json(means.reference_perplexity)},
      {"perplexity_sparse", Json(means.perplexity)},
      {"perplexity_difference", Json(means.perplexity - means.reference_perplexity)},
      {"visited", Json(record.visited)},
      {"present", Json(record.present)},
      {"visited_share", Json(means.share)},
  };
  const HeadRecall& recall = record.recall;
  if (recall.positions > 0) {
    const auto mean = [&](bool streaming) {
      const std::optional<double> value = MeanRecall(recall, streaming);
      return value ? Json(*value) : Json();
    };
    object.emplace_back("recall_positions", Json(recall.positions));
    object.emplace_back("retrieval_recall", mean(false));
    object.emplace_back("streaming_recall", mean(true));
    object.emplace_back("recall", Grid(recall, [&](size_t i) { return Json(recall.mean(i)); }));
    object.emplace_back("streaming",
                        Grid(recall, [&](size_t i) { return Json(int64_t{recall.streaming[i]}); }));
  }
  return Json(std::move(object));
}

// One table per setting of decode: layers down, KV heads across, s: streams. With many heads the
// mean and the lowest.
std::string RecallTables(const std::map<Setting, FidelityRecord>& merged) {
  constexpr int64_t kMostColumns = 16;
  std::string text;
  for (const auto& [setting, record] : merged) {
    const HeadRecall& recall = record.recall;
    if (recall.positions == 0) continue;
    const bool wide = recall.kv_heads > kMostColumns;
    std::vector<std::vector<std::string>> rows = {{"layer"}};
    if (wide) rows[0].insert(rows[0].end(), {"mean", "lowest", "of head"});
    for (int64_t head = 0; head < recall.kv_heads && !wide; ++head) {
      rows[0].push_back(StrCat("head ", head));
    }
    for (size_t first = 0; first < recall.sum.size();
         first += static_cast<size_t>(recall.kv_heads)) {
      rows.push_back({StrCat(rows.size() - 1)});
      double sum = 0.0;
      size_t lowest = first;
      for (size_t i = first; i < first + static_cast<size_t>(recall.kv_heads); ++i) {
        sum += recall.mean(i);
        if (recall.sum[i] < recall.sum[lowest]) lowest = i;
        if (!wide) {
          rows.back().push_back(
              StrCat(Percent(recall.mean(i)), recall.streaming[i] == 1 ? " s" : "  "));
        }
      }
      if (!wide) continue;
      rows.back().push_back(Percent(sum / static_cast<double>(recall.kv_heads)));
      rows.back().push_back(Percent(recall.mean(lowest)));
      rows.back().push_back(StrCat(lowest - first, recall.streaming[lowest] == 1 ? " s" : "  "));
    }
    text += StrCat("\nattention on what each head was shown: ", HeadsName(record), ", budget ",
                   Grouped(record.budget.value_or(0)), ", ", recall.positions,
                   " steps; s: streams\n", TextTable(rows));
  }
  return text;
}

}  // namespace

Json ToJson(const FidelityRecord& record) {
  const Divergence& sum = record.divergence;
  Json::Object object = {
      {"text", Json(record.text)},
      {"ratio", record.ratio ? Json(*record.ratio) : Json()},
      {"streaming_kv_heads", Json(record.streaming_heads)},
      {"budget", record.budget ? Json(*record.budget) : Json()},
      {"positions", Json(sum.positions)},
      {"same_top", Json(sum.same_top)},
      {"clear", Json(sum.clear)},
      {"same_clear", Json(sum.same_clear)},
      {"kl_sum", Json(sum.kl)},
      {"covered_sum", Json(sum.covered)},
      {"loss_dense_sum", Json(sum.reference_loss)},
      {"loss_sparse_sum", Json(sum.loss)},
      {"visited", Json(record.visited)},
      {"present", Json(record.present)},
  };
  const HeadRecall& recall = record.recall;
  if (recall.positions > 0) {
    object.emplace_back("recall_positions", Json(recall.positions));
    object.emplace_back("recall_sum", Grid(recall, [&](size_t i) { return Json(recall.sum[i]); }));
    object.emplace_back("streaming",
                        Grid(recall, [&](size_t i) { return Json(int64_t{recall.streaming[i]}); }));
  }
  return Json(std::move(object));
}

namespace {

// The recall of a record that has one; false: it is none.
bool RecallFromJson(const Json& json, HeadRecall* recall) {
  const Json *positions = json.Find("recall_positions"), *sums = json.Find("recall_sum"),
             *streaming = json.Find("streaming");
  if (positions == nullptr) return true;  // of prefill
  if (!positions->is_int() || positions->as_int() < 1 || sums == nullptr || streaming == nullptr ||
      !sums->is_array() || !streaming->is_array() ||
      sums->as_array().size() != streaming->as_array().size()) {
    return false;
  }
  recall->positions = positions->as_int();
  for (size_t layer = 0; layer < sums->as_array().size(); ++layer) {
    const Json &row = sums->as_array()[layer], &kinds = streaming->as_array()[layer];
    if (!row.is_array() || !kinds.is_array()) return false;
    const size_t width = row.as_array().size();
    if (layer == 0) recall->kv_heads = static_cast<int64_t>(width);
    if (width == 0 || width != static_cast<size_t>(recall->kv_heads) ||
        kinds.as_array().size() != width) {
      return false;
    }
    for (size_t head = 0; head < width; ++head) {
      const Json &sum = row.as_array()[head], &kind = kinds.as_array()[head];
      if (!sum.is_number() || !kind.is_int()) return false;
      recall->sum.push_back(sum.as_double());
      recall->streaming.push_back(kind.as_int() == 1 ? 1 : 0);
    }
  }
  return true;
}

}  // namespace

Result<FidelityRecord> FidelityFromJson(const Json& json, const std::string& source) {
  FidelityRecord record;
  Status status;
  const auto number = [&](const char* name) {
    const Json* found = json.Find(name);
    if (found != nullptr && found->is_number()) return found->as_double();
    if (status.ok()) {
      status = Status(
          Code::kInvalidArgument,
          StrCat(source, ": \"", name, "\" is ", found == nullptr ? "missing" : found->TypeName(),
                 ", expected a number of lserve eval; was the file edited?"));
    }
    return 0.0;
  };
  const Json* text = json.Find("text");
  if (text != nullptr && text->is_string()) record.text = text->as_string();
  const Json* ratio = json.Find("ratio");
  if (ratio != nullptr && ratio->is_number()) record.ratio = ratio->as_double();
  const Json* budget = json.Find("budget");
  if (budget != nullptr && budget->is_int()) record.budget = static_cast<int>(budget->as_int());
  record.streaming_heads = static_cast<int64_t>(number("streaming_kv_heads"));
  Divergence& sum = record.divergence;
  sum.positions = static_cast<int64_t>(number("positions"));
  sum.same_top = static_cast<int64_t>(number("same_top"));
  sum.clear = static_cast<int64_t>(number("clear"));
  sum.same_clear = static_cast<int64_t>(number("same_clear"));
  sum.kl = number("kl_sum");
  sum.covered = number("covered_sum");
  sum.reference_loss = number("loss_dense_sum");
  sum.loss = number("loss_sparse_sum");
  record.visited = number("visited");
  record.present = number("present");
  if (!status.ok()) return status;
  if (!RecallFromJson(json, &record.recall)) {
    return Status(Code::kInvalidArgument,
                  StrCat(source,
                         ": \"recall_sum\" and \"streaming\" are not what lserve eval writes, "
                         "expected a number per layer and KV head; was the file edited?"));
  }
  return record;
}

std::string FidelityTable(std::span<const FidelityRecord> records) {
  std::vector<std::vector<std::string>> rows = {{"heads", "phase", "budget", "positions", "top-1",
                                                 "clear top-1", "KL", "ppl dense", "ppl sparse",
                                                 "visited", "recall", "streaming recall"}};
  for (const auto& [setting, record] : Merged(records)) {
    const Means means(record);
    rows.push_back({HeadsName(record), record.budget ? "decode" : "prefill",
                    record.budget ? Grouped(*record.budget) : std::string("-"),
                    Grouped(record.divergence.positions), Percent(means.same_top, 2),
                    Percent(means.same_clear, 2), Fixed(means.kl, 5),
                    Fixed(means.reference_perplexity, 3), Fixed(means.perplexity, 3),
                    Percent(means.share), RecallText(record.recall, false),
                    RecallText(record.recall, true)});
  }
  double covered = 1.0;
  for (const FidelityRecord& record : records) covered = std::min(covered, Means(record).covered);
  return StrCat(
      TextTable(rows),
      "\ntop-1: positions with the same most probable token; clear: of those where dense "
      "attention's leads by ",
      Fixed(kClearLead, 1),
      " nats at least.\nKL(dense || sparse) in nats per position, over the most "
      "probable tokens and the rest as one; those hold ",
      Percent(covered, 3), " of the probability or more.\nvisited: pages in decode, ",
      "tiles in prefill. Dense read all of them.\nrecall: share of the attention on what the heads "
      "were shown, mean over those that select and those that stream.\n",
      RecallTables(Merged(records)));
}

Json FidelityToJson(const FidelityRun& run, const Json& settings, bool complete) {
  Json::Array cells, texts;
  for (const auto& [setting, record] : Merged(run.records)) cells.push_back(MeansToJson(record));
  for (const FidelityRecord& record : run.records) texts.push_back(ToJson(record));
  return Json(Json::Object{
      {"eval", Json("fidelity")},
      {"model", Json(run.info.model)},
      {"device", Json(run.info.device)},
      {"kv_dtype", Json(run.info.kv_dtype)},
      {"kv_heads", Json(run.info.num_kv_heads)},
      {"settings", settings},
      {"complete", Json(complete)},
      {"cells", Json(std::move(cells))},
      {"texts", Json(std::move(texts))},
  });
}

std::string FidelityToSvg(const FidelityRun& run, bool complete) {
  const std::map<Setting, FidelityRecord> merged = Merged(run.records);
  std::vector<int> budgets;
  std::vector<std::optional<double>> ratios;
  for (const auto& [setting, record] : merged) {
    if (setting.second) budgets.push_back(*setting.second);
    ratios.push_back(setting.first);
  }
  std::sort(budgets.begin(), budgets.end());
  budgets.erase(std::unique(budgets.begin(), budgets.end()), budgets.end());
  ratios.erase(std::unique(ratios.begin(), ratios.end()), ratios.end());

  CurveChart chart;
  chart.title = StrCat("lserve eval fidelity: ", run.info.model, ", decode against dense",
                       complete ? "" : " (incomplete)");
  chart.x_label = "budget in tokens";
  for (const int budget : budgets) chart.x.push_back(Grouped(budget));
  struct Panel {
    const char* title;
    double (*of)(const Means&);
  };
  constexpr Panel kPanels[] = {
      {"same most probable token, %", [](const Means& m) { return m.same_top * 100.0; }},
      {"KL(dense || sparse), nats per position", [](const Means& m) { return m.kl; }},
      {"perplexity, sparse minus dense",
       [](const Means& m) { return m.perplexity - m.reference_perplexity; }},
      {"pages visited, %", [](const Means& m) { return m.share * 100.0; }},
  };
  for (const Panel& panel : kPanels) {
    CurvePanel curves{panel.title, {}};
    for (const std::optional<double>& ratio : ratios) {
      Curve curve;
      for (const int budget : budgets) {
        const auto found = merged.find({ratio, budget});
        if (found == merged.end()) {
          curve.values.emplace_back();
          continue;
        }
        curve.name = HeadsName(found->second);
        curve.values.emplace_back(panel.of(Means(found->second)));
      }
      if (!curve.name.empty()) curves.curves.push_back(std::move(curve));
    }
    chart.panels.push_back(std::move(curves));
  }
  return DrawCurves(chart);
}

}  // namespace lserve
