// Auth: API keys and CORS: who may ask, and which browser pages may read the answer. Used by the
// service.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/exchange.h"

namespace lserve {

// Whether `presented` is one of `keys`. The time depends on the number of keys and on the length
// of what was presented, not on how much of it is right.
bool IsKnownKey(std::string_view presented, const std::vector<std::string>& keys);

// The key that a request carries: "Authorization: Bearer K", or "x-api-key: K" / "api-key: K" as
// Anthropic's and Azure's clients send it. Empty: none.
std::string_view PresentedKey(const HttpRequest& request);

// The CORS headers for a request from the page `origin`; none if it is not allowed. "*" in
// `allowed` admits every page. Credentials are never allowed: keys travel in a header.
HttpHeaders CorsHeaders(std::string_view origin, const std::vector<std::string>& allowed);
// What a preflight (OPTIONS) gets in addition.
HttpHeaders PreflightHeaders(const HttpRequest& request);

}  // namespace lserve
