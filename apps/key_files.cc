#include "apps/key_files.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <string_view>
#include <utility>

#include "base/mapped_file.h"
#include "base/strings.h"

namespace lserve {
namespace {

// Calls `take` with every line that is neither empty nor a comment, without the space around it.
Status ReadKeyLines(const std::string& file,
                    const std::function<Status(std::string_view line)>& take) {
  const std::string text = LS_TRY(ReadTextStream(file));
  constexpr std::string_view kSpace = " \t\r";
  int number = 0;
  int taken = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    ++number;
    line.remove_prefix(std::min(line.find_first_not_of(kSpace), line.size()));
    line = line.substr(0, line.find_last_not_of(kSpace) + 1);
    if (line.empty() || line[0] == '#') continue;
    const Status status = take(line);
    if (!status.ok()) {
      return Status(Code::kInvalidArgument,
                    StrCat(file, ", line ", number, ": ", status.message()));
    }
    ++taken;
  }
  if (taken > 0) return Status();
  return Status(Code::kInvalidArgument, StrCat(file,
                                               ": holds no key, expected one per line; add one, "
                                               "or leave the option out"));
}

void AddVariable(const char* name, std::vector<std::string>& keys) {
  if (const char* key = std::getenv(name); key != nullptr && *key != '\0') keys.emplace_back(key);
}

}  // namespace

Result<AccessKeys> ReadKeys(const KeySources& sources, const KeyLimits& others) {
  AccessKeys out;
  for (const std::string& key : sources.keys) {
    if (key.empty()) {
      return Status(Code::kInvalidArgument,
                    "--api-key: got an empty key, expected some text; is a variable unset?");
    }
    out.api.push_back(key);
  }
  AddVariable("LSERVE_API_KEY", out.api);
  if (sources.key_file) {
    LS_TRY(ReadKeyLines(*sources.key_file, [&](std::string_view line) {
      auto [key, limits] = LS_TRY(ParseKeyLine(line, others));
      out.limits.insert_or_assign(key, limits);
      out.api.push_back(std::move(key));
      return Status();
    }));
  }
  if (out.api.empty() && others.any()) {
    return Status(Code::kInvalidArgument,
                  "a limit per key is given without a key, expected --api-key-file or "
                  "LSERVE_API_KEY beside it");
  }
  AddVariable("LSERVE_ADMIN_KEY", out.admin);
  if (sources.admin_key_file) {
    LS_TRY(ReadKeyLines(*sources.admin_key_file, [&](std::string_view line) {
      out.admin.emplace_back(line);
      return Status();
    }));
  }
  return out;
}

}  // namespace lserve
