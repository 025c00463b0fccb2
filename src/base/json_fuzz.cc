// Any bytes either parse or give an error; what parses reads back equal after writing.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "base/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  lserve::Result<lserve::Json> parsed = lserve::ParseJson(text);
  if (parsed.ok()) {
    const std::string written = lserve::WriteJson(parsed.value());
    LS_CHECK(lserve::ParseJson(written).ok()) << written;
  }
  return 0;
}
