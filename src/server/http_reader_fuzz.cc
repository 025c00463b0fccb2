// Any bytes as a connection's, in pieces of any size: requests within their limits, or one refusal.
// The pieces do not matter: the same bytes at once give the same requests.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "server/http_reader.h"

namespace {

constexpr lserve::ReadLimits kLimits = {.header_bytes = 512, .header_count = 8, .body_bytes = 256};

struct Seen {
  std::vector<std::string> requests;
  int refused = 0;  // the status
};

// As the server does: reads `piece` more bytes whenever nothing can be said of those at hand.
Seen ReadAll(std::string_view bytes, size_t piece) {
  Seen seen;
  lserve::HttpReader reader(kLimits);
  std::string held;
  for (size_t at = 0; at < bytes.size() && seen.refused == 0; at += piece) {
    held += bytes.substr(at, piece);
    while (!held.empty()) {
      const lserve::HttpReader::Progress progress = reader.Read(held);
      LS_CHECK(progress.used <= held.size());
      held.erase(0, progress.used);
      if (progress.refused) {
        seen.refused = progress.refused->http_status;
        LS_CHECK(seen.refused >= 400 && seen.refused < 500) << seen.refused;
        LS_CHECK(progress.refused->message.find('\n') == std::string::npos);
        break;
      }
      if (progress.done) {
        const lserve::ReadRequest read = reader.Take();
        LS_CHECK(read.request.body.size() <= kLimits.body_bytes) << read.request.body.size();
        LS_CHECK(read.request.headers.size() <= kLimits.header_count);
        LS_CHECK(read.request.path.empty() || read.request.path[0] == '/' ||
                 read.request.path == "*");
        seen.requests.push_back(read.request.method + ' ' + read.request.path + ' ' +
                                read.request.body);
        reader.Begin();
      } else if (progress.needs_more) {
        break;
      }
    }
  }
  return seen;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  const Seen whole = ReadAll(bytes, size);
  const Seen parts = ReadAll(bytes, size_t{1} + data[0] % 61);
  // Where a limit is met depends on what is at hand; what was read before it does not.
  const size_t common = std::min(whole.requests.size(), parts.requests.size());
  for (size_t i = 0; i < common; ++i) LS_CHECK(whole.requests[i] == parts.requests[i]);
  if (whole.refused == 0 && parts.refused == 0) {
    LS_CHECK(whole.requests.size() == parts.requests.size());
  }
  return 0;
}
