// Any bytes either parse or give a one-line error; what parses has spans inside the input.
#include <cstdint>

#include "base/check.h"
#include "loader/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const lserve::Result<lserve::SafetensorsFile> file = lserve::ParseSafetensors(bytes, "fuzz");
  if (!file.ok()) {
    LS_CHECK(file.status().message().find('\n') == std::string::npos) << file.status().message();
    return 0;
  }
  for (const lserve::TensorInfo& tensor : file.value().tensors) {
    if (tensor.data.empty()) continue;
    LS_CHECK(tensor.data.data() >= bytes.data());
    LS_CHECK(tensor.data.data() + tensor.data.size() <= bytes.data() + bytes.size());
  }
  return 0;
}
