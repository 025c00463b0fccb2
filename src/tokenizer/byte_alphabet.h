// The byte alphabet of byte-level BPE: each byte is written as one printable character, so that a
// vocabulary of bytes can be kept in a text file. Bytes that print as themselves do; the other 68
// become U+0100 onward, in order.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace lserve {

// The bytes that `token` spells, or nothing if a character is outside the alphabet.
std::optional<std::string> BytesOfAlphabet(std::string_view token);
std::string AlphabetOfBytes(std::string_view bytes);

}  // namespace lserve
