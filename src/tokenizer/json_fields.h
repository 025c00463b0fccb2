// Reading members of tokenizer.json with errors that say where. Used inside src/tokenizer only.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "base/json.h"
#include "base/strings.h"

namespace lserve {

// A foreign text for an error message: at most 80 bytes of it, on one line.
inline std::string Shown(std::string_view text) {
  constexpr size_t kMaxBytes = 80;
  std::string shown;
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (shown.size() >= kMaxBytes && (byte & 0xc0) != 0x80) return shown + "...";
    shown.push_back(byte < 0x20 || byte == 0x7f ? ' ' : c);
  }
  return shown;
}

// An error whose message may hold foreign text, on one line.
inline Status OneLineError(Code code, std::string message) {
  for (char& c : message) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) c = ' ';
  }
  return Status(code, std::move(message));
}

// The object in a file of the model directory.
inline Result<Json> ParseFileObject(std::string_view text) {
  Result<Json> json = ParseJson(text);
  if (!json.ok()) {
    return Status(Code::kCorruptModel,
                  StrCat("is no valid JSON (", json.status().message(),
                         "); expected a Hugging Face tokenizer; download the file again"));
  }
  if (!json.value().is_object()) {
    return Status(Code::kCorruptModel, StrCat("is ", json.value().TypeName(),
                                              "; expected an object; download the file again"));
  }
  return json;
}

inline Status BadField(std::string_view where, std::string_view value, std::string_view expected) {
  return OneLineError(Code::kCorruptModel,
                      StrCat(where, " is ", value, "; expected ", expected, "; check the file"));
}

inline Status Unsupported(std::string_view where, std::string_view value, std::string_view known) {
  return OneLineError(Code::kUnsupported,
                      StrCat(where, " \"", value, "\" is not implemented; expected ", known,
                             "; use another checkpoint"));
}

// A missing or null member is the default.
inline Result<bool> BoolField(const Json& object,
                              std::string_view where,
                              std::string_view name,
                              bool otherwise) {
  const Json* value = object.Find(name);
  if (value == nullptr || value->is_null()) return otherwise;
  if (!value->is_bool()) return BadField(StrCat(where, ".", name), value->TypeName(), "a bool");
  return value->as_bool();
}

inline Result<std::string> StringField(const Json& object,
                                       std::string_view where,
                                       std::string_view name) {
  const Json* value = object.Find(name);
  if (value == nullptr || !value->is_string()) {
    return BadField(StrCat(where, ".", name), value == nullptr ? "missing" : value->TypeName(),
                    "a string");
  }
  return value->as_string();
}

inline Result<int64_t> IntField(const Json& object,
                                std::string_view where,
                                std::string_view name,
                                int64_t otherwise) {
  const Json* value = object.Find(name);
  if (value == nullptr || value->is_null()) return otherwise;
  if (!value->is_int()) return BadField(StrCat(where, ".", name), value->TypeName(), "an integer");
  return value->as_int();
}

inline Result<const Json::Array*> ArrayField(const Json& object,
                                             std::string_view where,
                                             std::string_view name) {
  const Json* value = object.Find(name);
  if (value == nullptr || !value->is_array()) {
    return BadField(StrCat(where, ".", name), value == nullptr ? "missing" : value->TypeName(),
                    "an array");
  }
  return &value->as_array();
}

}  // namespace lserve
