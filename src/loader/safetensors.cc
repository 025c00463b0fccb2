#include "loader/safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/json.h"
#include "base/strings.h"
#include "loader/json_fields.h"
#include "loader/packed_weights.h"

namespace lserve {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxDims = 8;                     // our models use at most 2
constexpr char kAdvice[] = "; download the file again";

// A dtype of the format: its spelling, the bits of one element, and our type if we can read it.
struct FormatDType {
  std::string_view name;
  uint64_t bits;
  std::optional<DType> usable;
};

constexpr FormatDType kDTypes[] = {
    {"BF16", 16, DType::kBf16},   {"F16", 16, DType::kF16},     {"F32", 32, DType::kF32},
    {"F64", 64, std::nullopt},    {"BOOL", 8, std::nullopt},    {"U8", 8, std::nullopt},
    {"I8", 8, std::nullopt},      {"F8_E4M3", 8, std::nullopt}, {"F8_E5M2", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt}, {"I16", 16, std::nullopt},    {"U16", 16, std::nullopt},
    {"I32", 32, std::nullopt},    {"U32", 32, std::nullopt},    {"I64", 64, std::nullopt},
    {"U64", 64, std::nullopt},    {"C64", 64, std::nullopt},    {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt}, {"F6_E3M2", 6, std::nullopt},
};

const FormatDType* FindDType(std::string_view name) {
  for (const FormatDType& dtype : kDTypes) {
    if (dtype.name == name) return &dtype;
  }
  return nullptr;
}

// One entry of the header, checked by itself.
struct Entry {
  std::string name;
  const FormatDType* dtype = nullptr;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // byte offsets into the data section
  uint64_t end = 0;
};

Status Corrupt(const std::string& where, const std::string& what) {
  return Status(Code::kCorruptModel, StrCat(where, ": ", what, kAdvice));
}

Result<std::vector<int64_t>> ParseShape(const Json& entry, const std::string& where) {
  const Json* shape = entry.Find("shape");
  if (shape == nullptr || !shape->is_array() || shape->as_array().size() > kMaxDims) {
    return Corrupt(where, StrCat("\"shape\" is ", shape == nullptr ? "missing" : Shown(*shape),
                                 ", expected an array of at most ", kMaxDims, " integers"));
  }
  std::vector<int64_t> dims;
  for (const Json& dim : shape->as_array()) {
    if (!dim.is_int() || dim.as_int() < 0) {
      return Corrupt(where, StrCat("shape has ", Shown(dim), ", expected integers >= 0"));
    }
    dims.push_back(dim.as_int());
  }
  return dims;
}

// Bytes that `shape` takes, or nullopt if the count overflows or is no whole number of bytes.
std::optional<uint64_t> ShapeBytes(const std::vector<int64_t>& shape, uint64_t bits) {
  uint64_t total_bits = bits;
  for (const int64_t dim : shape) {
    if (__builtin_mul_overflow(total_bits, static_cast<uint64_t>(dim), &total_bits)) {
      return std::nullopt;
    }
  }
  if (total_bits % 8 != 0) return std::nullopt;
  return total_bits / 8;
}

Status ParseOffsets(const Json& json, const std::string& where, uint64_t data_bytes, Entry& entry) {
  const Json* offsets = json.Find("data_offsets");
  const bool pair = offsets != nullptr && offsets->is_array() && offsets->as_array().size() == 2 &&
                    offsets->as_array()[0].is_int() && offsets->as_array()[1].is_int();
  if (!pair) {
    return Corrupt(where,
                   StrCat("\"data_offsets\" is ", offsets == nullptr ? "missing" : Shown(*offsets),
                          ", expected two integers"));
  }
  const int64_t begin = offsets->as_array()[0].as_int();
  const int64_t end = offsets->as_array()[1].as_int();
  if (begin < 0 || end < begin || static_cast<uint64_t>(end) > data_bytes) {
    return Corrupt(
        where, StrCat("data_offsets are [", begin, ", ", end,
                      "], expected an ascending range within the ", data_bytes, " bytes of data"));
  }
  entry.begin = static_cast<uint64_t>(begin);
  entry.end = static_cast<uint64_t>(end);
  return Status();
}

Result<Entry> ParseEntry(const std::string& name,
                         const Json& json,
                         uint64_t data_bytes,
                         const std::string& path) {
  const std::string where = StrCat(path, ": tensor ", Quoted(name));
  if (!json.is_object()) {
    return Corrupt(where, StrCat("is ", Shown(json), ", expected an object"));
  }
  Entry entry;
  entry.name = name;
  const Json* dtype = json.Find("dtype");
  if (dtype == nullptr || !dtype->is_string()) {
    return Corrupt(where, StrCat("\"dtype\" is ", dtype == nullptr ? "missing" : Shown(*dtype),
                                 ", expected a string"));
  }
  entry.dtype = FindDType(dtype->as_string());
  if (entry.dtype == nullptr) {
    return Status(Code::kUnsupported,
                  StrCat(where, ": dtype is ", Quoted(dtype->as_string()),
                         ", expected a dtype of the safetensors format such as \"BF16\", \"F16\" "
                         "or \"F32\"; convert the checkpoint"));
  }
  entry.shape = LS_TRY(ParseShape(json, where));
  LS_TRY(ParseOffsets(json, where, data_bytes, entry));
  const std::optional<uint64_t> bytes = ShapeBytes(entry.shape, entry.dtype->bits);
  if (!bytes) {
    return Corrupt(where, StrCat("shape ", ShapeText(entry.shape), " of ", entry.dtype->name,
                                 " overflows or is no whole number of bytes, expected a size that "
                                 "fits the file"));
  }
  if (*bytes != entry.end - entry.begin) {
    return Corrupt(where, StrCat("has ", entry.end - entry.begin, " bytes of data, expected ",
                                 *bytes, " for ", entry.dtype->name, " ", ShapeText(entry.shape)));
  }
  return entry;
}

// The header's length and JSON.
Result<Json> ParseHeader(std::span<const std::byte> bytes,
                         const std::string& path,
                         size_t& data_start) {
  if (bytes.size() < kLengthBytes) {
    return Corrupt(path, StrCat("has ", bytes.size(),
                                " bytes, expected at least 8 (a safetensors header length)"));
  }
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  }
  if (length > kMaxHeaderBytes) {
    return Corrupt(path, StrCat("header length is ", length, ", expected at most ", kMaxHeaderBytes,
                                " (is this a safetensors file?)"));
  }
  if (length > bytes.size() - kLengthBytes) {
    return Corrupt(path,
                   StrCat("header length is ", length, " but only ", bytes.size() - kLengthBytes,
                          " bytes follow, expected a complete header (truncated file?)"));
  }
  data_start = kLengthBytes + static_cast<size_t>(length);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes,
                              static_cast<size_t>(length));
  Result<Json> header = ParseJson(text, {.max_depth = 8});
  if (!header.ok()) {
    return Corrupt(path, StrCat("header is no valid JSON (", header.status().message(),
                                "), expected an object of tensors"));
  }
  if (!header.value().is_object()) {
    return Corrupt(path, StrCat("header is ", Shown(header.value()), ", expected an object"));
  }
  return header;
}

