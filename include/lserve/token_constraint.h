// TokenConstraint: decides which tokens may come next in one answer. The engine asks it before
// each draw; what it knows (a grammar, a list) is its own matter.
#pragma once

#include <cstdint>
#include <span>

#include "base/status.h"

namespace lserve {

// Of one request; called on the engine's thread only.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;

  // Clears the bits of the tokens that may not come next. `allowed` has a bit for each token of the
  // vocabulary, the lowest one of the first word for token 0, and any value in bits beyond. May be
  // called again before Accept(). Error: none may, or it takes too long to find out; it ends the
  // request.
  virtual Status Mask(std::span<uint64_t> allowed) = 0;
  // `token` was drawn.
  virtual Status Accept(int32_t token) = 0;
  // The answer is whole and nothing can follow: it ends here, without an end-of-text token.
  virtual bool complete() const = 0;
};

}  // namespace lserve
