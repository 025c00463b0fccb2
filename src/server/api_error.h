// ApiError: a refusal as OpenAI's clients understand it: HTTP status, type, code, parameter and a
// message. Not a Status: it carries what only HTTP needs. Used inside src/server only.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

struct ApiError {
  int http_status = 400;
  std::string message;
  std::string code = {};   // "context_length_exceeded", ...; empty: null
  std::string param = {};  // the field of the request; empty: null
  int retry_after_seconds = 0;
  // Further members of the error object, beside OpenAI's four.
  Json::Object extra = {};

  // {"error":{"message","type","param","code",...}}
  Json ToJson() const;
};

// OpenAI's "type" that belongs to a status: "invalid_request_error", "server_error", ...
std::string_view ErrorType(int http_status);

// 400 about one field of the request.
ApiError BadField(std::string_view param, std::string message);
// What `Engine` says about a request that it can not take or finish.
ApiError FromEngineStatus(const Status& status);

}  // namespace lserve