Status CheckMetadata(const Json& metadata, const std::string& path) {
  bool strings = metadata.is_object();
  if (strings) {
    for (const Json::Member& member : metadata.as_object()) strings &= member.second.is_string();
  }
  if (!strings) {
    return Corrupt(path, "\"__metadata__\" holds other values, expected an object of strings");
  }
  return Status();
}

// The tensors must tile the data section: no gap, no overlap, nothing after the last.
Status CheckTiling(std::vector<Entry>& entries, uint64_t data_bytes, const std::string& path) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t next = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != next) {
      return Corrupt(StrCat(path, ": tensor ", Quoted(entry.name)),
                     StrCat("begins at byte ", entry.begin,
                            entry.begin < next ? " inside another tensor" : " after a gap",
                            ", expected ", next));
    }
    next = entry.end;
  }
  if (next != data_bytes) {
    return Corrupt(path, StrCat("has ", data_bytes, " bytes of data, expected ", next,
                                " for the tensors of its header"));
  }
  return Status();
}

bool FileExists(const std::string& path) {
  struct stat info = {};
  return stat(path.c_str(), &info) == 0;
}

Result<ShardIndex> ReadIndex(const std::string& path) {
  return ParseShardIndex(LS_TRY(ReadTextFile(path, kMaxHeaderBytes)), path);
}

}  // namespace

