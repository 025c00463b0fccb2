#include "server/http_head.h"

#include <charconv>

#include "base/check.h"
#include "base/strings.h"

namespace lserve {
namespace {

std::string OneLine(std::string text) {
  for (char& c : text) {
    if (c == '\r' || c == '\n') c = ' ';
  }
  return text;
}

}  // namespace

std::string_view ReasonPhrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    default:
      return "Status";
  }
}

std::string ResponseHead(const HttpResponse& response, const HeadOptions& options) {
  std::string head =
      StrCat("HTTP/1.1 ", response.status, " ", ReasonPhrase(response.status), "\r\n");
  if (response.status != 204) head += StrCat("Content-Type: ", response.content_type, "\r\n");
  for (const auto& [name, value] : response.headers) {
    head += StrCat(OneLine(name), ": ", OneLine(value), "\r\n");
  }
  if (options.framing == BodyFraming::kChunked) head += "Transfer-Encoding: chunked\r\n";
  if (options.framing == BodyFraming::kLength && response.status != 204) {
    head += StrCat("Content-Length: ", response.body.size(), "\r\n");
  }
  head += options.keep_alive ? "Connection: keep-alive\r\n" : "Connection: close\r\n";
  return head + "\r\n";
}

std::string HttpChunk(std::string_view bytes) {
  LS_CHECK(!bytes.empty()) << "an empty chunk would end the body";
  char size[20];
  const std::to_chars_result end = std::to_chars(size, size + sizeof(size), bytes.size(), 16);
  return StrCat(std::string_view(size, static_cast<size_t>(end.ptr - size)), "\r\n", bytes, "\r\n");
}

}  // namespace lserve
