// A tokenizer.json and, after the first zero byte, a text: neither may crash anything.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = input.find('\0');
  lserve::TokenizerFiles files;
  files.tokenizer_json = input.substr(0, cut);
  const auto tokenizer = lserve::Tokenizer::FromFiles(files);
  if (!tokenizer.ok() || cut == std::string_view::npos) return 0;
  const auto ids = tokenizer.value()->Encode(input.substr(cut + 1), {true, true});
  if (!ids.ok()) return 0;
  // Streaming and decoding at once must agree.
  const auto text = tokenizer.value()->Decode(ids.value(), false);
  lserve::StreamDetokenizer stream(*tokenizer.value(), false);
  std::string streamed;
  for (const lserve::TokenId id : ids.value()) streamed += stream.Push(id).value();
  if (streamed + stream.Finish() != text.value()) std::abort();
  return 0;
}
