// Matrix and ConstMatrix: views of row-major two-dimensional data on the backend's device; never
// owners. A tensor of more dimensions is viewed with its last one (or two, flattened) as columns.
// Used by every backend op.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace lserve {

// `data` points to [rows, cols] elements; consecutive rows are `stride` elements apart, so a
// slice of columns is a view too.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  template <class T>
  T* row(int64_t r) const {
    return static_cast<T*>(data) + r * stride;
  }
};

struct ConstMatrix {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  ConstMatrix() = default;
  ConstMatrix(const void* d, DType t, int64_t r, int64_t c, int64_t s)
      : data(d), dtype(t), rows(r), cols(c), stride(s) {}
  ConstMatrix(const Matrix& m)  // NOLINT(google-explicit-constructor)
      : data(m.data), dtype(m.dtype), rows(m.rows), cols(m.cols), stride(m.stride) {}

  template <class T>
  const T* row(int64_t r) const {
    return static_cast<const T*>(data) + r * stride;
  }
};

}  // namespace lserve
