#include "server/api_error.h"

#include <utility>

namespace lserve {
namespace {

Json TextOrNull(const std::string& text) {
  return text.empty() ? Json() : Json(text);
}

}  // namespace

std::string_view ErrorType(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return http_status >= 500 ? "server_error" : "invalid_request_error";
  }
}

Json ApiError::ToJson() const {
  Json::Object error = {{"message", Json(message)},
                        {"type", Json(std::string(ErrorType(http_status)))},
                        {"param", TextOrNull(param)},
                        {"code", TextOrNull(code)}};
  for (const Json::Member& member : extra) error.push_back(member);
  return Json(Json::Object{{"error", Json(std::move(error))}});
}

ApiError BadField(std::string_view param, std::string message) {
  return {.http_status = 400,
          .message = std::move(message),
          .code = "invalid_value",
          .param = std::string(param)};
}

ApiError FromEngineStatus(const Status& status) {
  switch (status.code()) {
    case Code::kInvalidArgument:
    case Code::kUnsupported:
      return {.http_status = 400, .message = status.message(), .code = "invalid_value"};
    case Code::kOutOfMemory:
      // The cache is smaller than the model's context: to a client, the same as a long prompt.
      return {.http_status = 400, .message = status.message(), .code = "context_length_exceeded"};
    default:
      return {.http_status = 500, .message = status.message(), .code = "internal_error"};
  }
}

}  // namespace lserve
