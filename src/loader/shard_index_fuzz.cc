// Any text either gives a one-line error or names that stay in the model's directory.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "loader/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const lserve::Result<lserve::ShardIndex> index = lserve::ParseShardIndex(text, "fuzz");
  if (!index.ok()) {
    LS_CHECK(index.status().message().find('\n') == std::string::npos) << index.status().message();
    return 0;
  }
  LS_CHECK(!index.value().empty());
  for (const auto& [tensor, file] : index.value()) {
    LS_CHECK(!file.empty() && file.find('/') == std::string::npos) << file;
    LS_CHECK(file.find('\0') == std::string::npos) << file;
  }
  return 0;
}
