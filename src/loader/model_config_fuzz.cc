// Any text either gives a one-line error or a config within its bounds. A NUL byte separates
// config.json from generation_config.json.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "loader/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t cut = text.find('\0');
  const std::string_view generation =
      cut == std::string_view::npos ? std::string_view() : text.substr(cut + 1);
  const lserve::Result<lserve::ModelConfig> parsed =
      lserve::ParseModelConfig(text.substr(0, cut), generation, "fuzz");
  if (!parsed.ok()) {
    LS_CHECK(parsed.status().message().find('\n') == std::string::npos);
    return 0;
  }
  const lserve::ModelConfig& config = parsed.value();
  LS_CHECK(config.num_kv_heads > 0 && config.num_q_heads % config.num_kv_heads == 0);
  LS_CHECK(config.head_dim > 0 && config.head_dim % 2 == 0);
  LS_CHECK(config.rope.factor >= 1.0 && config.rope.theta > 1.0);
  return 0;
}