Result<ShardIndex> ParseShardIndex(std::string_view text, const std::string& path) {
  Result<Json> parsed = ParseJson(text, {.max_depth = 8});
  if (!parsed.ok()) {
    return Corrupt(path, StrCat("is no valid JSON (", parsed.status().message(),
                                "), expected a safetensors index"));
  }
  const Json* weight_map = parsed.value().Find("weight_map");
  if (weight_map == nullptr || !weight_map->is_object() || weight_map->as_object().empty()) {
    return Corrupt(
        path, StrCat("\"weight_map\" is ", weight_map == nullptr ? "missing" : Shown(*weight_map),
                     ", expected an object from tensor names to files"));
  }
  ShardIndex shards;
  for (const auto& [tensor, file] : weight_map->as_object()) {
    // A shard lies beside its index: a path could name any file of the machine.
    const bool plain =
        file.is_string() && !file.as_string().empty() &&
        file.as_string().find_first_of(std::string_view("/\0", 2)) == std::string::npos;
    if (!plain) {
      return Corrupt(path, StrCat("maps tensor ", Quoted(tensor), " to ", Shown(file),
                                  ", expected the name of a file in the same directory"));
    }
    shards[tensor] = file.as_string();
  }
  return shards;
}

std::string ShapeText(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += StrCat(i == 0 ? "" : ", ", shape[i]);
  }
  return text + "]";
}

Result<SafetensorsFile> ParseSafetensors(std::span<const std::byte> bytes,
                                         const std::string& path) {
  size_t data_start = 0;
  const Json header = LS_TRY(ParseHeader(bytes, path, data_start));
  const std::span<const std::byte> data = bytes.subspan(data_start);
  std::vector<Entry> entries;
  for (const auto& [name, json] : header.as_object()) {
    if (name == "__metadata__") {
      LS_TRY(CheckMetadata(json, path));
      continue;
    }
    entries.push_back(LS_TRY(ParseEntry(name, json, data.size(), path)));
  }
  LS_TRY(CheckTiling(entries, data.size(), path));
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.name < b.name; });
  SafetensorsFile file;
  file.data_bytes = data.size();
  for (Entry& entry : entries) {
    if (entry.dtype->usable) {
      file.tensors.push_back({std::move(entry.name), *entry.dtype->usable, std::move(entry.shape),
                              data.subspan(entry.begin, entry.end - entry.begin)});
    } else {
      file.listed.push_back(
          {std::move(entry.name), std::string(entry.dtype->name), std::move(entry.shape)});
    }
  }
  return file;
}

Status Checkpoint::AddFile(const std::string& path) {
  files_.push_back(LS_TRY(MappedFile::Open(path)));
  SafetensorsFile file = LS_TRY(ParseSafetensors(files_.back().bytes(), path));
  total_bytes_ += file.data_bytes;
  const std::span<const std::byte> bytes = files_.back().bytes();
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) info = {};
  identity_ += StrCat(path.substr(path.rfind('/') + 1), " ", bytes.size(), " ",
                      int64_t{info.st_mtim.tv_sec}, ".", int64_t{info.st_mtim.tv_nsec}, " ",
                      ChecksumOf(bytes.first(bytes.size() - file.data_bytes)), "; ");
  const auto duplicate = [&](const std::string& name) {
    return Corrupt(path, StrCat("has tensor ", Quoted(name),
                                " of an earlier shard again, expected every name once"));
  };
  for (TensorInfo& tensor : file.tensors) {
    if (tensors_.contains(tensor.name) || listed_.contains(tensor.name)) {
      return duplicate(tensor.name);
    }
    const size_t alignment = static_cast<size_t>(BitsOf(tensor.dtype)) / 8;
    if (reinterpret_cast<uintptr_t>(tensor.data.data()) % alignment != 0) {
      // The header's length decides the alignment and old writers did not pad it.
      copies_.push_back(std::make_unique<std::byte[]>(tensor.data.size()));
      std::copy(tensor.data.begin(), tensor.data.end(), copies_.back().get());
      tensor.data = {copies_.back().get(), tensor.data.size()};
    }
    std::string name = tensor.name;
    tensors_.emplace(std::move(name), std::move(tensor));
  }
  for (ListedTensor& tensor : file.listed) {
    if (tensors_.contains(tensor.name) || listed_.contains(tensor.name)) {
      return duplicate(tensor.name);
    }
    std::string name = tensor.name;
    listed_.emplace(std::move(name), std::move(tensor));
  }
  return Status();
}

