#include "base/check.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace lserve::internal {

CheckFailure::CheckFailure(const char* file, int line, const char* condition) {
  stream_ << file << ":" << line << ": check failed: " << condition;
}

CheckFailure::~CheckFailure() {
  const std::string message = stream_.str() + "\n";
  std::fputs(message.c_str(), stderr);
  std::abort();
}

}  // namespace lserve::internal
