// UTF-8 and the few character properties that tokenizers ask for (general categories by
// utf8proc). No case mapping beyond single characters, no locale. Used inside src/tokenizer only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lserve {

struct CodePoint {
  char32_t value = 0;
  size_t bytes = 0;  // length in UTF-8
};

// Offset of the first byte that starts no valid UTF-8 sequence (overlong forms and surrogates are
// invalid), or text.size() if there is none.
size_t FindInvalidUtf8(std::string_view text);

// REQUIRES: text[at..] starts with a valid sequence.
CodePoint DecodeAt(std::string_view text, size_t at);
// The same for the sequence that ends just before `end`. REQUIRES: end > 0.
CodePoint DecodeBefore(std::string_view text, size_t end);
void AppendUtf8(char32_t point, std::string& out);
size_t CountCodePoints(std::string_view text);

// How many bytes at the start of `bytes` are one whole character (valid = true), or the longest
// run that can not be the beginning of one (valid = false; what one U+FFFD stands for). bytes = 0:
// more input is needed to tell. REQUIRES: !bytes.empty().
struct Utf8Step {
  size_t bytes = 0;
  bool valid = false;
};
Utf8Step NextUtf8(std::string_view bytes);

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";

bool IsLetter(char32_t c);      // \p{L}
bool IsNumber(char32_t c);      // \p{N}
bool IsWhiteSpace(char32_t c);  // \s: the White_Space property
bool IsWordCharacter(char32_t c);

enum class NormalForm : uint8_t { kNfc, kNfd, kNfkc, kNfkd };
// REQUIRES: valid UTF-8. Linear in the text but for sorting runs of combining marks.
std::string Normalize(std::string_view text, NormalForm form);

}  // namespace lserve
