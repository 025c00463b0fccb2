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

// INVARIANT: whatever costs more than a constant is paid for with Step (per value) or Work (per
// byte), so that the limits bound the time of any template.
class Runtime {
 public:
  Runtime(const ChatTemplateLimits& limits, std::optional<ChatDate> date)
      : limits_(limits), date_(date) {}
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // Counts values touched; fails beyond the limit.
  Status Step(size_t count = 1);
  // Counts bytes read or written; fails beyond the limit.
  Status Work(size_t bytes);
  // Work on a text character by character, or a search in it: a few times slower than copying.
  Status Scan(size_t bytes) { return Work(4 * bytes); }
  // Work that makes a string of `bytes`, which must not be too long.
  Status Charge(size_t bytes);
  Result<Value> NewString(Str s);
  Result<Value> NewPlain(std::string text);
  Result<Value> NewList(List list);
  Result<Value> NewDict(Dict dict);
  Value NewNamespace(Dict members);
  Result<Str> Text(const Value& value);  // str(value), within the limits

  // "line 7: what; expected x; advice"
  Status Error(std::string_view what,
               std::string_view expected,
               std::string_view advice = "correct the template or the messages") const {
    return TemplateError(line_, what, expected, advice);
  }
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
  // The member called `key`, or nullptr.
  Result<const Value*> FindMember(const Dict& dict, std::string_view key);
  // Sets dict[key]: the place of a known key stays.
  Status SetMember(Dict& dict, const Str& key, Value value);
  // Python's ==: numbers compare by value, also with booleans.
  Result<bool> Equal(const Value& a, const Value& b);
  // Whether `needle in haystack`.
  Result<bool> Contains(const Value& haystack, const Value& needle);
  // -1, 0 or 1 for numbers and strings.
  Result<int> Order(const Value& a, const Value& b);
  Result<int64_t> Integer(const Value& value, std::string_view what);

 private:
  // The index of the member called `key`, or dict.size().
  Result<size_t> PlaceOf(const Dict& dict, std::string_view key);
  Result<bool> EqualDicts(const Dict& a, const Dict& b);
  Result<Value> WithinDepth(Value value) const;

  ChatTemplateLimits limits_;
  std::optional<ChatDate> date_;
  int line_ = 1;
  int64_t steps_ = 0;
  size_t work_bytes_ = 0;
  // Namespaces change, so they can nest without end, or in a ring; the end of the run empties them
  // one by one.
  std::vector<std::shared_ptr<Namespace>> namespaces_;
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
// The first place of `needle` in `text` at or behind `from`, or npos. Linear, whatever both hold.
size_t FindText(std::string_view text, std::string_view needle, size_t from = 0);
// The same for the last place.
size_t FindLastText(std::string_view text, std::string_view needle);
enum class Side : uint8_t { kBoth, kLeft, kRight };
// `characters` null: white space.
Result<Str> Strip(Runtime& runtime, const Str& s, const Str* characters, Side side);
std::vector<Str> SplitLines(const Str& s);
// `count` < 0: all.
Result<Str> ReplaceText(
    Runtime& runtime, const Str& s, const Str& from, const Str& to, int64_t count);
enum class Case : uint8_t { kUpper, kLower, kTitle, kCapitalize, kTitleWords };
Result<Str> ChangeCase(Runtime& runtime, const Str& s, Case to);

}  // namespace lserve::jinja
