// Any tokenizer_config.json beside a small tokenizer loads, its chat templates included, or gives a
// one-line error; chat_template_fuzz renders.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/check.h"
#include "tokenizer/tokenizer.h"

namespace {

constexpr const char* kTokenizer =
    R"({"decoder":{"type":"ByteLevel"},"pre_tokenizer":{"type":"ByteLevel"},)"
    R"("added_tokens":[{"id":3,"content":"<s>","special":true}],)"
    R"("model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lserve::TokenizerFiles files;
  files.tokenizer_json = kTokenizer;
  files.tokenizer_config_json.assign(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = lserve::Tokenizer::FromFiles(files);
  if (!tokenizer.ok()) {
    const std::string message = tokenizer.status().message();
    LS_CHECK(message.find('\n') == std::string::npos) << message;
    return 0;
  }
  const auto ids = tokenizer.value()->Encode("ab <s>ba", {true, true});
  LS_CHECK(ids.ok()) << ids.status().message();
  LS_CHECK(tokenizer.value()->Decode(ids.value(), true).ok());
  return 0;
}
