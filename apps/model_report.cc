#include "apps/model_report.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "apps/machine.h"
#include "apps/quantities.h"
#include "backend/registry.h"
#include "base/strings.h"
#include "kv/kv_layout.h"
#include "loader/safetensors.h"
#include "tokenizer/tokenizer.h"

namespace lserve {
namespace {

uint64_t NumElements(const std::vector<int64_t>& shape) {
  uint64_t count = 1;
  for (const int64_t size : shape) count *= static_cast<uint64_t>(size);
  return count;
}

void CountWeights(const Checkpoint& checkpoint, ModelReport& report) {
  report.weight_bytes = checkpoint.total_bytes();
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    report.num_parameters += NumElements(tensor.shape);
    report.bytes_by_dtype[std::string(Name(tensor.dtype))] += tensor.data.size();
  }
}

// An engine takes half of what is available unless told otherwise; the weights, packed for the CPU,
// come first.
int64_t LongestContext(const ModelReport& report, uint64_t bytes_per_token) {
  const uint64_t available = AvailableMemoryBytes();
  const uint64_t weights = std::min(report.weight_bytes, available);
  if (bytes_per_token == 0) return report.config.max_position_embeddings;
  return std::min<int64_t>(report.config.max_position_embeddings,
                           static_cast<int64_t>((available - weights) / 2 / bytes_per_token));
}

Status AddKvCosts(ModelReport& report) {
  const ModelConfig& config = report.config;
  const std::unique_ptr<Backend> backend =
      LS_TRY(MakeBackend({.device = "cpu", .num_threads = 1, .cpu_isa = "auto"}));
  HeadKinds kinds = report.kinds;
  if (kinds.empty()) kinds.assign(static_cast<size_t>(config.num_layers * config.num_kv_heads), 1);
  for (const DType dtype : kKvDTypes) {
    if (!backend->has_kv_dtype(dtype)) continue;
    const int head_dim = static_cast<int>(config.head_dim);
    const KvLayout layout =
        MakeKvLayout(static_cast<int>(config.num_layers), static_cast<int>(config.num_kv_heads),
                     head_dim, dtype, kinds, backend->kv_head_bytes(dtype, head_dim));
    KvCost cost;
    cost.dtype = Name(dtype);
    cost.sparse_bytes_per_token = layout.way(Way::kRetrieval).page_bytes() / kPageTokens;
    cost.bytes_per_token =
        cost.sparse_bytes_per_token + layout.way(Way::kStreaming).page_bytes() / kPageTokens;
    cost.longest_dense = LongestContext(report, cost.bytes_per_token);
    cost.longest_sparse = LongestContext(report, cost.sparse_bytes_per_token);
    report.kv.push_back(cost);
  }
  return Status();
}

void AddTokenizer(const std::string& model_dir, ModelReport& report) {
  const Result<std::unique_ptr<Tokenizer>> loaded = Tokenizer::Load(model_dir);
  if (!loaded.ok()) {
    report.tokenizer_problem = loaded.status().message();
    return;
  }
  const Tokenizer& tokenizer = *loaded.value();
  report.tokenizer =
      TokenizerFacts{.vocab_size = tokenizer.vocab_size(),
                     .num_special = static_cast<int64_t>(tokenizer.special_ids().size()),
                     .has_chat_template = tokenizer.has_chat_template(),
                     .bos_id = tokenizer.bos_id(),
                     .eos_id = tokenizer.eos_id()};
}

void AddStreamingHeads(const std::string& model_dir, ModelReport& report) {
  const std::string path = model_dir + "/streaming_heads.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    report.heads_problem = "no streaming_heads.json: no head streams";
    return;
  }
  const ModelConfig& config = report.config;
  Result<StreamingHeadsFile> file = LoadStreamingHeads(path);
  Status status = file.status();
  if (status.ok()) status = CheckShape(file.value(), config.num_layers, config.num_kv_heads, path);
  if (!status.ok()) {
    report.heads_problem = status.message();
    return;
  }
  report.heads = std::move(file).value();
  if (report.heads->kind) report.kinds = *report.heads->kind;
}

int64_t NumStreaming(const ModelReport& report) {
  return std::count(report.kinds.begin(), report.kinds.end(), uint8_t{0});
}

