// JsonFields: reads the members of one JSON object with type and range checks and four-part errors.
// Not a schema: members that nobody asks for stay unread. Used by the parsers of this folder only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

// Foreign text for an error message: JSON-quoted, ASCII, cut after 80 bytes, so that it stays one
// line.
std::string Quoted(std::string_view text);
// A foreign JSON value for an error message, cut likewise.
std::string Shown(const Json& value);

class JsonFields {
 public:
  // `object` must outlive this and be an object; `where` begins every message ("config.json").
  JsonFields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  // The member, or nullptr if it is absent or null: config files use both for "not set".
  const Json* Find(std::string_view key) const;

  // Each returns nullopt for an absent member, and an error for one of the wrong type or range.
  Result<std::optional<bool>> Bool(std::string_view key) const;
  Result<std::optional<int64_t>> Int(std::string_view key, int64_t min, int64_t max) const;
  Result<std::optional<double>> Number(std::string_view key, double min, double max) const;
  Result<std::optional<std::string>> String(std::string_view key) const;

  // The same for a member that must be there.
  Result<int64_t> RequiredInt(std::string_view key, int64_t min, int64_t max) const;
  Result<double> RequiredNumber(std::string_view key, double min, double max) const;

  const std::string& where() const { return where_; }

 private:
  Status Missing(std::string_view key, std::string_view expected) const;
  Status Wrong(std::string_view key, const Json& value, std::string_view expected) const;

  const Json& object_;
  std::string where_;
};

}  // namespace lserve
