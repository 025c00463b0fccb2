// The bytes of HTTP/1.1 that the server writes: response heads and chunks of a stream. Text only;
// the reading side is Boost.Beast's. Used by http_server.cc.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "server/exchange.h"

namespace lserve {

enum class BodyFraming : uint8_t {
  kLength,   // Content-Length
  kChunked,  // a stream to an HTTP/1.1 client
  kClose,    // a stream to an HTTP/1.0 client: it ends where the connection does
};

struct HeadOptions {
  BodyFraming framing = BodyFraming::kLength;
  bool keep_alive = true;
};

// Status line and headers, the empty line included. A line break in a header's value, which only a
// bug could bring, becomes a space.
std::string ResponseHead(const HttpResponse& response, const HeadOptions& options);
std::string_view ReasonPhrase(int status);

// One chunk of a chunked body. REQUIRES: not empty, for an empty chunk ends the body.
std::string HttpChunk(std::string_view bytes);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

}  // namespace lserve
