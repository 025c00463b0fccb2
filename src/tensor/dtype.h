// DType: the element types of tensors, weights and checkpoints, with their size and name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace lserve {

// kFp8 is E4M3 (base/e4m3.h).
enum class DType : uint8_t { kF32, kF16, kBf16, kInt32, kInt8, kInt4, kFp8 };

// Bits of one element; kInt4 packs two elements into a byte.
constexpr int BitsOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kInt32:
      return 32;
    case DType::kF16:
    case DType::kBf16:
      return 16;
    case DType::kInt8:
    case DType::kFp8:
      return 8;
    case DType::kInt4:
      return 4;
  }
  return 0;
}

// "f32", "f16", "bf16", "int32", "int8", "int4", "fp8".
std::string_view Name(DType dtype);
std::optional<DType> ParseDType(std::string_view name);

}  // namespace lserve