Json OptionalId(const std::optional<int32_t>& id) {
  return id ? Json(int64_t{*id}) : Json();
}

Json ShapeJson(const ModelConfig& c) {
  return Json(Json::Object{{"layers", Json(c.num_layers)},
                           {"hidden_size", Json(c.hidden_size)},
                           {"intermediate_size", Json(c.intermediate_size)},
                           {"query_heads", Json(c.num_q_heads)},
                           {"kv_heads", Json(c.num_kv_heads)},
                           {"head_dim", Json(c.head_dim)},
                           {"vocab_size", Json(c.vocab_size)},
                           {"max_position_embeddings", Json(c.max_position_embeddings)},
                           {"tie_word_embeddings", Json(c.tie_word_embeddings)}});
}

Json HeadsJson(const ModelReport& report) {
  if (!report.heads) return Json();
  Json::Array scores, kinds;
  const size_t width = static_cast<size_t>(report.heads->kv_heads);
  for (size_t first = 0; first < report.heads->score.size(); first += width) {
    Json::Array score_row, kind_row;
    for (size_t i = first; i < first + width; ++i) {
      score_row.push_back(Json(static_cast<double>(report.heads->score[i])));
      if (!report.kinds.empty()) kind_row.push_back(Json(int{report.kinds[i]}));
    }
    scores.push_back(Json(std::move(score_row)));
    kinds.push_back(Json(std::move(kind_row)));
  }
  return Json(Json::Object{{"score", Json(std::move(scores))},
                           {"kind", report.kinds.empty() ? Json() : Json(std::move(kinds))},
                           {"streaming", Json(NumStreaming(report))}});
}

// One character per KV head: '.' streams, '1' to '9' retrieves, by how much its score is of the
// largest, on a logarithmic scale of one step per halving.
std::string HeatMap(const ModelReport& report) {
  const StreamingHeadsFile& file = *report.heads;
  const float largest = *std::max_element(file.score.begin(), file.score.end());
  std::string map = "                  KV head 0.." + StrCat(file.kv_heads - 1) + "\n";
  for (int64_t layer = 0; layer < file.layers; ++layer) {
    std::string label = StrCat(layer);
    label.insert(0, 14 - std::min<size_t>(14, label.size()), ' ');
    map += label + "    ";
    for (int64_t head = 0; head < file.kv_heads; ++head) {
      const size_t at = static_cast<size_t>(layer * file.kv_heads + head);
      const bool streams = !report.kinds.empty() && report.kinds[at] == 0;
      int level = 9;
      for (float bound = largest; level > 1 && file.score[at] < bound; bound /= 2) --level;
      map.push_back(streams ? '.' : static_cast<char>('0' + level));
      map.push_back(' ');
    }
    map += "\n";
  }
  return map;
}

std::string RopeText(const RopeConfig& rope) {
  std::string text = StrCat(Name(rope.type), ", theta ", rope.theta);
  if (rope.type != RopeType::kDefault) text += StrCat(", factor ", rope.factor);
  if (rope.original_max_position_embeddings > 0 && rope.type != RopeType::kDefault) {
    text += StrCat(", from ", FormatCount(rope.original_max_position_embeddings), " positions");
  }
  return text;
}

std::string KvText(const ModelReport& report) {
  std::string text;
  for (const KvCost& cost : report.kv) {
    std::string dtype = cost.dtype;
    dtype.resize(6, ' ');
    text += StrCat(
        "  KV cache ", dtype, " ", FormatCount(static_cast<int64_t>(cost.bytes_per_token)),
        " bytes per token dense, ", FormatCount(static_cast<int64_t>(cost.sparse_bytes_per_token)),
        " sparse; half of the free memory holds ", FormatCount(cost.longest_dense),
        " tokens dense, ", FormatCount(cost.longest_sparse), " sparse\n");
  }
  return text;
}

}  // namespace

Result<ModelReport> MakeModelReport(const std::string& model_dir) {
  ModelReport report;
  report.config = LS_TRY(LoadModelConfig(model_dir));
  const Checkpoint checkpoint = LS_TRY(Checkpoint::Open(model_dir));
  CountWeights(checkpoint, report);
  AddStreamingHeads(model_dir, report);
  AddTokenizer(model_dir, report);
  LS_TRY(AddKvCosts(report));
  return report;
}

