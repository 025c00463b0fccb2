// selector_study: which pages should a retrieval head read in a decode step? Decodes known
// continuations of long prompts, each prompt read once with every head dense or with half of them
// streaming, under many selectors on the same cache, and compares with reading every page.
// docs/studies/selector.md has what came out; tools/plot_selector_study.py makes its tables.
//
//   selector_study OUT.jsonl needle LENGTH SEED half|none     the heads that stream
//   selector_study OUT.jsonl text LENGTH FILE half|none
//   selector_study OUT.jsonl random LENGTH FILE SHAPE         sharp random weights: kRandomShapes
//   selector_study ... PART/PARTS                             every PARTS-th selector, on one
//   thread
//
// Appends to OUT.jsonl and skips what is in it.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "base/json.h"
#include "base/strings.h"
#include "bench/random_model.h"
#include "bench/selector_study/selector_backend.h"
#include "engine/attention_probe.h"
#include "engine/engine_inputs.h"
#include "eval/ask.h"
#include "eval/chat_prompt.h"
#include "eval/logit_compare.h"
#include "eval/needle_document.h"

namespace lserve::study {
namespace {

constexpr int64_t kTextAnswer = 48;    // tokens decoded after a text
constexpr int64_t kRecallStride = 16;  // of them, steps from one that is looked at to the next
constexpr int kReadAll = 1 << 30;      // a budget

struct Item {
  std::vector<int32_t> prompt;
  std::vector<int32_t> answer;  // forced
  bool is_question = false;
  std::vector<int32_t> tokens;  // what LogitReference compares over
  std::unique_ptr<LogitReference> reference;
  bool reference_right = false;
};

struct Tally {
  int64_t answers = 0, right = 0;  // questions that reading every page answers, and of them
  Divergence divergence;
  double recall = 0;  // sum over recall_heads
  int64_t recall_heads = 0;
  int64_t items = 0;
  double pages_visited = 0, pages_present = 0;  // sums over items of the mean per decode step
  int64_t lists_due = 0, lists_made = 0;
};

bool IsTop(std::span<const float> logits, int32_t token) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin() == token;
}

[[noreturn]] void Die(const std::string& message) {
  std::fprintf(stderr, "selector_study: error: %s\n", message.c_str());
  std::exit(1);
}

template <class T>
T Must(Result<T> result) {
  if (!result.ok()) Die(result.status().message());
  return std::move(result).value();
}

// --- The settings that are compared.

std::vector<Strategy> Strategies(bool few) {
  std::vector<Strategy> all;
  const std::vector<int> budgets =
      few ? std::vector<int>{512, 1024, 2048} : std::vector<int>{256, 512, 1024, 2048, 4096, 8192};
  for (const int budget : budgets) {
    for (const int interval : {1, 2, 4, 8, 16})
      all.push_back({.budget = budget, .interval = interval});
  }
  for (const int budget : {512, 1024, 2048}) {
    for (const int interval : {1, 4}) {
      for (const Score score : kScores) {
        if (score != Score::kBound) {
          all.push_back({.score = score, .budget = budget, .interval = interval});
        }
      }
      for (const int logical : {32, 64}) {
        for (const Score score : {Score::kBound, Score::kMeanAbs}) {
          all.push_back(
              {.score = score, .logical = logical, .budget = budget, .interval = interval});
        }
      }
      for (const Grouping grouping : kGroupings) {
        if (grouping != Grouping::kSoftmaxMean) {
          all.push_back({.grouping = grouping, .budget = budget, .interval = interval});
        }
      }
    }
    for (const Score score : {Score::kBox50, Score::kMeanAbs}) {
      all.push_back({.score = score, .budget = budget, .interval = 16, .least_cosine = 0.2});
    }
    for (const double cosine : {0.8, 0.6, 0.4, 0.2}) {
      all.push_back({.budget = budget, .interval = 16, .least_cosine = cosine});
    }
    all.push_back({.budget = budget, .interval = 4, .eager_steps = 4});
    all.push_back({.budget = budget, .interval = 16, .eager_steps = 4});
  }
  return all;
}

Json ToJson(const Strategy& s) {
  return Json(Json::Object{{"score", Json(std::string(Name(s.score)))},
                           {"logical", Json(s.logical)},
                           {"grouping", Json(std::string(Name(s.grouping)))},
                           {"budget", Json(s.budget)},
                           {"interval", Json(s.interval)},
                           {"eager_steps", Json(s.eager_steps)},
                           {"least_cosine", Json(s.least_cosine)}});
}

// --- Prompts.

std::vector<Item> NeedleItems(const Tokenizer& tokenizer, int64_t length, uint64_t seed) {
  NeedleOptions options = {.num_tokens = length, .seed = seed, .depths = {}, .num_distractors = 12};
  constexpr int kFacts = 10;
  for (int i = 0; i < kFacts; ++i) options.depths.push_back(double{1.0 * i} / (kFacts - 1));
  const NeedleDocument document = Must(MakeNeedleDocument(tokenizer, options));
  std::vector<Item> items;
  for (const NeedleQuestion& question : document.questions) {
    Item item;
    item.prompt = Must(EvalPrompt(tokenizer, StrCat(document.text, "\n\n", question.question)));
    item.answer = Must(PlainTokens(tokenizer, question.answer));
    item.is_question = true;
    items.push_back(std::move(item));
  }
  return items;
}

std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Die(StrCat(path, ": can not be read, expected a text"));
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

// Three places of the text, of which the last is its end: the prompt of one is the beginning of the
// next one's.
std::vector<Item> TextItems(const std::vector<int32_t>& tokens, int64_t length) {
  if (static_cast<int64_t>(tokens.size()) < length) {
    Die(StrCat("the text has ", tokens.size(), " tokens, expected at least ", length));
  }
  std::vector<Item> items;
  constexpr int64_t kApart = 512;
  for (int64_t end = length - 2 * kApart; end <= length; end += kApart) {
    Item item;
    item.prompt.assign(tokens.begin(), tokens.begin() + (end - kTextAnswer));
    item.answer.assign(tokens.begin() + (end - kTextAnswer), tokens.begin() + end);
    items.push_back(std::move(item));
  }
  return items;
}

// --- Random models.

struct RandomShape {
  const char* name;
  int layers, hidden, q_heads, kv_heads, head_dim;
};
constexpr RandomShape kRandomShapes[] = {
    {"gqa4_d128", 4, 512, 8, 2, 128},
    {"gqa8_d64", 4, 512, 16, 2, 64},
    {"mha_d96", 4, 384, 4, 4, 96},
};
// The initial weights attend almost evenly; queries and keys so many times as large do not, and
// 16 is the product of two 4.
constexpr float kSharpness = 4;

ModelInMemory MakeSharpModel(const std::string& name) {
  for (const RandomShape& shape : kRandomShapes) {
    if (name != shape.name) continue;
    ModelConfig config;
    config.name = name;
    config.hidden_size = shape.hidden;
    config.intermediate_size = int64_t{2} * shape.hidden;
    config.num_layers = shape.layers;
    config.num_q_heads = shape.q_heads;
    config.num_kv_heads = shape.kv_heads;
    config.head_dim = shape.head_dim;
    config.vocab_size = 256;
    config.max_position_embeddings = int64_t{1} << 20;
    config.rms_norm_eps = 1e-5;
    config.tie_word_embeddings = true;
    config.rope.theta = 500000.0;
    config.rope.original_max_position_embeddings = config.max_position_embeddings;
    config.torch_dtype = "bfloat16";
    ModelInMemory model = MakeRandomModel(config, 1);
    // Kept alive by the new checkpoint: what it copies from, and its own sharper matrices.
    struct Memory {
      Checkpoint plain;
      std::vector<std::vector<Bf16>> sharp;
    };
    const auto memory = std::make_shared<Memory>(Memory{std::move(model.checkpoint), {}});
    std::vector<TensorInfo> tensors;
    for (const auto& [tensor_name, info] : memory->plain.tensors()) {
      TensorInfo tensor = info;
      if (tensor_name.find("q_proj") != std::string::npos ||
          tensor_name.find("k_proj") != std::string::npos) {
        const auto* from = reinterpret_cast<const Bf16*>(info.data.data());
        std::vector<Bf16>& to = memory->sharp.emplace_back(info.data.size() / sizeof(Bf16), Bf16{});
        for (size_t i = 0; i < to.size(); ++i) to[i] = ToBf16(kSharpness * ToFloat(from[i]));
        tensor.data = std::as_bytes(std::span<const Bf16>(to));
      }
      tensors.push_back(tensor);
    }
    model.checkpoint = Checkpoint::InMemory(name, std::move(tensors), memory);
    return model;
  }
  std::string known;
  for (const RandomShape& shape : kRandomShapes) known += StrCat(" ", shape.name);
  Die(StrCat("got shape \"", name, "\", expected one of", known));
}

// --- Runs.

class Study {
 public:
  Study(const EngineConfig& config, EngineInputs inputs) {
    inputs.wrap_backend = [this](std::unique_ptr<Backend> inner) {
      auto wrapped = std::make_unique<SelectorBackend>(std::move(inner), &meter_);
      backend_ = wrapped.get();
      return wrapped;
    };
    engine_ = Must(Engine::Create(config, std::move(inputs)));
  }

