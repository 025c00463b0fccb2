#include "eval/calibration.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/strings.h"
#include "engine/engine_inputs.h"
#include "eval/logit_compare.h"
#include "loader/model_config.h"

namespace lserve {
namespace {

// Of one sample, what dense attention says.
struct Reference {
  std::vector<int32_t> tokens;  // the last of the prompt, then the answer
  std::unique_ptr<LogitReference> logits;
  bool right = false;
};

int64_t NumStreaming(const HeadKinds& kinds) {
  return std::count(kinds.begin(), kinds.end(), 0);
}

class Calibration {
 public:
  Calibration(const CalibrationOptions& options, const EvalHooks& hooks)
      : options_(options), hooks_(hooks) {
    const auto work = [](const std::vector<CalibrationSample>& samples) {
      double sum = 0;
      int64_t cached = 0;
      for (const CalibrationSample& sample : samples) {
        sum += WorkOf(sample.size()) - WorkOf(cached);
        cached = sample.shared_prefix;
      }
      return sum;
    };
    const size_t cuts = NumCuts();
    progress_.cells_total = options.samples.size() + options.checks.size() * (1 + cuts);
    progress_.work_total =
        work(options.samples) + work(options.checks) * static_cast<double>(1 + cuts);
    sample_work_ = work(options.samples);
  }

  Result<CalibrationResult> Run() {
    const Stopwatch measuring;
    LS_TRY(MakeEngine(std::nullopt));
    result_.info = engine_->info();
    const ModelConfig& model = engine_->model_config();
    result_.file.layers = model.num_layers;
    result_.file.kv_heads = model.num_kv_heads;
    if (options_.other) {
      LS_TRY(
          CheckShape(*options_.other, model.num_layers, model.num_kv_heads, options_.other_name));
    }
    if (!LS_TRY(Measure())) return Interrupted();
    if (options_.rank == HeadRank::kAblation && !LS_TRY(Ablate())) return Interrupted();
    result_.measure_seconds = measuring.seconds();
    const Stopwatch checking;
    if (options_.rank == HeadRank::kAblation) LS_TRY(MakeEngine(std::nullopt));
    if (!LS_TRY(KeepReferences(options_.checks, references_))) return Interrupted();
    if (!LS_TRY(options_.max_loss ? CutByLoss() : CutByTarget())) return Interrupted();
    if (!LS_TRY(CheckRest())) return Interrupted();
    result_.check_seconds = checking.seconds();
    std::sort(result_.checks.begin(), result_.checks.end(),
              [](const CutCheck& a, const CutCheck& b) {
                return std::pair(a.streaming_heads, a.name) < std::pair(b.streaming_heads, b.name);
              });
    return std::move(result_);
  }

 private:
  // Sets of heads that are run at most.
  size_t NumCuts() const {
    const size_t search = options_.max_loss ? size_t{8} : size_t{1};
    return search + options_.ratios.size() + (options_.other ? 1 : 0);
  }

  CalibrationResult Interrupted() {
    result_.interrupted = true;
    return std::move(result_);
  }

  Status MakeEngine(const std::optional<HeadKinds>& kinds) {
    engine_.reset();  // before the next one takes its memory
    EngineConfig config = options_.config;
    config.max_num_seqs = 1;
    config.streaming_ratio.reset();
    config.streaming_heads = kinds ? "" : "none";
    EngineInputs inputs;
    if (kinds) {
      inputs.heads = result_.file;
      inputs.heads->kind = *kinds;
    }
    engine_ = LS_TRY(Engine::Create(config, std::move(inputs)));
    return Status();
  }

  // Calls run(ask hooks) for one sample and books its work. False: interrupted.
  template <class Run>
  Result<bool> Tracked(const std::string& what,
                       const CalibrationSample& sample,
                       int64_t cached,
                       Run run) {
    progress_.label = StrCat(what, ": ", sample.name);
    const double before = progress_.work_done;
    AskHooks hooks;
    hooks.should_stop = hooks_.should_stop;
    hooks.on_prefill = [&](int64_t done) {
      progress_.work_done = before + std::max(0.0, WorkOf(done) - WorkOf(cached));
      if (hooks_.on_progress) hooks_.on_progress(progress_);
    };
    if (!LS_TRY(run(hooks))) return false;
    progress_.work_done = before + WorkOf(sample.size()) - WorkOf(cached);
    ++progress_.cells_done;
    if (hooks_.on_progress) hooks_.on_progress(progress_);
    return true;
  }

  template <class Run>
  Result<bool> ForEach(const std::string& what,
                       const std::vector<CalibrationSample>& samples,
                       Run run) {
    int64_t cached = 0;
    for (size_t i = 0; i < samples.size(); ++i) {
      const auto one = [&](const AskHooks& hooks) -> Result<bool> { return run(i, hooks); };
      if (!LS_TRY(Tracked(what, samples[i], cached, one))) return false;
      cached = samples[i].shared_prefix;
      if (cached == 0) engine_->DropPrefixes();
    }
    return true;
  }

