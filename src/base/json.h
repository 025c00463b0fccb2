// Json: a parsed JSON document and a writer, independent of the library that does the parsing
// (Boost.JSON, in json.cc only). Object members keep their order. Used by the loader, the
// tokenizer, the chat template and the command line; never below `engine` at run time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/status.h"

namespace lserve {

class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;

  Json() = default;                                        // null
  Json(bool value) : value_(value) {}                      // NOLINT(google-explicit-constructor)
  Json(int value) : value_(int64_t{value}) {}              // NOLINT(google-explicit-constructor)
  Json(int64_t value) : value_(value) {}                   // NOLINT(google-explicit-constructor)
  Json(double value) : value_(value) {}                    // NOLINT(google-explicit-constructor)
  Json(const char* value) : value_(std::string(value)) {}  // NOLINT(google-explicit-constructor)
  Json(std::string value) : value_(std::move(value)) {}    // NOLINT(google-explicit-constructor)
  Json(Array value) : value_(std::move(value)) {}          // NOLINT(google-explicit-constructor)
  Json(Object value) : value_(std::move(value)) {}         // NOLINT(google-explicit-constructor)

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_int() const { return std::holds_alternative<int64_t>(value_); }
  bool is_number() const { return is_int() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }

  // REQUIRES: the matching is_*().
  bool as_bool() const { return std::get<bool>(value_); }
  int64_t as_int() const { return std::get<int64_t>(value_); }
  double as_double() const {
    return is_int() ? static_cast<double>(as_int()) : std::get<double>(value_);
  }
  const std::string& as_string() const { return std::get<std::string>(value_); }
  const Array& as_array() const { return std::get<Array>(value_); }
  const Object& as_object() const { return std::get<Object>(value_); }
  Array& mutable_array() { return std::get<Array>(value_); }
  Object& mutable_object() { return std::get<Object>(value_); }

  // The member of an object, or nullptr if this is no object or has no such member.
  const Json* Find(std::string_view key) const;

  // "null", "a bool", "an integer", ... for error messages.
  const char* TypeName() const;

  bool operator==(const Json&) const = default;

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

struct JsonLimits {
  size_t max_depth = 64;
  size_t max_bytes = size_t{256} << 20;
};

// Parses one document (UTF-8, nothing after it). Errors name the byte offset. A repeated member
// name, an invalid UTF-8 sequence and an integer beyond int64 are errors.
Result<Json> ParseJson(std::string_view text, const JsonLimits& limits = {});

struct JsonStyle {
  int indent = 0;            // spaces per level; 0: one line
  bool space_after = false;  // one line only: ", " and ": " as Python's json.dumps
  bool ascii_only = false;   // escape everything beyond ASCII
};

// Writes `value`; doubles in the shortest form that reads back equal, NaN and infinities as null.
std::string WriteJson(const Json& value, const JsonStyle& style = {});

}  // namespace lserve
