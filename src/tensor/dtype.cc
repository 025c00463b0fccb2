#include "tensor/dtype.h"

namespace lserve {
namespace {

constexpr DType kAll[] = {DType::kF32,  DType::kF16,  DType::kBf16, DType::kInt32,
                          DType::kInt8, DType::kInt4, DType::kFp8};

}  // namespace

std::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBf16:
      return "bf16";
    case DType::kInt32:
      return "int32";
    case DType::kInt8:
      return "int8";
    case DType::kInt4:
      return "int4";
    case DType::kFp8:
      return "fp8";
  }
  return "?";
}

std::optional<DType> ParseDType(std::string_view name) {
  for (const DType dtype : kAll) {
    if (Name(dtype) == name) return dtype;
  }
  return std::nullopt;
}

}  // namespace lserve
