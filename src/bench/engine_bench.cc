#include "bench/engine_bench.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/rng.h"
#include "base/strings.h"
#include "loader/model_config.h"

namespace lserve {
namespace {

double LoadAverage() {
  double load = 0;
  return getloadavg(&load, 1) == 1 ? load : 0;
}

// `count` tokens, the same for the same seed; a longer prompt begins with a shorter one's tokens.
std::vector<int32_t> RandomPrompt(int64_t count, int64_t vocab, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> tokens;
  tokens.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(rng.NextBelow(static_cast<uint64_t>(vocab))));
  }
  return tokens;
}

Request MakeRequest(const EngineBenchConfig& config,
                    std::vector<int32_t> prompt,
                    int64_t max_tokens,
                    const BenchArm& arm) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling = config.sampling;
  request.ignore_eos = true;
  request.attention = arm.attention;
  return request;
}

// Collects the samples of one test and turns them into medians.
class TestBuilder {
 public:
  void Add(const OpMeter& meter, double seconds, double processor_seconds) {
    seconds_.push_back(seconds);
    cores_.push_back(processor_seconds / seconds);
    attention_share_.push_back(meter.attention_seconds() / seconds);
    flop_.push_back(meter.flop() / seconds);
    bytes_.push_back(meter.bytes() / seconds);
    double other = seconds;
    for (size_t kind = 0; kind < kNumOpKinds; ++kind) {
      ops_[kind].push_back(meter.totals[kind].seconds);
      other -= meter.totals[kind].seconds;
    }
    other_.push_back(other);
  }

  void AddSelector(double seconds) { selector_.push_back(seconds); }

  // `tokens`: of one sample, of all sequences.
  void Finish(double tokens, EngineTest* test) const {
    test->seconds = seconds_;
    test->cores = cores_;
    std::vector<double> rates;
    for (const double s : seconds_) rates.push_back(tokens / s);
    test->tokens_per_second = Summarize(rates);
    test->attention_share = Summarize(attention_share_).median;
    test->flop_per_second = Summarize(flop_).median;
    test->bytes_per_second = Summarize(bytes_).median;
    for (size_t kind = 0; kind < kNumOpKinds; ++kind) {
      test->op_seconds[kind] = Summarize(ops_[kind]).median;
    }
    test->other_seconds = Summarize(other_).median;
    if (!selector_.empty()) test->selector_seconds = Summarize(selector_).median;
  }

 private:
  std::vector<double> seconds_, cores_, attention_share_, flop_, bytes_, other_, selector_;
  std::vector<double> ops_[kNumOpKinds];
};

Status Interrupted() {
  return Status(Code::kCancelled, "interrupted; what was measured so far is above");
}

}  // namespace

double EngineTest::share_of(const CpuCeilings& ceilings) const {
  const double reached = phase == BenchPhase::kPrefill ? flop_per_second : bytes_per_second;
  const double ceiling =
      phase == BenchPhase::kPrefill ? ceilings.dot_flop_s() : ceilings.read_bytes_s;
  return ceiling > 0 ? reached / ceiling : 0;
}

Result<std::unique_ptr<EngineBench>> EngineBench::Create(const EngineConfig& config,
                                                         std::optional<ModelInMemory> model) {
  const CpuIsa isa = LS_TRY(ChooseCpuIsa(config.cpu_isa));
  std::unique_ptr<EngineBench> bench(new EngineBench(isa, config.num_threads));
  EngineInputs inputs;
  inputs.model = std::move(model);
  inputs.wrap_backend =
      [meter = &bench->meter_](std::unique_ptr<Backend> backend) -> std::unique_ptr<Backend> {
    // A device's ops return before they are done, and lists lie in its memory: only whole phases
    // are timed there.
    if (backend->Memory()) return backend;
    return std::make_unique<MeteredBackend>(std::move(backend), meter);
  };
  bench->engine_ = LS_TRY(Engine::Create(config, std::move(inputs)));
  bench->ceilings_ = bench->ceiling_meter_.Measure();
  return bench;
}

Status EngineBench::Check(const EngineBenchConfig& config) const {
  const int64_t max = engine_->info().max_model_len;
  const auto check = [&](const char* flag, int64_t tokens, int64_t with) {
    if (tokens + with <= max) return Status();
    return Status(Code::kInvalidArgument,
                  StrCat(flag, ": got ", tokens, ", expected at most ", max - with, ", since ",
                         engine_->info().model, " takes ", max,
                         " tokens in all; raise --max-model-len if the model allows"));
  };
  // A prompt leaves room for its first token; a depth for one more of the prompt, and the answer.
  for (const int64_t prompt : config.prompts) LS_TRY(check("--prompt", prompt, 1));
  for (const int64_t depth : config.depths) {
    LS_TRY(check("--depth", depth, config.decode_tokens + 2));
  }
  return Status();
}

