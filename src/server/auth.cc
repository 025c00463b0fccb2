#include "server/auth.h"

#include <algorithm>
#include <cctype>

#include "base/strings.h"

namespace lserve {
namespace {

bool EqualsIgnoringCase(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return std::tolower(x) == std::tolower(y);
  });
}

// Header names only: what comes back in a response must not be able to end a line.
bool IsHeaderList(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == ',' || c == ' ';
  });
}

}  // namespace

bool IsKnownKey(std::string_view presented, const std::vector<std::string>& keys) {
  bool known = false;
  for (const std::string& key : keys) {
    size_t differences = presented.size() ^ key.size();
    for (size_t i = 0; i < presented.size(); ++i) {
      // Walks what was presented, whatever the key's length, and never leaves early.
      const char expected = key.empty() ? '\0' : key[i % key.size()];
      differences |= static_cast<size_t>(static_cast<unsigned char>(presented[i] ^ expected));
    }
    known = known || (differences == 0 && !key.empty());
  }
  return known;
}

std::string_view PresentedKey(const HttpRequest& request) {
  constexpr std::string_view kBearer = "Bearer ";
  const std::string_view authorization = request.Header("authorization");
  if (authorization.size() > kBearer.size() &&
      EqualsIgnoringCase(authorization.substr(0, kBearer.size()), kBearer)) {
    return authorization.substr(kBearer.size());
  }
  const std::string_view anthropic = request.Header("x-api-key");
  return anthropic.empty() ? request.Header("api-key") : anthropic;
}

HttpHeaders CorsHeaders(std::string_view origin, const std::vector<std::string>& allowed) {
  if (origin.empty()) return {};
  const auto is_allowed = [&](std::string_view name) {
    return std::find(allowed.begin(), allowed.end(), name) != allowed.end();
  };
  HttpHeaders headers;
  if (is_allowed("*")) {
    headers.emplace_back("Access-Control-Allow-Origin", "*");
  } else if (is_allowed(origin)) {
    headers.emplace_back("Access-Control-Allow-Origin", std::string(origin));
    headers.emplace_back("Vary", "Origin");
  } else {
    return {};
  }
  headers.emplace_back(
      "Access-Control-Expose-Headers",
      "x-request-id, retry-after, x-ratelimit-limit-requests, x-ratelimit-limit-tokens, "
      "x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, "
      "x-ratelimit-reset-requests, x-ratelimit-reset-tokens");
  return headers;
}

HttpHeaders PreflightHeaders(const HttpRequest& request) {
  // "*" does not cover Authorization, so the names are listed; those that the page asks for
  // (x-stainless-*) are repeated.
  std::string names = "Authorization, Content-Type, x-api-key, x-request-id";
  const std::string_view asked = request.Header("access-control-request-headers");
  if (!asked.empty() && asked.size() <= 1024 && IsHeaderList(asked)) names += StrCat(", ", asked);
  return {{"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
          {"Access-Control-Allow-Headers", names},
          {"Access-Control-Max-Age", "600"}};
}

}  // namespace lserve
