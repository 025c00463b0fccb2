// Any template must parse or fail, and render or fail, within its limits.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "tokenizer/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  lserve::ChatTemplateLimits limits;
  limits.max_output_bytes = 1 << 16;
  limits.max_work_bytes = 1 << 20;
  limits.max_steps = 20'000;
  const auto chat_template =
      lserve::ChatTemplate::Parse(source, lserve::Json(lserve::Json::Object{}), limits);
  if (!chat_template.ok()) return 0;
  lserve::ChatRequest request;
  request.messages =
      lserve::ParseJson(R"([{"role":"user","content":"a b","n":1.5,"l":[1,"x",null,true]}])")
          .value();
  request.date = lserve::ChatDate{2026, 11, 24, 1, 2, 3};
  const auto prompt = chat_template.value().Render(request);
  if (!prompt.ok()) return 0;
  size_t end = 0;
  for (const lserve::ByteRange& range : prompt.value().user_ranges) {
    if (range.begin < end || range.end <= range.begin) std::abort();
    end = range.end;
  }
  if (end > prompt.value().text.size()) std::abort();
  return 0;
}