  Result<bool> Measure() {
    HeadLosses losses(static_cast<int>(result_.file.layers),
                      static_cast<int>(result_.file.kv_heads));
    const auto measure = [&](size_t i, const AskHooks& hooks) {
      return MeasureSample(*engine_, options_.samples[i], options_.config.attention, hooks,
                           &losses);
    };
    if (!LS_TRY(ForEach("measuring", options_.samples, measure))) return false;
    result_.heads = losses.Means();
    result_.queries = losses.queries;
    for (const HeadLoss& loss : result_.heads) {
      result_.file.score.push_back(static_cast<float>(loss.peak));
    }
    return true;
  }

  // The score of each head: KL(dense || the others dense) on the samples.
  Result<bool> Ablate() {
    const size_t heads = result_.heads.size();
    progress_.cells_total += options_.samples.size() * (1 + heads);
    progress_.work_total += sample_work_ * static_cast<double>(1 + heads);
    std::vector<Reference> references;
    if (!LS_TRY(KeepReferences(options_.samples, references))) return false;
    for (size_t head = 0; head < heads; ++head) {
      HeadKinds kinds(heads, 1);
      kinds[head] = 0;
      const int64_t kv_heads = result_.file.kv_heads;
      const std::string name = StrCat("head ", static_cast<int64_t>(head) / kv_heads, ".",
                                      static_cast<int64_t>(head) % kv_heads);
      const std::optional<CutCheck> alone =
          LS_TRY(Compare(name, kinds, options_.samples, references));
      if (!alone) return false;
      result_.alone.push_back(*alone);
      result_.file.score[head] = static_cast<float>(alone->mean_kl());
    }
    return true;
  }

  // Runs a sample; see(i, logits) gets what answer token i is drawn from.
  template <class See>
  Result<bool> RunSample(const CalibrationSample& sample, const AskHooks& hooks, See see) {
    AttentionSettings settings = options_.config.attention;
    // Only the streaming heads differ from dense attention.
    settings.mode = AttentionMode::kSparse;
    settings.token_budget = 1 << 30;
    settings.prefill_threshold = 0;
    Request request = SampleRequest(sample, settings);
    size_t at = 0;
    request.on_token_logits = [&](std::span<const float> logits) { see(at++, logits); };
    return LS_TRY(Ask(*engine_, std::move(request), hooks)).has_value();
  }

  static bool IsTop(std::span<const float> logits, int32_t token) {
    return std::max_element(logits.begin(), logits.end()) - logits.begin() == token;
  }

  // With the engine that there is, whose heads are all retrieval heads.
  Result<bool> KeepReferences(const std::vector<CalibrationSample>& samples,
                              std::vector<Reference>& references) {
    const int64_t vocab = engine_->model_config().vocab_size;
    return ForEach("dense", samples, [&](size_t i, const AskHooks& hooks) {
      const CalibrationSample& check = samples[i];
      Reference reference;
      reference.tokens = {check.prompt.back()};
      reference.tokens.insert(reference.tokens.end(), check.answer.begin(), check.answer.end());
      reference.right = check.is_question;
      references.push_back(std::move(reference));
      Reference& kept = references.back();
      kept.logits = std::make_unique<LogitReference>(vocab, kept.tokens);
      return RunSample(check, hooks, [&](size_t at, std::span<const float> logits) {
        kept.logits->Keep(static_cast<int64_t>(at), logits);
        kept.right = kept.right && IsTop(logits, check.answer[at]);
      });
    });
  }

  // Nothing: interrupted.
  Result<std::optional<CutCheck>> Check(const std::string& name, const HeadKinds& kinds) {
    std::optional<CutCheck> cut = LS_TRY(Compare(name, kinds, options_.checks, references_));
    if (cut) result_.checks.push_back(*cut);
    return cut;
  }

  // These heads against dense attention, on the samples that `references` are of.
  Result<std::optional<CutCheck>> Compare(const std::string& name,
                                          const HeadKinds& kinds,
                                          const std::vector<CalibrationSample>& samples,
                                          const std::vector<Reference>& references) {
    CutCheck cut{.name = name, .streaming_heads = NumStreaming(kinds)};
    LS_TRY(MakeEngine(kinds));
    Divergence answers, texts;
    const std::string what = StrCat(name, ", ", cut.streaming_heads, " streaming");
    const auto check = [&](size_t i, const AskHooks& hooks) -> Result<bool> {
      const Reference& reference = references[i];
      bool right = reference.right;
      Divergence& sum = samples[i].is_question ? answers : texts;
      const auto compare = [&](size_t at, std::span<const float> logits) {
        reference.logits->Compare(static_cast<int64_t>(at), logits, sum);
        right = right && IsTop(logits, samples[i].answer[at]);
      };
      const bool whole = LS_TRY(RunSample(samples[i], hooks, compare));
      cut.answers += reference.right ? 1 : 0;
      cut.right += right ? 1 : 0;
      return whole;
    };
    if (!LS_TRY(ForEach(what, samples, check))) return std::optional<CutCheck>();
    const auto mean = [](const Divergence& sum) {
      return sum.positions > 0 ? std::optional(sum.kl / static_cast<double>(sum.positions))
                               : std::nullopt;
    };
    cut.answer_kl = mean(answers);
    cut.text_kl = mean(texts);
    return std::optional<CutCheck>(cut);
  }