Json ReportToJson(const ModelReport& report) {
  const ModelConfig& c = report.config;
  Json::Object dtypes;
  for (const auto& [dtype, bytes] : report.bytes_by_dtype) {
    dtypes.emplace_back(dtype, Json(static_cast<int64_t>(bytes)));
  }
  Json::Array kv;
  for (const KvCost& cost : report.kv) {
    kv.push_back(Json(Json::Object{
        {"dtype", Json(cost.dtype)},
        {"bytes_per_token", Json(static_cast<int64_t>(cost.bytes_per_token))},
        {"sparse_bytes_per_token", Json(static_cast<int64_t>(cost.sparse_bytes_per_token))},
        {"longest_context_dense", Json(cost.longest_dense)},
        {"longest_context_sparse", Json(cost.longest_sparse)}}));
  }
  Json tokenizer;
  if (report.tokenizer) {
    const TokenizerFacts& facts = *report.tokenizer;
    tokenizer = Json(Json::Object{{"vocab_size", Json(facts.vocab_size)},
                                  {"special_tokens", Json(facts.num_special)},
                                  {"chat_template", Json(facts.has_chat_template)},
                                  {"bos_id", OptionalId(facts.bos_id)},
                                  {"eos_id", OptionalId(facts.eos_id)}});
  }
  return Json(Json::Object{
      {"supported", Json(true)},
      {"model", Json(c.name)},
      {"architecture", Json(std::string(Name(c.architecture)))},
      {"shape", ShapeJson(c)},
      {"parameters", Json(static_cast<int64_t>(report.num_parameters))},
      {"weight_bytes", Json(static_cast<int64_t>(report.weight_bytes))},
      {"weight_bytes_by_dtype", Json(std::move(dtypes))},
      {"rope", Json(Json::Object{{"type", Json(std::string(Name(c.rope.type)))},
                                 {"theta", Json(c.rope.theta)},
                                 {"factor", Json(c.rope.factor)}})},
      {"kv_cache", Json(std::move(kv))},
      {"memory_available_bytes", Json(static_cast<int64_t>(AvailableMemoryBytes()))},
      {"tokenizer", std::move(tokenizer)},
      {"tokenizer_problem",
       report.tokenizer_problem.empty() ? Json() : Json(report.tokenizer_problem)},
      {"streaming_heads", HeadsJson(report)},
      {"streaming_heads_problem",
       report.heads_problem.empty() ? Json() : Json(report.heads_problem)},
  });
}

std::string ReportToText(const ModelReport& report) {
  const ModelConfig& c = report.config;
  std::string text =
      StrCat(c.name, ": ", Name(c.architecture), ", supported\n  shape           ", c.num_layers,
             " layers, hidden ", c.hidden_size, ", MLP ", c.intermediate_size, ", ", c.num_q_heads,
             " query heads, ", c.num_kv_heads, " KV heads of ", c.head_dim, ", vocabulary ",
             FormatCount(c.vocab_size), c.tie_word_embeddings ? ", tied embeddings" : "",
             "\n  parameters      ", FormatCount(static_cast<int64_t>(report.num_parameters)),
             "\n  weights         ", FormatBytes(report.weight_bytes));
  for (const auto& [dtype, bytes] : report.bytes_by_dtype) {
    text += StrCat(", ", FormatBytes(bytes), " of ", dtype);
  }
  text += StrCat("\n  positions       ", FormatCount(c.max_position_embeddings),
                 "\n  RoPE            ", RopeText(c.rope), "\n", KvText(report));
  if (report.tokenizer) {
    const TokenizerFacts& facts = *report.tokenizer;
    text += StrCat("  tokenizer       ", FormatCount(facts.vocab_size), " ids, ", facts.num_special,
                   " special, ", facts.has_chat_template ? "with" : "without", " chat template\n");
  } else {
    text += StrCat("  tokenizer       none: ", report.tokenizer_problem, "\n");
  }
  if (!report.heads) return text + StrCat("  streaming heads ", report.heads_problem, "\n");
  text += StrCat("  streaming heads ", NumStreaming(report), " of ", c.num_layers * c.num_kv_heads,
                 " KV heads; by layer ('.' streams, 1 to 9: how much a head needs its whole "
                 "context)\n",
                 HeatMap(report));
  return text;
}

}  // namespace lserve