Result<EngineBench::Sample> EngineBench::RunBatch(std::vector<Request> requests,
                                                  const std::string& what,
                                                  const BenchHooks& hooks) {
  const size_t count = requests.size();
  const int64_t total = static_cast<int64_t>(requests[0].prompt.size());
  Sample sample;
  std::map<RequestId, int64_t> tokens;
  size_t begun = 0;
  double selector_begin = 0;
  meter_ = {};
  const Stopwatch watch;
  const double processor_begin = ProcessorSeconds();
  for (Request& request : requests) tokens[LS_TRY(engine_->Add(std::move(request)))] = 0;
  while (engine_->has_work()) {
    const std::vector<RequestEvent> events = LS_TRY(engine_->Step());
    const double now = watch.seconds();
    const double processor = ProcessorSeconds() - processor_begin;
    for (const RequestEvent& event : events) {
      if (!event.error.ok()) return event.error;
      if (event.token && ++tokens[event.id] == 1) ++begun;
      if (!event.finished) continue;
      sample.kv_bytes += event.stats.kv_bytes;
      sample.stats = event.stats;
    }
    if (begun == count && sample.first_token_seconds == 0) {
      sample.first_token_seconds = now;
      sample.first_token_processor = processor;
      sample.prefill = std::exchange(meter_, {});
      selector_begin = engine_->selector_seconds();
    }
    sample.decode_seconds = now - sample.first_token_seconds;
    sample.decode_processor = processor - sample.first_token_processor;
    if (begun < count && !events.empty() && hooks.on_progress) {
      hooks.on_progress(what, events.back().prefill_done, total);
    }
    if (hooks.should_stop && hooks.should_stop()) {
      for (const auto& [id, unused] : tokens) engine_->Cancel(id);
      static_cast<void>(engine_->Step());
      return Interrupted();
    }
  }
  sample.decode = meter_;
  sample.selector_seconds = engine_->selector_seconds() - selector_begin;
  return sample;
}

Result<EngineBench::Sample> EngineBench::Measure(std::vector<Request> requests,
                                                 EngineTest* test,
                                                 const BenchHooks& hooks) {
  test->gauges.push_back(ceiling_meter_.Gauge());
  test->load_average = std::max(test->load_average, LoadAverage());
  const std::string what = StrCat(test->name, " ", test->arm);
  Sample sample = LS_TRY(RunBatch(std::move(requests), what, hooks));
  test->gauges.push_back(ceiling_meter_.Gauge());
  test->load_average = std::max(test->load_average, LoadAverage());
  test->kv_bytes = std::max(test->kv_bytes, sample.kv_bytes);
  test->stats = sample.stats;
  return sample;
}

// The first run pays for memory that later ones find: workspaces, scratch, page tables.
Status EngineBench::WarmUp(const EngineBenchConfig& config, const BenchHooks& hooks) {
  const int64_t room = engine_->info().max_model_len - 8;
  const int64_t length = std::min<int64_t>(room, 512);
  if (length < 1) return Status();
  const int64_t vocab = engine_->model_config().vocab_size;
  for (const BenchArm& arm : config.arms) {
    std::vector<Request> one;
    one.push_back(MakeRequest(config, RandomPrompt(length, vocab, config.seed), 4, arm));
    LS_TRY(RunBatch(std::move(one), "warm-up", hooks));
  }
  return Status();
}

Result<EngineBench::FirstTokens> EngineBench::RunPrefill(const EngineBenchConfig& config,
                                                         int64_t prompt,
                                                         bool keep,
                                                         const BenchHooks& hooks) {
  const size_t num_arms = config.arms.size();
  std::vector<EngineTest> tests(num_arms);
  std::vector<TestBuilder> builders(num_arms);
  FirstTokens first_tokens(num_arms);
  for (size_t a = 0; a < num_arms; ++a) {
    tests[a].name = StrCat("pp", prompt);
    tests[a].arm = config.arms[a].name;
    tests[a].phase = BenchPhase::kPrefill;
    tests[a].context = prompt;
  }
  const std::vector<int32_t> tokens =
      RandomPrompt(prompt, engine_->model_config().vocab_size, config.seed);
  for (int repeat = 0; repeat < config.repeats; ++repeat) {
    for (size_t a = 0; a < num_arms; ++a) {
      std::vector<Request> one;
      one.push_back(MakeRequest(config, tokens, 1, config.arms[a]));
      if (keep && repeat == config.repeats - 1) one[0].keep_prefix = prompt;
      const Sample sample = LS_TRY(Measure(std::move(one), &tests[a], hooks));
      builders[a].Add(sample.prefill, sample.first_token_seconds, sample.first_token_processor);
      first_tokens[a].push_back(sample.first_token_seconds * 1e3);
    }
  }
  for (size_t a = 0; a < num_arms; ++a) {
    builders[a].Finish(static_cast<double>(prompt), &tests[a]);
    tests[a].first_token_ms = Summarize(first_tokens[a]);
    LS_TRY(hooks.on_test(tests[a]));
  }
  return first_tokens;
}

