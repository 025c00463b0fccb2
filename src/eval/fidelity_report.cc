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
  }
  return merged;
}

struct Means {
  double same_top = 0.0, kl = 0.0, covered = 0.0, perplexity = 0.0, reference_perplexity = 0.0;
  double share = 1.0;

  explicit Means(const FidelityRecord& record) {
    const Divergence& sum = record.divergence;
    const double n = std::max<double>(1.0, static_cast<double>(sum.positions));
    same_top = static_cast<double>(sum.same_top) / n;
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

Json MeansToJson(const FidelityRecord& record) {
  const Means means(record);
  return Json(Json::Object{
      {"ratio", record.ratio ? Json(*record.ratio) : Json()},
      {"streaming_kv_heads", Json(record.streaming_heads)},
      {"phase", Json(record.budget ? "decode" : "prefill")},
      {"budget", record.budget ? Json(*record.budget) : Json()},
      {"positions", Json(record.divergence.positions)},
      {"top1_agreement", Json(means.same_top)},
      {"kl", Json(means.kl)},
      {"kl_covered_probability", Json(means.covered)},
      {"perplexity_dense", Json(means.reference_perplexity)},
      {"perplexity_sparse", Json(means.perplexity)},
      {"perplexity_difference", Json(means.perplexity - means.reference_perplexity)},
      {"visited", Json(record.visited)},
      {"present", Json(record.present)},
      {"visited_share", Json(means.share)},
  });
}

}  // namespace

Json ToJson(const FidelityRecord& record) {
  const Divergence& sum = record.divergence;
  return Json(Json::Object{
      {"text", Json(record.text)},
      {"ratio", record.ratio ? Json(*record.ratio) : Json()},
      {"streaming_kv_heads", Json(record.streaming_heads)},
      {"budget", record.budget ? Json(*record.budget) : Json()},
      {"positions", Json(sum.positions)},
      {"same_top", Json(sum.same_top)},
      {"kl_sum", Json(sum.kl)},
      {"covered_sum", Json(sum.covered)},
      {"loss_dense_sum", Json(sum.reference_loss)},
      {"loss_sparse_sum", Json(sum.loss)},
      {"visited", Json(record.visited)},
      {"present", Json(record.present)},
  });
}

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
  sum.kl = number("kl_sum");
  sum.covered = number("covered_sum");
  sum.reference_loss = number("loss_dense_sum");
  sum.loss = number("loss_sparse_sum");
  record.visited = number("visited");
  record.present = number("present");
  if (!status.ok()) return status;
  return record;
}

std::string FidelityTable(std::span<const FidelityRecord> records) {
  std::vector<std::vector<std::string>> rows = {{"heads", "phase", "budget", "positions", "top-1",
                                                 "KL", "ppl dense", "ppl sparse", "visited"}};
  for (const auto& [setting, record] : Merged(records)) {
    const Means means(record);
    rows.push_back({HeadsName(record), record.budget ? "decode" : "prefill",
                    record.budget ? Grouped(*record.budget) : std::string("-"),
                    Grouped(record.divergence.positions), Percent(means.same_top, 2),
                    Fixed(means.kl, 5), Fixed(means.reference_perplexity, 3),
                    Fixed(means.perplexity, 3), Percent(means.share)});
  }
  double covered = 1.0;
  for (const FidelityRecord& record : records) covered = std::min(covered, Means(record).covered);
  return StrCat(TextTable(rows),
                "\nKL(dense || sparse) in nats per position, over the most "
                "probable tokens and the rest as one; those hold ",
                Percent(covered, 3), " of the probability or more.\nvisited: pages in decode, ",
                "tiles in prefill. Dense read all of them.\n");
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
