// Status and Result: how a function reports a failure that its caller must handle (a truncated
// file, a bad flag, a dead device). A bug is an LS_CHECK instead (base/check.h); a normal outcome
// is a plain value. Used by every folder; no exception crosses a folder.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>

namespace lserve {

enum class Code : uint8_t {
  kOk,
  kInvalidArgument,
  kNotFound,
  kCorruptModel,
  kUnsupported,
  kOutOfMemory,
  kIoError,
  kCancelled,
  kDeviceLost,
};

// A message has four parts: what, value, expected, what to do.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// A `T`, or the reason there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : state_(std::move(status)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return std::holds_alternative<T>(state_); }
  T& value() & { return std::get<T>(state_); }  // REQUIRES: ok()
  const T& value() const& { return std::get<T>(state_); }
  // By value, so that `for (auto& x : F().value())` does not walk a dead temporary.
  T value() && { return std::get<T>(std::move(state_)); }
  Status status() const { return ok() ? Status() : std::get<Status>(state_); }

 private:
  std::variant<T, Status> state_;
};

namespace internal {
inline const Status& StatusOf(const Status& status) {
  return status;
}
template <class T>
Status StatusOf(const Result<T>& result) {
  return result.status();
}
inline void TakeValue(Status&&) {}
template <class T>
T TakeValue(Result<T>&& result) {
  return std::move(result).value();
}
}  // namespace internal

}  // namespace lserve

// Evaluates a Status or Result; returns its status from the enclosing function if it failed,
// otherwise yields the value:  `Config config = LS_TRY(ParseConfig(text));`
#define LS_TRY(expr) LS_TRY_AS(LS_CONCAT(ls_try_, __COUNTER__), expr)

// A fresh name for each use, so that one LS_TRY may stand inside another.
#define LS_CONCAT_EXPANDED(a, b) a##b
#define LS_CONCAT(a, b) LS_CONCAT_EXPANDED(a, b)
// NOLINTBEGIN(bugprone-macro-parentheses): `name` declares a variable
#define LS_TRY_AS(name, expr)                       \
  ({                                                \
    auto name = (expr);                             \
    if (!name.ok()) {                               \
      return ::lserve::internal::StatusOf(name);    \
    }                                               \
    ::lserve::internal::TakeValue(std::move(name)); \
  })
// NOLINTEND(bugprone-macro-parentheses)
