#include "tests/retrieval/retrieval.h"

#include "apps/prompts.h"
#include "base/check.h"
#include "base/strings.h"

namespace lserve {

std::unique_ptr<Engine> MakeNeedleEngine(const std::string& kv_cache_dtype,
                                         const std::string& quantization) {
  EngineConfig config;
  config.model_dir = LS_SOURCE_DIR "/models/needle";
  config.kv_cache_dtype = kv_cache_dtype;
  config.quantization = quantization;
  Result<std::unique_ptr<Engine>> engine = Engine::Create(config);
  LS_CHECK(engine.ok()) << engine.status().message();
  return std::move(engine).value();
}

AttentionSettings DenseAttention() {
  AttentionSettings settings;
  settings.mode = AttentionMode::kDense;
  return settings;
}

AttentionSettings SparseAttention(int token_budget) {
  AttentionSettings settings;
  settings.mode = AttentionMode::kSparse;
  settings.token_budget = token_budget;
  settings.prefill_threshold = 0;
  return settings;
}

AttentionSettings BlockSparseAttention(int token_budget, double threshold) {
  AttentionSettings settings = SparseAttention(token_budget);
  settings.prefill_threshold = threshold;
  settings.prefill_min_position = 0;
  return settings;
}

RetrievalResult AskEverything(Engine& engine,
                              const NeedleDocument& document,
                              const AttentionSettings& attention) {
  std::vector<NeedleQuestion> questions = document.questions;
  LS_CHECK_GE(questions.size(), size_t{2});
  questions.push_back(AskBoth(questions.front(), questions[questions.size() / 2]));
  for (const NeedleQuestion& question : document.all_values) questions.push_back(question);

  const Conversation conversation = {
      .document = document.text, .system = std::nullopt, .date = std::nullopt};
  std::vector<Request> requests;
  std::vector<std::vector<int32_t>> prompts;
  for (const NeedleQuestion& question : questions) {
    Result<std::vector<int32_t>> prompt =
        MakePrompt(*engine.tokenizer(), conversation, question.question);
    LS_CHECK(prompt.ok()) << prompt.status().message();
    prompts.push_back(std::move(prompt).value());
    Request request;
    request.prompt = prompts.back();
    request.sampling.temperature = 0.0;
    request.max_tokens = 96;
    request.attention = attention;
    requests.push_back(std::move(request));
  }
  requests[0].keep_prefix = CommonPrefix(prompts);

  RetrievalResult result;
  Result<std::vector<Answer>> answers = AnswerAll(engine, std::move(requests));
  LS_CHECK(answers.ok()) << answers.status().message();
  result.answers = std::move(answers).value();
  for (size_t i = 0; i < questions.size(); ++i) {
    if (HasSameValues(result.answers[i].text, questions[i].answer)) continue;
    result.wrong.push_back(StrCat("depth ", questions[i].depth, ": ", questions[i].question, " -> ",
                                  result.answers[i].text));
  }
  engine.DropPrefixes();
  return result;
}

}  // namespace lserve
