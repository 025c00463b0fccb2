// Checkpoint: the tensors of a Hugging Face model directory (model.safetensors, or shards named by
// model.safetensors.index.json), memory-mapped and fully validated; and the parsers of one file and
// of the index. Knows nothing of layers or of what a tensor is for. Used by model/ and
// `lserve inspect`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"
#include "base/status.h"
#include "tensor/dtype.h"

namespace lserve {

// A tensor of a usable dtype: kBf16, kF16 or kF32.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;       // empty: one element
  std::span<const std::byte> data;  // row-major, little-endian
};

// A tensor whose dtype is known to the format but not to us ("I64", "F8_E4M3", ...): it can be
// listed, not read.
struct ListedTensor {
  std::string name;
  std::string dtype_name;
  std::vector<int64_t> shape;
};

struct SafetensorsFile {
  std::vector<TensorInfo> tensors;   // sorted by name
  std::vector<ListedTensor> listed;  // sorted by name
  size_t data_bytes = 0;             // of both
};

// Validates one file as the format demands: header length, JSON, dtypes, shapes, and offsets that
// cover the data without gap or overlap. `path` only serves messages. The spans point into `bytes`,
// with whatever alignment the file gave them.
Result<SafetensorsFile> ParseSafetensors(std::span<const std::byte> bytes, const std::string& path);

// Tensor name -> the file of the same directory that holds it.
using ShardIndex = std::map<std::string, std::string>;

// The text of a model.safetensors.index.json. `path` only serves messages.
Result<ShardIndex> ParseShardIndex(std::string_view text, const std::string& path);

// Move-only owner of the mappings. Every TensorInfo::data is aligned to its element size (a tensor
// that the file misaligns is copied) and stays valid while the Checkpoint lives, moved or not.
// Thread safety: const methods may be called from several threads.
class Checkpoint {
 public:
  // model.safetensors if there is one, otherwise the shards of model.safetensors.index.json.
  static Result<Checkpoint> Open(const std::string& model_dir);
  // Tensors that are in memory already, for models that were never on disk; `memory` keeps their
  // bytes alive. REQUIRES: names are unique, data is as large as its shape and aligned.
  static Checkpoint InMemory(std::string name,
                             std::vector<TensorInfo> tensors,
                             std::shared_ptr<const void> memory);

  // The usable tensor of that name, or nullptr.
  const TensorInfo* Find(std::string_view name) const;
  // The same, with an error that says whether it is missing or of a dtype we cannot read.
  Result<const TensorInfo*> Get(std::string_view name) const;
  // Get, and the shape must be `shape`.
  Result<const TensorInfo*> Get(std::string_view name, std::span<const int64_t> shape) const;

  std::vector<std::string> names() const;  // of all tensors, listed ones included; sorted
  const std::map<std::string, TensorInfo, std::less<>>& tensors() const { return tensors_; }
  const std::map<std::string, ListedTensor, std::less<>>& listed() const { return listed_; }
  size_t total_bytes() const { return total_bytes_; }  // tensor data of all files
  const std::string& model_dir() const { return model_dir_; }
  // Changes when a file does: names, sizes, times of the last change and headers of all files.
  const std::string& identity() const { return identity_; }

  // Gives the memory of a tensor that was read back to the system; reading it again is slower.
  void Release(const TensorInfo& tensor) const;

 private:
  Checkpoint() = default;
  Status AddFile(const std::string& path);

  std::string model_dir_;
  std::string identity_;
  std::vector<MappedFile> files_;
  std::vector<std::unique_ptr<std::byte[]>> copies_;  // of misaligned tensors
  std::shared_ptr<const void> memory_;                // of InMemory
  std::map<std::string, TensorInfo, std::less<>> tensors_;
  std::map<std::string, ListedTensor, std::less<>> listed_;
  size_t total_bytes_ = 0;
};

// "[4096, 128]"
std::string ShapeText(std::span<const int64_t> shape);

}  // namespace lserve
