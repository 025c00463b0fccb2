// StrCat: builds error messages from text and numbers; the only formatting that library code needs.
#pragma once

#include <charconv>
#include <concepts>
#include <string>
#include <string_view>

namespace lserve {
namespace internal {

inline void AppendPiece(std::string& out, std::string_view piece) {
  out.append(piece);
}
inline void AppendPiece(std::string& out, const char* piece) {
  out.append(piece);
}
inline void AppendPiece(std::string& out, const std::string& piece) {
  out.append(piece);
}
inline void AppendPiece(std::string& out, char piece) {
  out.push_back(piece);
}
template <class T>
requires(std::integral<T> || std::floating_point<T>) &&
    (!std::same_as<T, char>)void AppendPiece(std::string& out, T piece) {
  if constexpr (std::same_as<T, bool>) {
    out.append(piece ? "true" : "false");
  } else {
    char digits[64];
    const std::to_chars_result end = std::to_chars(digits, digits + sizeof(digits), piece);
    out.append(digits, end.ptr);
  }
}

}  // namespace internal

template <class... Pieces>
std::string StrCat(const Pieces&... pieces) {
  std::string out;
  (internal::AppendPiece(out, pieces), ...);
  return out;
}

}  // namespace lserve