  Result<bool> CutByTarget() {
    result_.file.kind = LS_TRY(CutByRatio(result_.file, *options_.target_ratio));
    return LS_TRY(Check("calibrated", *result_.file.kind)).has_value();
  }

  HeadKinds KindsFor(int64_t streaming) const {
    const double heads = static_cast<double>(result_.file.score.size());
    return CutByRatio(result_.file, static_cast<double>(streaming) / heads).value();
  }

  // The most streaming heads whose loss is at most max_loss, by bisection: the loss grows with
  // them but for noise.
  Result<bool> CutByLoss() {
    const int64_t heads = static_cast<int64_t>(result_.file.score.size());
    int64_t good = 0, bad = heads + 1;
    const int64_t step = std::max<int64_t>(1, heads / 64);  // fine enough, and at most 7 runs
    while (bad - good > step) {
      const int64_t middle = good + (bad - good) / 2;
      const std::optional<CutCheck> check = LS_TRY(Check("calibrated", KindsFor(middle)));
      if (!check) return false;
      (check->kl() <= *options_.max_loss ? good : bad) = middle;
    }
    result_.file.kind = KindsFor(good);
    return true;
  }

  Result<bool> CheckRest() {
    const auto known = [&](int64_t streaming) {
      return std::any_of(result_.checks.begin(), result_.checks.end(),
                         [&](const CutCheck& c) { return c.streaming_heads == streaming; });
    };
    for (const double ratio : options_.ratios) {
      const HeadKinds kinds = LS_TRY(CutByRatio(result_.file, ratio));
      if (known(NumStreaming(kinds))) continue;
      if (!LS_TRY(Check("calibrated", kinds))) return false;
    }
    if (!options_.other) return true;
    const double share = static_cast<double>(NumStreaming(*result_.file.kind)) /
                         static_cast<double>(result_.file.score.size());
    const HeadKinds kinds = LS_TRY(CutByRatio(*options_.other, share));
    return LS_TRY(Check(options_.other_name, kinds)).has_value();
  }

  const CalibrationOptions& options_;
  const EvalHooks& hooks_;
  EvalProgress progress_;
  double sample_work_ = 0;  // of all samples once
  CalibrationResult result_;
  std::unique_ptr<Engine> engine_;
  std::vector<Reference> references_;  // by check
};

// Ranks from 0; equal scores share their mean.
std::vector<double> Ranks(const std::vector<float>& scores) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return scores[a] < scores[b]; });
  std::vector<double> ranks(scores.size());
  for (size_t first = 0; first < order.size();) {
    size_t last = first + 1;
    while (last < order.size() && scores[order[last]] == scores[order[first]]) ++last;
    const double mean = static_cast<double>(first + last - 1) / 2;
    for (size_t i = first; i < last; ++i) ranks[order[i]] = mean;
    first = last;
  }
  return ranks;
}

double Correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const double n = static_cast<double>(a.size());
  const double mean_a = std::accumulate(a.begin(), a.end(), 0.0) / n;
  const double mean_b = std::accumulate(b.begin(), b.end(), 0.0) / n;
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - mean_a) * (b[i] - mean_b);
    aa += (a[i] - mean_a) * (a[i] - mean_a);
    bb += (b[i] - mean_b) * (b[i] - mean_b);
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0.0;
}

}  // namespace

std::string_view Name(HeadRank rank) {
  return rank == HeadRank::kPeak ? "peak" : "ablation";
}

double CutCheck::mean_kl() const {
  const int kinds = (answer_kl ? 1 : 0) + (text_kl ? 1 : 0);
  return kinds > 0 ? (answer_kl.value_or(0) + text_kl.value_or(0)) / kinds : 0.0;
}

Result<CalibrationResult> RunCalibration(const CalibrationOptions& options,
                                         const EvalHooks& hooks) {
  LS_CHECK(options.target_ratio.has_value() != options.max_loss.has_value());
  return Calibration(options, hooks).Run();
}

HeadComparison CompareHeads(const StreamingHeadsFile& ours, const StreamingHeadsFile& theirs) {
  LS_CHECK_EQ(ours.score.size(), theirs.score.size());
  HeadComparison comparison;
  comparison.rank_correlation = Correlation(Ranks(ours.score), Ranks(theirs.score));
  const double share =
      static_cast<double>(NumStreaming(*ours.kind)) / static_cast<double>(ours.score.size());
  const HeadKinds other = CutByRatio(theirs, share).value();
  for (size_t i = 0; i < other.size(); ++i) {
    const bool we = (*ours.kind)[i] == 1, they = other[i] == 1;
    comparison.retrieval += we ? 1 : 0;
    comparison.both_retrieval += we && they ? 1 : 0;
    if (we && !they) comparison.only_ours.push_back(i);
    if (they && !we) comparison.only_theirs.push_back(i);
  }
  return comparison;
}

}  // namespace lserve