  Engine& engine() { return *engine_; }

  // What reading every page says, with these heads: kept with each item.
  void KeepReferences(std::vector<Item>& items) {
    const int64_t vocab = engine_->model_config().vocab_size;
    for (size_t i = 0; i < items.size(); ++i) {
      Item& item = items[i];
      item.tokens = {item.prompt.back()};
      item.tokens.insert(item.tokens.end(), item.answer.begin(), item.answer.end());
      item.reference = std::make_unique<LogitReference>(vocab, item.tokens);
      item.reference_right = item.is_question;
      Tally unused;
      Run(items, i, kReadAll, unused, [&](size_t at, std::span<const float> logits) {
        item.reference->Keep(static_cast<int64_t>(at), logits);
        item.reference_right = item.reference_right && IsTop(logits, item.answer[at]);
      });
    }
  }

  Tally Measure(std::vector<Item>& items, const std::optional<Strategy>& strategy, int budget) {
    Tally tally;
    for (size_t i = 0; i < items.size(); ++i) {
      Item& item = items[i];
      backend_->Use(strategy);
      bool right = item.reference_right;
      Run(items, i, budget, tally, [&](size_t at, std::span<const float> logits) {
        if (at == 0) return;  // the prompt's last position, which no list has touched
        item.reference->Compare(static_cast<int64_t>(at), logits, tally.divergence);
        right = right && IsTop(logits, item.answer[at]);
      });
      tally.answers += item.reference_right ? 1 : 0;
      tally.right += right ? 1 : 0;
      tally.lists_due += backend_->lists_due();
      tally.lists_made += backend_->lists_made();
    }
    return tally;
  }

