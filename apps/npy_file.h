// NpyFile: writes a float32 matrix in NumPy format 1.0, rows as they come. A regular file appears
// under its name only when it is complete. Used by `lserve run --logits-out`.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace lserve {

// The header of a little-endian, C-ordered float32 array [rows, cols], padded to 64 bytes.
std::string NpyHeader(int64_t rows, int64_t cols);

class NpyFile {
 public:
  static Result<NpyFile> Create(const std::string& path, int64_t rows, int64_t cols);
  NpyFile(NpyFile&& other) noexcept;
  NpyFile& operator=(NpyFile&&) = delete;
  ~NpyFile();  // removes what is not finished

  // `row` is float32 [cols].
  Status AppendRow(const float* row);
  // REQUIRES: nothing appended after it. An error if rows are missing.
  Status Finish();

 private:
  NpyFile() = default;
  Status Write(const void* data, size_t bytes);
  Status IoError(const char* verb) const;

  std::string path_;
  std::string written_path_;  // path_ + ".part", or path_ if that is a device or a pipe
  int fd_ = -1;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  int64_t rows_written_ = 0;
};

}  // namespace lserve
