#include "apps/output_file.h"

#include <unistd.h>

#include <filesystem>
#include <span>

#include "base/mapped_file.h"
#include "base/strings.h"

namespace lserve {

Status CheckWritable(const char* flag, const std::optional<std::string>& file) {
  if (!file) return Status();
  std::filesystem::path folder = std::filesystem::path(*file).parent_path();
  if (folder.empty()) folder = ".";
  std::error_code error;
  if (std::filesystem::is_directory(folder, error) &&
      !std::filesystem::is_directory(*file, error) && access(folder.c_str(), W_OK) == 0) {
    return Status();
  }
  return Status(Code::kIoError, StrCat(flag, ": ", *file,
                                       " can not be written, expected a file in "
                                       "a folder that exists; create it first"));
}

Status WriteOutput(const std::optional<std::string>& file, const std::string& text) {
  if (!file) return Status();
  return WriteFile(*file, std::as_bytes(std::span(text)));
}

}  // namespace lserve