 private:
  template <class See>
  void Run(const std::vector<Item>& items, size_t index, int budget, Tally& tally, See see) {
    const Item& item = items[index];
    Request request;
    request.prompt = item.prompt;
    request.forced_tokens = item.answer;
    request.sampling.temperature = 0.0;
    AttentionSettings attention;
    attention.mode = AttentionMode::kSparse;
    attention.prefill_threshold = 0;  // the selector's loss alone
    attention.token_budget = budget;
    attention.selector_interval = 1;
    request.attention = attention;
    const int64_t keep = Kept(items, index);
    if (kept_.insert(keep).second) request.keep_prefix = keep;
    size_t at = 0;
    request.on_token_logits = [&](std::span<const float> logits) { see(at++, logits); };
    const int64_t first = static_cast<int64_t>(item.prompt.size());
    if (!item.is_question && budget != kReadAll) {
      request.on_attention = [&](const AttentionView& view) {
        const int64_t position = view.range.first_position;
        if (!view.decodes || (position - first) % kRecallStride != 0) return Status();
        const std::vector<QueryMass> masses = LS_TRY(MeasureMass(view, {&position, 1}));
        for (const HeadMass& head : masses[0].heads) {
          if (head.way != Way::kRetrieval) continue;
          tally.recall += head.seen;
          ++tally.recall_heads;
        }
        return Status();
      };
    }
    const Asked asked = *Must(Ask(*engine_, std::move(request), {}));
    ++tally.items;
    tally.pages_visited += asked.stats.pages_visited;
    tally.pages_present += asked.stats.pages_present;
  }

  // Tokens of the prompt that are kept for the next run: of a text all that may be, of a question
  // what comes before it.
  static int64_t Kept(const std::vector<Item>& items, size_t index) {
    const std::vector<int32_t>& a = items[index].prompt;
    if (!items[index].is_question) return static_cast<int64_t>(a.size()) - 1;
    const std::vector<int32_t>& b = items[index == 0 ? 1 : 0].prompt;
    return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
  }

