#include "eval/fidelity.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/strings.h"
#include "engine/attention_probe.h"
#include "loader/model_config.h"

namespace lserve {
namespace {

std::string RatioName(const std::optional<double>& ratio) {
  return ratio ? StrCat(*ratio) : std::string("file");
}

std::string KeyOf(const std::string& text, const std::optional<double>& ratio, const int* budget) {
  return StrCat(text, "/", RatioName(ratio), "/",
                budget != nullptr ? StrCat(*budget) : std::string("prefill"));
}

// Everything about one text.
class TextRun {
 public:
  TextRun(const FidelityOptions& options,
          const FidelityText& text,
          ResultLog& log,
          const EvalHooks& hooks,
          EvalProgress& progress,
          FidelityRun& run)
      : options_(options),
        text_(text),
        log_(log),
        hooks_(hooks),
        progress_(progress),
        run_(run),
        first_decoded_(static_cast<int64_t>(text.tokens.size()) - options.decode_tokens) {}

  // False: interrupted.
  Result<bool> Run(const std::vector<std::optional<double>>& ratios) {
    for (const std::optional<double>& ratio : ratios) {
      if (!LS_TRY(RunRatio(ratio))) return false;
    }
    return true;
  }

 private:
  Result<bool> RunRatio(const std::optional<double>& ratio) {
    bool all_known = true;
    all_known = LS_TRY(TakeKnown(ratio, nullptr)) && all_known;
    for (const int& budget : options_.budgets) {
      all_known = LS_TRY(TakeKnown(ratio, &budget)) && all_known;
    }
    if (all_known) return true;
    EngineConfig config = options_.config;
    if (ratio) {
      config.streaming_ratio = *ratio;
      if (*ratio == 0.0) config.streaming_heads = "none", config.streaming_ratio.reset();
    }
    config.max_num_seqs = 1;
    engine_ = LS_TRY(Engine::Create(config));
    run_.info = engine_->info();
    LS_TRY(CheckFidelityText(text_, options_.decode_tokens, engine_->info().max_model_len));
    if (!reference_) {
      if (!LS_TRY(RunDense())) return false;
    }
    // The first budget reads the text; the others go on from its kept prefix.
    bool reads = true;
    for (const int& budget : options_.budgets) {
      const bool known = log_.Find(KeyOf(text_.name, ratio, &budget)) != nullptr &&
                         (!reads || log_.Find(KeyOf(text_.name, ratio, nullptr)) != nullptr);
      if (known) continue;
      if (!LS_TRY(RunSparse(ratio, budget, reads))) return false;
      reads = false;
    }
    engine_.reset();
    return true;
  }

  // Whether the log has the cell; then it joins the records.
  Result<bool> TakeKnown(const std::optional<double>& ratio, const int* budget) {
    const std::string key = KeyOf(text_.name, ratio, budget);
    const Json* known = log_.Find(key);
    if (known == nullptr) return false;
    run_.records.push_back(LS_TRY(FidelityFromJson(*known, StrCat("record ", key))));
    return true;
  }

  Request MakeRequest(const AttentionSettings& attention) const {
    Request request;
    const auto begin = text_.tokens.begin();
    request.prompt.assign(begin, begin + first_decoded_);
    request.forced_tokens.assign(begin + first_decoded_, text_.tokens.end());
    request.sampling.temperature = 0.0;
    request.attention = attention;
    return request;
  }

  // Nothing: interrupted.
  Result<std::optional<Asked>> AskTracked(Request request, const std::string& label) {
    progress_.label = label;
    const double before = progress_.work_done;
    AskHooks hooks;
    hooks.should_stop = hooks_.should_stop;
    hooks.on_prefill = [&](int64_t done) {
      progress_.work_done = before + WorkOf(done);
      if (hooks_.on_progress) hooks_.on_progress(progress_);
    };
    std::optional<Asked> asked = LS_TRY(Ask(*engine_, std::move(request), hooks));
    progress_.work_done = before + WorkOf(first_decoded_);
    return asked;
  }

  Result<bool> RunDense() {
    const int64_t vocab = engine_->model_config().vocab_size;
    reference_ = std::make_unique<LogitReference>(vocab, text_.tokens);
    const AttentionSettings attention = ArmSettings(engine_->config().attention, Arm::kDense);
    Request request = MakeRequest(attention);
    Watch(
        request,
        [&](int64_t position, std::span<const float> logits) {
          reference_->Keep(position, logits);
        },
        true);
    const std::string what = StrCat(text_.name, " (dense)");
    const std::optional<Asked> asked = LS_TRY(AskTracked(std::move(request), what));
    if (!asked) return false;
    LS_TRY(CheckPath(attention, engine_->info(), asked->stats, what));
    return true;
  }

  // Calls `see` with the logits of every position that has a next token, once, in order. With
  // `prompt` also those of the prompt.
  template <class See>
  void Watch(Request& request, See see, bool prompt) {
    if (prompt) {
      request.on_prompt_logits = [see](int64_t first, const ConstMatrix& rows) {
        for (int64_t row = 0; row < rows.rows; ++row) {
          see(first + row, {rows.row<float>(row), static_cast<size_t>(rows.cols)});
        }
        return Status();
      };
    }
    // The first call shows the last prompt position again.
    auto position = std::make_shared<int64_t>(first_decoded_ - 1);
    request.on_token_logits = [see, position,
                               first = first_decoded_](std::span<const float> logits) {
      if (*position >= first) see(*position, logits);
      ++*position;
    };
  }

