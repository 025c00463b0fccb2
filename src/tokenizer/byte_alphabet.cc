#include "tokenizer/byte_alphabet.h"

#include <array>

#include "tokenizer/unicode.h"

namespace lserve {
namespace {

constexpr int kLastCharacter = 0x143;  // 0x100 + 68 - 1

struct Alphabet {
  std::array<char32_t, 256> of_byte{};
  std::array<int, kLastCharacter + 1> to_byte{};  // -1: no byte
};

constexpr bool PrintsAsItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) ||
         (byte >= 0xae && byte <= 0xff);
}

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (int& byte : alphabet.to_byte) byte = -1;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const int character = PrintsAsItself(byte) ? byte : next++;
    alphabet.of_byte[static_cast<size_t>(byte)] = static_cast<char32_t>(character);
    alphabet.to_byte[static_cast<size_t>(character)] = byte;
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

std::optional<std::string> BytesOfAlphabet(std::string_view token) {
  std::string bytes;
  for (size_t i = 0; i < token.size();) {
    const CodePoint c = DecodeAt(token, i);
    i += c.bytes;
    if (c.value > kLastCharacter) return std::nullopt;
    const int byte = kAlphabet.to_byte[c.value];
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

std::string AlphabetOfBytes(std::string_view bytes) {
  std::string token;
  for (const char byte : bytes)
    AppendUtf8(kAlphabet.of_byte[static_cast<unsigned char>(byte)], token);
  return token;
}

}  // namespace lserve
