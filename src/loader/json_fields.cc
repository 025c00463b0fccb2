#include "loader/json_fields.h"

#include <cmath>

#include "base/strings.h"

namespace lserve {
namespace {

constexpr size_t kShownBytes = 80;

std::string Cut(std::string text) {
  if (text.size() > kShownBytes) {
    text.resize(kShownBytes);
    text += "...";
  }
  return text;
}

}  // namespace

std::string Quoted(std::string_view text) {
  return Cut(WriteJson(Json(std::string(text)), {.ascii_only = true}));
}

std::string Shown(const Json& value) {
  if (value.is_array() || value.is_object()) return value.TypeName();
  return Cut(WriteJson(value, {.ascii_only = true}));
}

const Json* JsonFields::Find(std::string_view key) const {
  const Json* value = object_.Find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

Result<std::optional<bool>> JsonFields::Bool(std::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::optional<bool>();
  if (!value->is_bool()) return Wrong(key, *value, "true or false");
  return std::optional<bool>(value->as_bool());
}

Result<std::optional<int64_t>> JsonFields::Int(std::string_view key,
                                               int64_t min,
                                               int64_t max) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::optional<int64_t>();
  if (!value->is_int() || value->as_int() < min || value->as_int() > max) {
    return Wrong(key, *value, StrCat("an integer from ", min, " to ", max));
  }
  return std::optional<int64_t>(value->as_int());
}

Result<std::optional<double>> JsonFields::Number(std::string_view key,
                                                 double min,
                                                 double max) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::optional<double>();
  // Written so that NaN fails too.
  if (!value->is_number() || !(value->as_double() >= min && value->as_double() <= max)) {
    return Wrong(key, *value, StrCat("a number from ", min, " to ", max));
  }
  return std::optional<double>(value->as_double());
}

Result<std::optional<std::string>> JsonFields::String(std::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::optional<std::string>();
  if (!value->is_string()) return Wrong(key, *value, "a string");
  return std::optional<std::string>(value->as_string());
}

Result<int64_t> JsonFields::RequiredInt(std::string_view key, int64_t min, int64_t max) const {
  const std::optional<int64_t> value = LS_TRY(Int(key, min, max));
  if (!value) return Missing(key, StrCat("an integer from ", min, " to ", max));
  return *value;
}

Result<double> JsonFields::RequiredNumber(std::string_view key, double min, double max) const {
  const std::optional<double> value = LS_TRY(Number(key, min, max));
  if (!value) return Missing(key, StrCat("a number from ", min, " to ", max));
  return *value;
}

Status JsonFields::Missing(std::string_view key, std::string_view expected) const {
  return Status(Code::kCorruptModel, StrCat(where_, ": \"", key, "\" is missing, expected ",
                                            expected, "; is the file complete?"));
}

Status JsonFields::Wrong(std::string_view key, const Json& value, std::string_view expected) const {
  return Status(Code::kCorruptModel,
                StrCat(where_, ": \"", key, "\" is ", Shown(value), ", expected ", expected,
                       "; fix the file or download it again"));
}

}  // namespace lserve