  // Every position would cost as much again as decoding it; some say as much.
  void WatchRecall(Request& request, HeadRecall& recall) const {
    constexpr int64_t kMostPositions = 64;
    const int64_t stride = std::max<int64_t>(1, options_.decode_tokens / kMostPositions);
    const ModelConfig& model = engine_->model_config();
    recall.kv_heads = model.num_kv_heads;
    recall.sum.assign(static_cast<size_t>(model.num_layers * model.num_kv_heads), 0.0);
    recall.streaming.assign(recall.sum.size(), 0);
    request.keep_streaming_pages = true;
    request.on_attention = [&recall, stride, first = first_decoded_](const AttentionView& view) {
      const int64_t position = view.range.first_position;
      if (!view.decodes || (position - first) % stride != 0) return Status();
      if (view.layer() == 0) ++recall.positions;
      const std::vector<QueryMass> masses = LS_TRY(MeasureMass(view, {&position, 1}));
      for (const HeadMass& head : masses[0].heads) {
        const size_t at = static_cast<size_t>(view.layer() * recall.kv_heads + head.kv_head);
        recall.sum[at] += head.seen;
        recall.streaming[at] = head.way == Way::kStreaming ? 1 : 0;
      }
      return Status();
    };
  }

  Result<bool> RunSparse(const std::optional<double>& ratio, int budget, bool reads) {
    AttentionSettings attention = ArmSettings(engine_->config().attention, Arm::kSparse);
    attention.token_budget = budget;
    Request request = MakeRequest(attention);
    if (reads) request.keep_prefix = first_decoded_ - 1;
    FidelityRecord prefill{.text = text_.name,
                           .ratio = ratio,
                           .streaming_heads = engine_->info().num_streaming_kv_heads,
                           .budget = {},
                           .divergence = {}};
    FidelityRecord decode = prefill;
    decode.budget = budget;
    Watch(
        request,
        [&](int64_t position, std::span<const float> logits) {
          FidelityRecord& record = position < first_decoded_ ? prefill : decode;
          reference_->Compare(position, logits, record.divergence);
        },
        reads);
    WatchRecall(request, decode.recall);
    const std::string key = KeyOf(text_.name, ratio, &budget);
    const std::optional<Asked> asked = LS_TRY(AskTracked(std::move(request), key));
    if (!asked) return false;
    const RequestStats& stats = asked->stats;
    LS_TRY(CheckPath(attention, engine_->info(), stats, key));
    if (reads) {
      prefill.visited = static_cast<double>(stats.prefill_tiles_visited);
      prefill.present = static_cast<double>(stats.prefill_tiles_present);
      LS_TRY(Finish(prefill, KeyOf(text_.name, ratio, nullptr)));
    }
    decode.visited = stats.pages_visited;
    decode.present = stats.pages_present;
    return LS_TRY(Finish(decode, key));
  }

  Result<bool> Finish(const FidelityRecord& record, const std::string& key) {
    if (log_.Find(key) != nullptr) return true;
    LS_TRY(log_.Append(key, ToJson(record)));
    run_.records.push_back(record);
    ++progress_.cells_done;
    return true;
  }

  const FidelityOptions& options_;
  const FidelityText& text_;
  ResultLog& log_;
  const EvalHooks& hooks_;
  EvalProgress& progress_;
  FidelityRun& run_;
  int64_t first_decoded_;  // its token is the first that decode steps see
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<LogitReference> reference_;
};

}  // namespace

void HeadRecall::Add(const HeadRecall& other) {
  if (sum.empty()) {
    *this = other;
    return;
  }
  if (other.sum.size() != sum.size()) return;  // not measured
  positions += other.positions;
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += other.sum[i];
}

Status CheckFidelityText(const FidelityText& text, int64_t decode_tokens, int64_t max_model_len) {
  const int64_t size = static_cast<int64_t>(text.tokens.size());
  if (size < decode_tokens + 2) {
    return Status(Code::kInvalidArgument,
                  StrCat(text.name, ": has ", size, " tokens, expected at least ",
                         decode_tokens + 2, " to decode the last ", decode_tokens,
                         "; give a longer text or a smaller --decode-tokens"));
  }
  if (size > max_model_len) {
    return Status(Code::kInvalidArgument,
                  StrCat(text.name, ": has ", size, " tokens, expected at most ", max_model_len,
                         " for this model; cut it with --length ", max_model_len));
  }
  return Status();
}

FidelityRun RunFidelity(const FidelityOptions& options, ResultLog& log, const EvalHooks& hooks) {
  FidelityRun run;
  std::vector<std::optional<double>> ratios(options.ratios.begin(), options.ratios.end());
  if (ratios.empty()) ratios.emplace_back();
  EvalProgress progress;
  for (const FidelityText& text : options.texts) {
    // The text is read once dense and once per ratio.
    const double reads = static_cast<double>(1 + ratios.size());
    progress.work_total += reads * WorkOf(static_cast<int64_t>(text.tokens.size()));
    progress.cells_total += ratios.size() * (1 + options.budgets.size());
  }
  for (const FidelityText& text : options.texts) {
    TextRun text_run(options, text, log, hooks, progress, run);
    const Result<bool> finished = text_run.Run(ratios);
    if (!finished.ok()) {
      run.status = finished.status();
      return run;
    }
    if (!finished.value()) {
      run.interrupted = true;
      return run;
    }
  }
  return run;
}

}  // namespace lserve
