#include "server/body_fields.h"

#include <utility>

#include "base/strings.h"

namespace lserve {

std::string ShownValue(const Json& value) {
  constexpr size_t kMost = 60;
  if (value.is_array() || value.is_object()) return value.TypeName();
  std::string text = WriteJson(value, {.ascii_only = true});
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  return text;
}

std::optional<int32_t> AsTokenId(const Json& value) {
  if (!value.is_int() || value.as_int() < 0 || value.as_int() > INT32_MAX) return std::nullopt;
  return static_cast<int32_t>(value.as_int());
}

BodyFields::BodyFields(const Json& object, std::string prefix)
    : object_(object), prefix_(std::move(prefix)) {
  if (object.is_object()) return;
  const std::string what = prefix_.empty() ? "the body" : prefix_.substr(0, prefix_.size() - 1);
  error_ = BadField(prefix_.empty() ? "" : what,
                    StrCat(what, " is ", object.TypeName(), ", expected an object"));
}

std::string BodyFields::Full(std::string_view name) const {
  return StrCat(prefix_, name);
}

const Json* BodyFields::Find(std::string_view name) const {
  const Json* value = object_.Find(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

void BodyFields::Fail(ApiError error) {
  if (!error_) error_ = std::move(error);
}

void BodyFields::Fail(std::string_view name, std::string message) {
  Fail(BadField(Full(name), std::move(message)));
}

void BodyFields::Wrong(std::string_view name, const Json& value, std::string_view expected) {
  Fail(name, StrCat(Full(name), " is ", ShownValue(value), ", expected ", expected));
}

std::optional<bool> BodyFields::Bool(std::string_view name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_bool()) return value->as_bool();
  Wrong(name, *value, "true or false");
  return std::nullopt;
}

std::optional<int64_t> BodyFields::Int(std::string_view name, int64_t min, int64_t max) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_int() && value->as_int() >= min && value->as_int() <= max) return value->as_int();
  const std::string range =
      max == INT64_MAX ? StrCat("of at least ", min) : StrCat("from ", min, " to ", max);
  Wrong(name, *value, StrCat("a whole number ", range));
  return std::nullopt;
}

std::optional<double> BodyFields::Number(std::string_view name, double min, double max) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number() && value->as_double() >= min && value->as_double() <= max)
    return value->as_double();
  Wrong(name, *value, StrCat("a number from ", min, " to ", max));
  return std::nullopt;
}

std::optional<std::string> BodyFields::String(std::string_view name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->as_string();
  Wrong(name, *value, "a string");
  return std::nullopt;
}

std::vector<std::string> BodyFields::Strings(std::string_view name,
                                             size_t max_count,
                                             size_t max_bytes) {
  std::vector<std::string> strings;
  const Json* value = Find(name);
  if (value == nullptr) return strings;
  const std::string expected =
      StrCat("a string, or at most ", max_count, " strings, of at most ", max_bytes, " bytes");
  const auto add = [&](const Json& one) {
    if (one.is_string() && one.as_string().size() <= max_bytes) {
      if (!one.as_string().empty()) strings.push_back(one.as_string());
    } else {
      Fail(name, StrCat(Full(name), " holds ",
                        one.is_string() ? "a string that is too long" : one.TypeName(),
                        ", expected ", expected));
    }
  };
  if (value->is_array()) {
    if (value->as_array().size() > max_count) {
      Fail(name,
           StrCat(Full(name), " has ", value->as_array().size(), " strings, expected ", expected));
      return {};
    }
    for (const Json& one : value->as_array()) add(one);
  } else {
    add(*value);
  }
  return strings;
}

std::vector<int32_t> BodyFields::TokenIds(std::string_view name, size_t max_count) {
  std::vector<int32_t> ids;
  const Json* value = Find(name);
  if (value == nullptr) return ids;
  if (!value->is_array() || value->as_array().size() > max_count) {
    Wrong(name, *value, StrCat("a list of at most ", max_count, " token ids"));
    return ids;
  }
  ids.reserve(value->as_array().size());
  for (const Json& one : value->as_array()) {
    const std::optional<int32_t> id = AsTokenId(one);
    if (!id) {
      Fail(name, StrCat(Full(name), " holds ", ShownValue(one), ", expected token ids"));
      return {};
    }
    ids.push_back(*id);
  }
  return ids;
}

}  // namespace lserve
