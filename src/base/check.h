// LS_CHECK: a condition that only a bug can break. Prints the place, both values and the streamed
// message, then aborts; stays on in Release. LS_DCHECK is for hot code and vanishes with NDEBUG.
#pragma once

#include <ostream>
#include <sstream>

namespace lserve::internal {

// Collects the message of a failed check and aborts in its destructor.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  template <class A, class B>
  CheckFailure(const char* file, int line, const char* condition, const A& a, const B& b)
      : CheckFailure(file, line, condition) {
    stream_ << " (" << a << " against " << b << ")";
  }
  CheckFailure(const CheckFailure&) = delete;
  CheckFailure& operator=(const CheckFailure&) = delete;
  [[noreturn]] ~CheckFailure();

  std::ostream& stream() { return stream_ << " "; }

 private:
  std::ostringstream stream_;
};

// Turns the stream of a failed check into void, the type of the branch not taken.
struct Voidify {
  void operator&&(std::ostream&) const {}
};

}  // namespace lserve::internal

// One expression, so that it can stand wherever a statement can; && binds looser than <<.
#define LS_CHECK(condition)              \
  (__builtin_expect(!!(condition), 1))   \
      ? (void)0                          \
      : ::lserve::internal::Voidify() && \
            ::lserve::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()
#define LS_CHECK_OP(a, op, b)                                                                 \
  (__builtin_expect(!!((a)op(b)), 1))                                                         \
      ? (void)0                                                                               \
      : ::lserve::internal::Voidify() &&                                                      \
            ::lserve::internal::CheckFailure(__FILE__, __LINE__, #a " " #op " " #b, (a), (b)) \
                .stream()
#define LS_CHECK_EQ(a, b) LS_CHECK_OP(a, ==, b)
#define LS_CHECK_NE(a, b) LS_CHECK_OP(a, !=, b)
#define LS_CHECK_LT(a, b) LS_CHECK_OP(a, <, b)
#define LS_CHECK_LE(a, b) LS_CHECK_OP(a, <=, b)
#define LS_CHECK_GT(a, b) LS_CHECK_OP(a, >, b)
#define LS_CHECK_GE(a, b) LS_CHECK_OP(a, >=, b)

#ifdef NDEBUG
#define LS_DCHECK(condition) \
  while (false) LS_CHECK(condition)
#else
#define LS_DCHECK(condition) LS_CHECK(condition)
#endif