Result<Checkpoint> Checkpoint::Open(const std::string& model_dir) {
  Checkpoint checkpoint;
  checkpoint.model_dir_ = model_dir;
  const std::string single = model_dir + "/model.safetensors";
  const std::string index = single + ".index.json";
  if (FileExists(single)) {
    LS_TRY(checkpoint.AddFile(single));
    return checkpoint;
  }
  if (!FileExists(index)) {
    return Status(Code::kNotFound,
                  StrCat(model_dir,
                         ": has neither model.safetensors nor "
                         "model.safetensors.index.json, expected one of them; give the "
                         "directory of a Hugging Face checkpoint in safetensors format"));
  }
  const ShardIndex shards = LS_TRY(ReadIndex(index));
  std::set<std::string> files;
  for (const auto& [tensor, file] : shards) files.insert(file);
  std::map<std::string, std::string> found;  // tensor -> the shard that holds it
  for (const std::string& file : files) {
    const std::string path = StrCat(model_dir, "/", file);
    if (!FileExists(path)) {
      return Status(Code::kNotFound,
                    StrCat(path, ": shard is missing, expected the ", files.size(), " files that ",
                           index, " names; download the rest of the model"));
    }
    LS_TRY(checkpoint.AddFile(path));
    for (const std::string& name : checkpoint.names()) found.emplace(name, file);
  }
  for (const auto& [tensor, file] : shards) {
    const auto it = found.find(tensor);
    if (it == found.end() || it->second != file) {
      return Corrupt(index, StrCat("maps tensor ", Quoted(tensor), " to ", Quoted(file),
                                   ", which lacks it, expected an index of these shards"));
    }
  }
  return checkpoint;
}

Checkpoint Checkpoint::InMemory(std::string name,
                                std::vector<TensorInfo> tensors,
                                std::shared_ptr<const void> memory) {
  Checkpoint checkpoint;
  checkpoint.model_dir_ = std::move(name);
  checkpoint.memory_ = std::move(memory);
  for (TensorInfo& tensor : tensors) {
    checkpoint.total_bytes_ += tensor.data.size();
    std::string key = tensor.name;
    const bool is_new = checkpoint.tensors_.emplace(std::move(key), std::move(tensor)).second;
    LS_CHECK(is_new) << "a tensor name comes twice";
  }
  return checkpoint;
}

void Checkpoint::Release(const TensorInfo& tensor) const {
  // A tensor that was copied is no part of any file.
  const std::less_equal<const std::byte*> not_after;
  for (const MappedFile& file : files_) {
    const std::span<const std::byte> bytes = file.bytes();
    if (not_after(bytes.data(), tensor.data.data()) &&
        not_after(tensor.data.data() + tensor.data.size(), bytes.data() + bytes.size())) {
      file.Release(tensor.data);
    }
  }
}

const TensorInfo* Checkpoint::Find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

Result<const TensorInfo*> Checkpoint::Get(std::string_view name) const {
  if (const TensorInfo* tensor = Find(name)) return tensor;
  if (const auto it = listed_.find(name); it != listed_.end()) {
    return Status(
        Code::kUnsupported,
        StrCat(model_dir_, ": tensor ", Quoted(name), " has dtype ", it->second.dtype_name,
               ", expected BF16, F16 or F32; convert the checkpoint"));
  }
  return Status(
      Code::kCorruptModel,
      StrCat(model_dir_, ": tensor ", Quoted(name), " is missing among ",
             tensors_.size() + listed_.size(),
             " tensors, expected it for this config.json; are both from the same model?"));
}

Result<const TensorInfo*> Checkpoint::Get(std::string_view name,
                                          std::span<const int64_t> shape) const {
  const TensorInfo* tensor = LS_TRY(Get(name));
  if (!std::equal(shape.begin(), shape.end(), tensor->shape.begin(), tensor->shape.end())) {
    return Status(Code::kCorruptModel,
                  StrCat(model_dir_, ": tensor ", Quoted(name), " is ", ShapeText(tensor->shape),
                         ", expected ", ShapeText(shape), "; is config.json from the same model?"));
  }
  return tensor;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  for (const auto& [name, tensor] : listed_) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace lserve
