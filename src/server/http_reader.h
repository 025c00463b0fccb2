// HttpReader: the requests that a connection's bytes say, one after the other (Boost.Beast's
// parser, and what it lets pass). No I/O and no clock. Used by http_server.cc.
#pragma once

#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "server/api_error.h"
#include "server/exchange.h"

namespace lserve {

struct ReadLimits {
  size_t header_bytes = size_t{32} << 10;
  size_t header_count = 100;
  size_t body_bytes = size_t{8} << 20;
};

struct ReadRequest {
  HttpRequest request;
  bool keep_alive = false;
  bool is_http10 = false;
};

class HttpReader {
 public:
  explicit HttpReader(const ReadLimits& limits) : limits_(limits) { Begin(); }

  // The next bytes belong to a new request.
  void Begin();

  struct Progress {
    size_t used = 0;                  // bytes of the front that are done with
    bool needs_more = false;          // nothing can be said before more bytes have come
    bool header_ended = false;        // with this call
    bool done = false;                // Take() gives the request
    std::optional<ApiError> refused;  // of a bad request; the reader is of no use any more
  };
  Progress Read(std::string_view bytes);

  // After the header: the length that it promises, or the most that is taken.
  uint64_t body_bytes() const;
  // The client waits for leave to send the body.
  bool expects_continue() const;
  // REQUIRES: done; Begin() follows.
  ReadRequest Take();

 private:
  std::optional<ApiError> CheckHeader() const;

  ReadLimits limits_;
  std::optional<boost::beast::http::request_parser<boost::beast::http::string_body>> parser_;
  bool header_seen_ = false;
};

}  // namespace lserve
