// BodyFields: reads the members of a request's JSON object with type and range checks. The first
// problem stays; later reads do nothing, so that a parser reads top to bottom without a check per
// line. Used by openai_types.cc only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "server/api_error.h"

namespace lserve {

class BodyFields {
 public:
  // `object` must outlive this. `prefix` begins the names in messages ("sparse.").
  explicit BodyFields(const Json& object, std::string prefix = "");

  // The member, or nullptr if it is absent or null.
  const Json* Find(std::string_view name) const;

  // Nothing for an absent member, and after a problem.
  std::optional<bool> Bool(std::string_view name);
  std::optional<int64_t> Int(std::string_view name, int64_t min, int64_t max);
  std::optional<double> Number(std::string_view name, double min, double max);
  std::optional<std::string> String(std::string_view name);
  // A string, or a list of them.
  std::vector<std::string> Strings(std::string_view name, size_t max_count, size_t max_bytes);
  std::vector<int32_t> TokenIds(std::string_view name, size_t max_count);

  void Fail(std::string_view name, std::string message);
  void Fail(ApiError error);
  void Wrong(std::string_view name, const Json& value, std::string_view expected);
  bool ok() const { return !error_; }
  const std::optional<ApiError>& error() const { return error_; }

 private:
  std::string Full(std::string_view name) const;

  const Json& object_;
  std::string prefix_;
  std::optional<ApiError> error_;
};

// A token id of a list, or nothing if `value` can not be one. The vocabulary is checked later.
std::optional<int32_t> AsTokenId(const Json& value);
// A foreign value for a message: one line of ASCII, cut.
std::string ShownValue(const Json& value);

}  // namespace lserve
