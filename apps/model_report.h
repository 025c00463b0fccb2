// ModelReport: the facts of a model directory without running it: shapes, sizes, KV bytes, which
// heads stream. Used by `lserve inspect`.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "loader/model_config.h"
#include "loader/streaming_heads.h"

namespace lserve {

struct KvCost {
  std::string dtype;
  uint64_t bytes_per_token = 0;         // dense: every head keeps every token
  uint64_t sparse_bytes_per_token = 0;  // the retrieval heads' part; streaming heads stay constant
  int64_t longest_dense = 0;            // tokens that fit half of the available memory
  int64_t longest_sparse = 0;
};

struct TokenizerFacts {
  int64_t vocab_size = 0;
  int64_t num_special = 0;
  bool has_chat_template = false;
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
};

struct ModelReport {
  ModelConfig config;
  uint64_t num_parameters = 0;  // of all tensors in the files
  uint64_t weight_bytes = 0;
  std::map<std::string, uint64_t> bytes_by_dtype;
  std::vector<KvCost> kv;
  std::optional<TokenizerFacts> tokenizer;
  std::string tokenizer_problem;  // why there is none
  std::optional<StreamingHeadsFile> heads;
  HeadKinds kinds;  // [layers * kv_heads] of the file, or empty
  std::string heads_problem;
};

// Fails if the model can not be loaded: then the message is the reason.
Result<ModelReport> MakeModelReport(const std::string& model_dir);

Json ReportToJson(const ModelReport& report);
std::string ReportToText(const ModelReport& report);

}  // namespace lserve
