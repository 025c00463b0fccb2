// TokenConstraint: decides which tokens may come next in one answer. The engine asks it between the
// logits and the draw; what it knows (a grammar, a list) is its own matter.
#pragma once

#include <cstdint>
#include <span>

#include "base/status.h"

namespace lserve {

// Of one request; called on the engine's thread only.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;

  // Sets the logits of the tokens that may not come next to minus infinity. `logits` is [vocab].
  // Error: none may, or it takes too long to find out; it ends the request.
  virtual Status Mask(std::span<float> logits) = 0;
  // `token` was drawn.
  virtual Status Accept(int32_t token) = 0;
  // The answer is whole and nothing can follow: it ends here, without an end-of-text token.
  virtual bool complete() const = 0;
};

}  // namespace lserve
