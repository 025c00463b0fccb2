// Hand-written splitters for the three patterns that nearly all byte-level checkpoints use: linear
// in the text, and tested equal to the patterns run by PCRE2. Used by pre_tokenizer.cc only.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace lserve {

enum class KnownSplit : uint8_t { kGpt2, kLlama3, kQwen2 };

inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Which of them `pattern` is, byte for byte.
std::optional<KnownSplit> FindKnownSplit(std::string_view pattern);

// The end of the match that starts at `at`; these patterns match at every character.
// REQUIRES: at < text.size(), valid UTF-8.
size_t EndOfKnownSplit(KnownSplit split, std::string_view text, size_t at);

}  // namespace lserve
