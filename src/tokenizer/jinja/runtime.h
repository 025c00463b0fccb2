// What evaluation shares: the limits, the current line, and how values are made within them.
// Used by the interpreter and its filters, tests and methods.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/jinja/ast.h"
#include "tokenizer/jinja/lexer.h"
#include "tokenizer/jinja/value.h"

namespace lserve::jinja {

struct Scope {
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<std::string, Value>> names;
};

// A macro, a bound method or a global function.
struct Callable {
  std::string name;
  Value self;                   // methods: the object
  const Stmt* macro = nullptr;  // macros and the bodies of call tags
  std::weak_ptr<Scope> scope;   // macros: where they were defined
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;

  // The argument at `index` or called `name`, or nullptr.
  const Value* Find(size_t index, std::string_view name) const;
};

class Runtime {
 public:
  Runtime(const ChatTemplateLimits& limits, std::optional<ChatDate> date)
      : limits_(limits), date_(date) {}

  // Counts work; fails beyond the limit.
  Status Step(size_t count = 1);
  // Fails if a string of `bytes` is too long, or all strings together are.
  Status Charge(size_t bytes);
  Result<Value> NewString(Str s);
  Result<Value> NewPlain(std::string text);
  Result<Value> NewList(List list);
  Result<Str> Text(const Value& value);  // str(value), within the limits

  Status Error(std::string_view message) const { return TemplateError(line_, message); }
  void set_line(int line) { line_ = line; }
  int line() const { return line_; }
  const ChatTemplateLimits& limits() const { return limits_; }
  const std::optional<ChatDate>& date() const { return date_; }

  // The items that a loop over `value` visits: elements, keys or characters.
  Result<List> Items(const Value& value);
  // value.name and value[name] where name is a string; undefined if there is none.
  Result<Value> Member(const Value& value, std::string_view name, bool attribute);
  // value[key]
  Result<Value> Item(const Value& value, const Value& key);
  // Whether `needle in haystack`.
  Result<bool> Contains(const Value& haystack, const Value& needle);
  // -1, 0 or 1 for numbers and strings.
  Result<int> Order(const Value& a, const Value& b);
  Result<int64_t> Integer(const Value& value, std::string_view what);

 private:
  ChatTemplateLimits limits_;
  std::optional<ChatDate> date_;
  int line_ = 1;
  int64_t steps_ = 0;
  size_t work_bytes_ = 0;
};

Result<Value> ApplyFilter(Runtime& runtime,
                          std::string_view name,
                          const Value& input,
                          const Arguments& arguments);
Result<bool> ApplyTest(Runtime& runtime,
                       std::string_view name,
                       const Value& input,
                       const Arguments& arguments);
bool IsMethod(const Value& self, std::string_view name);
Result<Value> CallMethod(Runtime& runtime,
                         const Value& self,
                         std::string_view name,
                         const Arguments& arguments);
bool IsFunction(std::string_view name);
Result<Value> CallFunction(Runtime& runtime, std::string_view name, const Arguments& arguments);

// Pieces of Python's str that filters and methods share.
bool IsPythonSpace(char32_t c);
enum class Side : uint8_t { kBoth, kLeft, kRight };
// `characters` null: white space.
Str Strip(const Str& s, const Str* characters, Side side);
std::vector<Str> SplitLines(const Str& s);
// `count` < 0: all.
Result<Str> ReplaceText(
    Runtime& runtime, const Str& s, const Str& from, const Str& to, int64_t count);
enum class Case : uint8_t { kUpper, kLower, kTitle, kCapitalize, kTitleWords };
Str ChangeCase(const Str& s, Case to);

}  // namespace lserve::jinja
