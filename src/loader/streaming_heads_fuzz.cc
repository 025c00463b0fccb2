// Any text either gives a one-line error or a grid of scores that can be cut at any ratio.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "loader/streaming_heads.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const lserve::Result<lserve::StreamingHeadsFile> parsed =
      lserve::ParseStreamingHeads(text, "fuzz");
  if (!parsed.ok()) {
    LS_CHECK(parsed.status().message().find('\n') == std::string::npos);
    return 0;
  }
  const lserve::StreamingHeadsFile& file = parsed.value();
  LS_CHECK(file.score.size() == static_cast<size_t>(file.layers * file.kv_heads));
  LS_CHECK(!file.kind || file.kind->size() == file.score.size());
  LS_CHECK(lserve::CutByRatio(file, 0.5).ok());
  return 0;
}
