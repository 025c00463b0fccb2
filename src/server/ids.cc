#include "server/ids.h"

#include <random>

namespace lserve {

uint64_t RandomBits() {
  thread_local std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

std::string RandomName(std::string_view prefix) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string name(prefix);
  for (int word = 0; word < 2; ++word) {
    uint64_t bits = RandomBits();
    for (int i = 0; i < 12; ++i, bits >>= 4) name.push_back(kDigits[bits & 15u]);
  }
  return name;
}

}  // namespace lserve
