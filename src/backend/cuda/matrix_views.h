// Matrices of ops as kernels see them. Used by the host files of this folder.
#pragma once

#include "backend/cuda/device_views.h"
#include "base/check.h"
#include "tensor/matrix.h"

namespace lserve {

// REQUIRES: kF32.
inline MatrixView View(const Matrix& m) {
  LS_CHECK(m.dtype == DType::kF32) << Name(m.dtype);
  return {static_cast<float*>(m.data), m.stride};
}

inline ConstMatrixView View(const ConstMatrix& m) {
  LS_CHECK(m.dtype == DType::kF32) << Name(m.dtype);
  return {static_cast<const float*>(m.data), m.stride};
}

}  // namespace lserve
