#include "server/http_reader.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <cctype>
#include <iterator>
#include <string>
#include <utility>

#include "base/strings.h"

namespace lserve {
namespace {

namespace http = boost::beast::http;
using ErrorCode = boost::system::error_code;

constexpr size_t kMaxTargetBytes = 8192;

ApiError ParseError(const ErrorCode& error, const ReadLimits& limits) {
  if (error == http::error::header_limit) {
    return {.http_status = 431,
            .message = StrCat("the header has more than ", limits.header_bytes, " bytes"),
            .code = "header_too_large"};
  }
  if (error == http::error::body_limit) {
    return {.http_status = 413,
            .message = StrCat("the body has more than ", limits.body_bytes,
                              " bytes, which is more than the longest prompt takes"),
            .code = "body_too_large"};
  }
  return {.http_status = 400,
          .message = StrCat("this is no HTTP/1.1 request: ", error.message()),
          .code = "invalid_http"};
}

}  // namespace

void HttpReader::Begin() {
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(limits_.header_bytes));
  parser_->body_limit(limits_.body_bytes);
  header_seen_ = false;
}

HttpReader::Progress HttpReader::Read(std::string_view bytes) {
  Progress progress;
  ErrorCode error;
  progress.used = parser_->put(boost::asio::buffer(bytes.data(), bytes.size()), error);
  if (error && error != http::error::need_more) {
    progress.refused = ParseError(error, limits_);
    return progress;
  }
  if (parser_->is_header_done() && !header_seen_) {
    header_seen_ = progress.header_ended = true;
    progress.refused = CheckHeader();
    if (progress.refused) return progress;
  }
  progress.done = parser_->is_done();
  progress.needs_more = !progress.done && (error == http::error::need_more || progress.used == 0);
  return progress;
}

// What Beast's parser lets pass.
std::optional<ApiError> HttpReader::CheckHeader() const {
  const auto& header = parser_->get();
  const auto count = std::distance(header.begin(), header.end());
  if (static_cast<size_t>(count) > limits_.header_count) {
    return ApiError{
        .http_status = 431,
        .message = StrCat("the header has ", count, " lines, at most ", limits_.header_count),
        .code = "header_too_large"};
  }
  // Two lengths are how requests are smuggled past a proxy.
  if (header.count(http::field::content_length) + header.count(http::field::transfer_encoding) >
      1) {
    return ApiError{.http_status = 400,
                    .message = "the header gives the body's length twice",
                    .code = "invalid_http"};
  }
  const std::string_view target(header.target().data(), header.target().size());
  const bool is_path = !target.empty() && target[0] == '/' && target.size() <= kMaxTargetBytes;
  if (!is_path && (target != "*" || header.method_string() != "OPTIONS")) {
    return ApiError{.http_status = 400,
                    .message = "the target is no path that begins with /",
                    .code = "invalid_http"};
  }
  return std::nullopt;
}

uint64_t HttpReader::body_bytes() const {
  return parser_->content_length().value_or(limits_.body_bytes);
}

bool HttpReader::expects_continue() const {
  const auto& header = parser_->get();
  return header.find(http::field::expect) != header.end() && !parser_->is_done();
}

ReadRequest HttpReader::Take() {
  http::request<http::string_body> message = parser_->release();
  ReadRequest read{
      .request = {}, .keep_alive = message.keep_alive(), .is_http10 = message.version() < 11};
  read.request.method = std::string(message.method_string());
  const std::string_view target(message.target().data(), message.target().size());
  read.request.path = std::string(target.substr(0, target.find_first_of("?#")));
  for (const auto& field : message) {
    std::string name(field.name_string());
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    read.request.headers.emplace_back(std::move(name), std::string(field.value()));
  }
  read.request.body = std::move(message.body());
  return read;
}

}  // namespace lserve
