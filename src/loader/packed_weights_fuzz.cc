// Any bytes either parse or give a one-line error; what parses has spans inside the input.
#include <cstdint>

#include "base/check.h"
#include "loader/packed_weights.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const lserve::Result<lserve::PackedTable> table =
      lserve::ParsePackedWeights(bytes, "key", "fuzz");
  if (!table.ok()) {
    LS_CHECK(table.status().message().find('\n') == std::string::npos) << table.status().message();
    return 0;
  }
  for (const auto& [name, blob] : table.value()) {
    if (blob.data.empty()) continue;
    LS_CHECK(blob.data.data() >= bytes.data());
    LS_CHECK(blob.data.data() + blob.data.size() <= bytes.data() + bytes.size());
    static_cast<void>(lserve::ChecksumOf(blob.data));
  }
  return 0;
}
