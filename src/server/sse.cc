#include "server/sse.h"

#include "base/strings.h"

namespace lserve {

std::string SseData(const Json& value) {
  return StrCat("data: ", WriteJson(value), "\n\n");
}

std::string SseEvent(std::string_view name, const Json& value) {
  return StrCat("event: ", name, "\n", SseData(value));
}

}  // namespace lserve
