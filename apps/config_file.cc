#include "apps/config_file.h"

#include <algorithm>
#include <optional>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/strings.h"

namespace lserve {
namespace {

constexpr std::string_view kFlag = "--config";

// Takes "--config FILE" and "--config=FILE" out; the file of the last one.
std::optional<std::string> TakeFile(std::vector<std::string>& arguments) {
  std::optional<std::string> file;
  for (size_t i = 0; i < arguments.size();) {
    const std::string& argument = arguments[i];
    const bool is_joined = argument.starts_with(StrCat(kFlag, "="));
    const bool is_apart = argument == kFlag && i + 1 < arguments.size();
    if (!is_joined && !is_apart) {
      ++i;
      continue;
    }
    file = is_joined ? argument.substr(kFlag.size() + 1) : arguments[i + 1];
    const auto at = arguments.begin() + static_cast<int64_t>(i);
    arguments.erase(at, at + (is_joined ? 1 : 2));
  }
  return file;
}

}  // namespace

Status ExpandConfigFile(const FlagSet& flags, std::vector<std::string>* arguments) {
  const std::optional<std::string> file = TakeFile(*arguments);
  if (!file) return Status();
  const std::string text = LS_TRY(ReadTextFile(*file));
  const auto wrong = [&](const std::string& what) {
    return Status(Code::kInvalidArgument, StrCat("--config ", *file, ": ", what));
  };
  const Result<Json> json = ParseJson(text);
  if (!json.ok()) return wrong(json.status().message());
  if (!json.value().is_object())
    return wrong(StrCat("is ", json.value().TypeName(), ", expected an object of options"));
  std::vector<std::string> added;
  for (const auto& [name, value] : json.value().as_object()) {
    if (name == "print-config") continue;  // what printed the file is no wish of it
    const std::string flag = StrCat("--", name);
    const std::vector<std::string> names = flags.NamesOf(flag);
    if (names.empty()) {
      const std::string close = flags.Closest(flag);
      return wrong(StrCat(WriteJson(Json(name), {.ascii_only = true}), " is no option of serve",
                          close.empty() ? "" : ", expected perhaps ", close));
    }
    const bool is_given = std::any_of(arguments->begin(), arguments->end(), [&](const auto& given) {
      return std::any_of(names.begin(), names.end(), [&](const std::string& known) {
        return given == known || given.starts_with(known + "=");
      });
    });
    if (is_given || value.is_null() || value == Json(false)) continue;
    const Json::Array one = {value};
    for (const Json& item : value.is_array() ? value.as_array() : one) {
      if (item.is_array() || item.is_object() || item.is_null())
        return wrong(StrCat(name, " holds ", item.TypeName(), ", expected a text or a number"));
      // An empty text is what the option is without being given.
      if (item.is_string() && item.as_string().empty()) continue;
      if (item == Json(true)) {
        added.push_back(flag);
      } else {
        added.push_back(StrCat(flag, "=", item.is_string() ? item.as_string() : WriteJson(item)));
      }
    }
  }
  // Behind the command's name.
  arguments->insert(arguments->begin() + 1, added.begin(), added.end());
  return Status();
}

}  // namespace lserve
