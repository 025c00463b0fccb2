#include "server/sse.h"

#include "base/strings.h"

namespace lserve {

std::string SseData(const Json& value) {
  return StrCat("data: ", WriteJson(value), "\n\n");
}

}  // namespace lserve
