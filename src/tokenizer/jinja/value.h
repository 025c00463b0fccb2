// Values of the template language. Strings carry the ranges that came from the user; every
// operation keeps them or widens them, never narrows them. Used inside src/tokenizer/jinja only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/json.h"
#include "tokenizer/rendered_prompt.h"

namespace lserve::jinja {

struct Callable;
struct Value;

// Values nest at most this deep: they are printed, compared and freed by recursion. JSON comes in
// up to 64 levels and a template writes at most 100 of its own.
constexpr int kMaxValueDepth = 200;

// A text and its user ranges (ascending, disjoint, not empty, never adjacent).
struct Str {
  std::string text;
  std::vector<ByteRange> user;

  void Mark(size_t begin, size_t end);  // REQUIRES: in order
  void MarkAll();
  void Append(const Str& other);
  void Append(std::string_view plain) { text.append(plain); }
  Str Sub(size_t begin, size_t end) const;
};

struct Undefined {
  std::string name;  // for the error message
};
struct None {};

using List = std::vector<Value>;
// Keys are strings. Order is that of insertion.
using Dict = std::vector<std::pair<Str, Value>>;
struct Namespace {
  Dict members;
};

struct Value {
  using Data = std::variant<Undefined,
                            None,
                            bool,
                            int64_t,
                            double,
                            std::shared_ptr<const Str>,
                            std::shared_ptr<const List>,
                            std::shared_ptr<const Dict>,
                            std::shared_ptr<Namespace>,
                            std::shared_ptr<const Callable>>;
  Data data;
  int depth = 0;  // of the lists and mappings in it; a namespace counts as 0 (Runtime frees them)

  template <class T>
  bool Is() const {
    return std::holds_alternative<T>(data);
  }
  template <class T>
  bool IsPointer() const {
    return std::holds_alternative<std::shared_ptr<T>>(data);
  }

  bool is_undefined() const { return Is<Undefined>(); }
  bool is_none() const { return Is<None>(); }
  bool is_bool() const { return Is<bool>(); }
  bool is_int() const { return Is<int64_t>(); }
  bool is_float() const { return Is<double>(); }
  bool is_number() const { return is_bool() || is_int() || is_float(); }
  bool is_integral() const { return is_bool() || is_int(); }
  bool is_string() const { return IsPointer<const Str>(); }
  bool is_list() const { return IsPointer<const List>(); }
  bool is_dict() const { return IsPointer<const Dict>(); }
  bool is_namespace() const { return IsPointer<Namespace>(); }
  bool is_callable() const { return IsPointer<const Callable>(); }

  // REQUIRES: the matching is_*().
  const Str& str() const { return *std::get<std::shared_ptr<const Str>>(data); }
  const List& list() const { return *std::get<std::shared_ptr<const List>>(data); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data); }
  Namespace& ns() const { return *std::get<std::shared_ptr<Namespace>>(data); }
  const Callable& callable() const { return *std::get<std::shared_ptr<const Callable>>(data); }
  int64_t integral() const { return is_bool() ? std::get<bool>(data) : std::get<int64_t>(data); }
  double number() const {
    return is_float() ? std::get<double>(data) : static_cast<double>(integral());
  }
};

Value MakeString(Str s);
Value MakePlain(std::string text);
// Runtime::NewList and NewDict also hold the depth within its limit.
Value MakeList(List list);
Value MakeDict(Dict dict);
inline Value MakeInt(int64_t i) {
  return {i};
}
inline Value MakeBool(bool b) {
  return {b};
}

// Every string of `json`, keys too, counts as the user's if `user`.
Value FromJson(const Json& json, bool user);

const char* TypeName(const Value& value);
bool IsTrue(const Value& value);

// Python's str(): what {{ value }} prints. `max_bytes` bounds the work; the text is cut there.
Str ToText(const Value& value, size_t max_bytes);
// json.dumps(value, ensure_ascii=False), over several lines if indent >= 0. False if a value has
// no JSON form.
bool ToJsonText(const Value& value, int indent, bool sort_keys, size_t max_bytes, Str& out);
std::string FloatText(double value);

}  // namespace lserve::jinja
