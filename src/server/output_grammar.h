// OutputGrammars: makes what masks an answer's tokens from what a request says about its form, and
// keeps the last ones, for the next request mostly wants the same. Thread-safe. Used by the
// service.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "grammar/token_masker.h"
#include "server/api_error.h"
#include "server/output_options.h"
#include "server/tool_calls.h"

namespace lserve {

inline constexpr size_t kMaxSchemaBytes = size_t{256} << 10;  // of all schemas of a request

class OutputGrammars {
 public:
  // `tokenizer` must outlive this.
  OutputGrammars(const Tokenizer* tokenizer, std::vector<int32_t> end_tokens);

  // Null in `out`: the answer is free. Takes as long as the schema is large: never on the engine's
  // thread.
  std::optional<ApiError> Find(const OutputFormat& format,
                               const ToolOptions& tools,
                               ToolStyle style,
                               std::shared_ptr<TokenMasker>* out);

 private:
  Result<std::shared_ptr<TokenMasker>> Make(const OutputFormat& format,
                                            const ToolOptions& tools,
                                            ToolStyle style);

  const Tokenizer* const tokenizer_;
  const std::vector<int32_t> end_tokens_;
  std::once_flag trie_made_;
  std::shared_ptr<const TokenTrie> trie_;
  std::mutex mutex_;
  std::list<std::pair<std::string, std::shared_ptr<TokenMasker>>> known_;  // newest first
};

}  // namespace lserve