Status EngineBench::RunDepth(const EngineBenchConfig& config,
                             int64_t depth,
                             FirstTokens known,
                             const BenchHooks& hooks) {
  const size_t num_arms = config.arms.size();
  const int max_batch = *std::max_element(config.batches.begin(), config.batches.end());
  // Every sequence of a batch has its own prompt: a page that two sequences share would be read
  // from memory once for both.
  std::vector<std::vector<int32_t>> prompts;
  for (int s = 0; s < max_batch; ++s) {
    const uint64_t seed = config.seed + static_cast<uint64_t>(s);
    prompts.push_back(RandomPrompt(depth + 1, engine_->model_config().vocab_size, seed));
  }
  FirstTokens first_tokens = std::move(known);
  const size_t num_known = first_tokens.empty() ? 0 : 1;
  first_tokens.resize(num_arms);
  for (size_t a = 0; a < num_arms && depth > 0; ++a) {
    for (size_t s = num_known; s < prompts.size(); ++s) {
      std::vector<Request> one;
      one.push_back(MakeRequest(config, prompts[s], 1, config.arms[a]));
      one[0].keep_prefix = depth;
      const std::string what = StrCat("reading d", depth, " ", config.arms[a].name);
      const Sample sample = LS_TRY(RunBatch(std::move(one), what, hooks));
      first_tokens[a].push_back(sample.first_token_seconds * 1e3);
    }
  }
  for (const int batch : config.batches) {
    std::vector<EngineTest> tests(num_arms);
    std::vector<TestBuilder> builders(num_arms);
    for (size_t a = 0; a < num_arms; ++a) {
      const double penalty = config.sampling.repetition_penalty;
      tests[a].name =
          StrCat("tg", config.decode_tokens, depth > 0 ? StrCat(" @ d", depth) : "",
                 batch > 1 ? StrCat(" b", batch) : "",
                 config.sampling.temperature > 0 ? StrCat(" t", config.sampling.temperature) : "",
                 penalty != 1 ? StrCat(" r", penalty) : "");
      tests[a].arm = config.arms[a].name;
      tests[a].phase = BenchPhase::kDecode;
      tests[a].context = depth;
      tests[a].batch = batch;
      tests[a].decode_tokens = config.decode_tokens;
      tests[a].first_token_ms = Summarize(first_tokens[a]);
    }
    for (int repeat = 0; repeat < config.repeats; ++repeat) {
      for (size_t a = 0; a < num_arms; ++a) {
        std::vector<Request> requests;
        for (int s = 0; s < batch; ++s) {
          requests.push_back(MakeRequest(config, prompts[static_cast<size_t>(s)],
                                         config.decode_tokens + 1, config.arms[a]));
          requests.back().sampling.seed += static_cast<uint64_t>(s);
        }
        const Sample sample = LS_TRY(Measure(std::move(requests), &tests[a], hooks));
        if (sample.stats.cached_tokens != depth) {
          return Status(Code::kOutOfMemory,
                        StrCat(tests[a].name, " ", tests[a].arm, ": found ",
                               sample.stats.cached_tokens, " cached tokens, expected ", depth,
                               "; the cache is too small for ", num_arms, " x ", max_batch,
                               " prompts: raise --kv-cache-bytes, or choose one --attention"));
        }
        builders[a].Add(sample.decode, sample.decode_seconds, sample.decode_processor);
        builders[a].AddSelector(sample.selector_seconds);
      }
    }
    for (size_t a = 0; a < num_arms; ++a) {
      builders[a].Finish(static_cast<double>(batch) * config.decode_tokens, &tests[a]);
      tests[a].ms_per_token =
          Summarize(tests[a].seconds).median / static_cast<double>(config.decode_tokens) * 1e3;
      LS_TRY(hooks.on_test(tests[a]));
    }
  }
  engine_->DropPrefixes();
  return Status();
}

Status EngineBench::Run(const EngineBenchConfig& config, const BenchHooks& hooks) {
  LS_CHECK(!config.arms.empty() && !config.batches.empty());
  LS_TRY(Check(config));
  LS_TRY(WarmUp(config, hooks));
  const auto has = [](const std::vector<int64_t>& lengths, int64_t length) {
    return std::find(lengths.begin(), lengths.end(), length) != lengths.end();
  };
  for (const int64_t prompt : config.prompts) {
    const bool decodes = has(config.depths, prompt);
    FirstTokens first_tokens = LS_TRY(RunPrefill(config, prompt, decodes, hooks));
    if (decodes) LS_TRY(RunDepth(config, prompt, std::move(first_tokens), hooks));
  }
  for (const int64_t depth : config.depths) {
    if (!has(config.prompts, depth)) LS_TRY(RunDepth(config, depth, {}, hooks));
  }
  return Status();
}

}  // namespace lserve
