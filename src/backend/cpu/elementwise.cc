// The ops between the products: one row at a time, spread over the threads by rows. A row's result
// depends on nothing but the row.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/linear_kernels.h"
#include "base/check.h"
#include "base/strings.h"

namespace lserve {
namespace {

// Floats worth the few microseconds of waking a thread.
constexpr int64_t kGrain = 16 << 10;

template <class F>
void ForRows(ThreadPool& pool, int64_t rows, int64_t floats_per_row, F f) {
  const int64_t rows_per_item = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, floats_per_row));
  pool.Run((rows + rows_per_item - 1) / rows_per_item, [&](int64_t item, int) {
    const int64_t last = std::min(rows, (item + 1) * rows_per_item);
    for (int64_t r = item * rows_per_item; r < last; ++r) f(r);
  });
}

}  // namespace

Status CpuBackend::GatherRows(const GatherRowsParams& p) {
  const int64_t rows = static_cast<int64_t>(p.indices.size());
  const int64_t cols = p.table.cols;
  LS_CHECK_EQ(p.out.rows, rows);
  LS_CHECK_EQ(p.out.cols, cols);
  const DType dtype = p.table.dtype;
  if (dtype != DType::kF32 && dtype != DType::kBf16 && dtype != DType::kF16) {
    return Status(Code::kUnsupported,
                  StrCat("table of type ", Name(dtype), ": the cpu backend has bf16, f16 and f32; ",
                         "convert the checkpoint to one of them"));
  }
  ForRows(pool_, rows, cols, [&](int64_t r) {
    const int64_t index = p.indices[static_cast<size_t>(r)];
    LS_CHECK(index >= 0 && index < p.table.rows) << index;
    float* out = p.out.row<float>(r);
    if (dtype == DType::kF32) {
      std::memcpy(out, p.table.row<float>(index), static_cast<size_t>(cols) * sizeof(float));
    } else if (dtype == DType::kBf16) {
      linear_->widen_bf16(p.table.row<uint16_t>(index), cols, out);
    } else {
      linear_->widen_f16(p.table.row<uint16_t>(index), cols, out);
    }
  });
  return Status();
}

Status CpuBackend::RmsNorm(const RmsNormParams& p) {
  LS_CHECK_EQ(p.x.cols, p.y.cols);
  LS_CHECK_EQ(p.x.cols % p.groups, 0);
  const int64_t n = p.x.cols / p.groups;
  ForRows(pool_, p.x.rows, p.x.cols, [&](int64_t r) {
    const float* x = p.x.row<float>(r);
    float* y = p.y.row<float>(r);
    for (int64_t g = 0; g < p.groups; ++g) {
      linear_->rms_norm(x + g * n, p.weight, n, p.eps, y + g * n);
    }
  });
  return Status();
}

Status CpuBackend::SiluMul(const SiluMulParams& p) {
  const int64_t n = p.y.cols;
  LS_CHECK_EQ(p.x.cols, 2 * n);
  ForRows(pool_, p.x.rows, 2 * n, [&](int64_t r) {
    const float* x = p.x.row<float>(r);
    linear_->silu_mul(x, x + n, n, p.y.row<float>(r));
  });
  return Status();
}

Status CpuBackend::Rope(const RopeParams& p) {
  const int64_t half = p.head_dim / 2;
  LS_CHECK_GE(p.x.cols, int64_t{p.num_heads} * p.head_dim);
  LS_CHECK_EQ(p.cos.cols, half);
  ForRows(pool_, p.x.rows, int64_t{p.num_heads} * p.head_dim, [&](int64_t r) {
    for (int64_t h = 0; h < p.num_heads; ++h) {
      linear_->rope(p.x.row<float>(r) + h * p.head_dim, p.cos.row<float>(r), p.sin.row<float>(r),
                    half);
    }
  });
  return Status();
}

}  // namespace lserve