  OpMeter meter_;
  SelectorBackend* backend_ = nullptr;
  std::unique_ptr<Engine> engine_;
  std::set<int64_t> kept_;  // prefixes that a request was told to keep
};

struct Where {
  std::string task;  // needle, text, random
  int64_t length = 0;
  std::string source;  // seed or file
  std::string heads;   // half, none; of random: the shape
};

Json Record(const Where& where,
            const std::optional<Strategy>& strategy,
            int budget,
            const Tally& t) {
  const auto per = [](double sum, int64_t count) {
    return count > 0 ? Json(sum / static_cast<double>(count)) : Json();
  };
  const int64_t n = t.divergence.positions;
  Strategy product;
  product.budget = budget;
  return Json(Json::Object{{"task", Json(where.task)},
                           {"length", Json(where.length)},
                           {"source", Json(where.source)},
                           {"heads", Json(where.heads)},
                           {"strategy", ToJson(strategy.value_or(product))},
                           {"is_product", Json(!strategy)},
                           {"answers", Json(t.answers)},
                           {"right", Json(t.right)},
                           {"positions", Json(n)},
                           {"same_top", Json(t.divergence.same_top)},
                           {"kl", per(t.divergence.kl, n)},
                           {"recall", per(t.recall, t.recall_heads)},
                           {"visited", per(t.pages_visited, t.items)},
                           {"present", per(t.pages_present, t.items)},
                           {"lists_due", Json(t.lists_due)},
                           {"lists_made", Json(t.lists_made)}});
}

std::string KeyOf(const Json& record) {
  std::string key;
  for (const char* field : {"task", "length", "source", "heads", "strategy", "is_product"}) {
    const Json* value = record.Find(field);
    key += StrCat(value != nullptr ? WriteJson(*value) : "", "/");
  }
  return key;
}

std::set<std::string> KnownKeys(const std::string& path) {
  std::set<std::string> known;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const Result<Json> record = ParseJson(line);
    if (record.ok()) known.insert(KeyOf(record.value()));
  }
  return known;
}

int Main(const std::vector<std::string>& args) {
  if (args.size() != 5 && args.size() != 6) {
    Die("expected OUT.jsonl needle|text|random LENGTH SEED|FILE half|none|SHAPE [PART/PARTS]");
  }
  size_t part = 0, parts = 1;
  if (args.size() == 6 && (std::sscanf(args[5].c_str(), "%zu/%zu", &part, &parts) != 2 ||
                           parts == 0 || part >= parts)) {
    Die(StrCat("got part \"", args[5], "\", expected as 0/2"));
  }
  const Where where = {.task = args[1],
                       .length = std::atoll(args[2].c_str()),
                       .source = args[3].substr(args[3].rfind('/') + 1),
                       .heads = args[4]};
  EngineConfig config;
  config.device = "cpu";
  config.max_num_seqs = 1;
  if (args.size() == 6) config.num_threads = 1;
  config.kv_cache_bytes = size_t{1} << 30;
  config.max_model_len = where.length + 1024;
  EngineInputs inputs;
  if (where.task == "random") {
    inputs.model = MakeSharpModel(where.heads);
    config.streaming_heads = "none";
  } else {
    config.model_dir = "models/needle";
    if (where.heads == "none") config.streaming_heads = "none";
  }
  Study study(config, std::move(inputs));
  std::vector<Item> items;
  if (where.task == "needle") {
    items = NeedleItems(*study.engine().tokenizer(), where.length,
                        static_cast<uint64_t>(std::atoll(args[3].c_str())));
  } else if (where.task == "text") {
    items =
        TextItems(Must(PlainTokens(*study.engine().tokenizer(), ReadText(args[3]))), where.length);
  } else {
    std::vector<int32_t> bytes;
    for (const char c : ReadText(args[3])) bytes.push_back(static_cast<unsigned char>(c));
    items = TextItems(bytes, where.length);
  }
  study.KeepReferences(items);
  const std::set<std::string> known = KnownKeys(args[0]);
  std::ofstream out(args[0], std::ios::app);
  const auto measure = [&](const std::optional<Strategy>& strategy, int budget) {
    if (budget >= where.length - 1024) return;  // everything, or nearly
    if (known.count(KeyOf(Record(where, strategy, budget, {}))) != 0) return;
    out << WriteJson(Record(where, strategy, budget, study.Measure(items, strategy, budget)))
        << std::endl;
  };
  // The product's own op first: it must say what its twin here says.
  if (part == 0) measure(std::nullopt, 1024);
  const std::vector<Strategy> strategies = Strategies(where.task == "random");
  for (size_t i = part; i < strategies.size(); i += parts) {
    measure(strategies[i], strategies[i].budget);
  }
  return 0;
}

}  // namespace
}  // namespace lserve::study

int main(int argc, char** argv) {
  return lserve::study::Main({argv + 1, argv + argc});
}
