// Asks one engine everything that a needle document hides and says what was wrong. For the tests of
// this folder.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "apps/answering.h"
#include "eval/needle_document.h"

namespace lserve {

// The bundled model, which carries its own choice of streaming heads (50%).
std::unique_ptr<Engine> MakeNeedleEngine(const std::string& kv_cache_dtype,
                                         const std::string& quantization = "none");

AttentionSettings DenseAttention();
// Retrieval heads read every tile while the prompt is read.
AttentionSettings SparseAttention(int token_budget);
// They read selected tiles, from the first position where there is something to choose.
AttentionSettings BlockSparseAttention(int token_budget, double threshold);

struct RetrievalResult {
  std::vector<std::string> wrong;  // one line per wrong answer
  std::vector<Answer> answers;
};

// The questions of the document one by one, two of them in one turn, and the one for all values if
// there is one. The first keeps the document for the others.
RetrievalResult AskEverything(Engine& engine,
                              const NeedleDocument& document,
                              const AttentionSettings& attention);

}  // namespace lserve
