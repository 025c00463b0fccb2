#include "eval/haystack.h"

#include "base/strings.h"
#include "eval/filler_text.h"

namespace lserve {

Result<Haystack> Haystack::FromText(const std::string& text, const std::string& source) {
  Haystack haystack;
  std::string sentence;
  const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (is_space(c)) {
      if (!sentence.empty() && sentence.back() != ' ') sentence.push_back(' ');
    } else {
      sentence.push_back(c);
    }
    const bool ends =
        (c == '.' || c == '!' || c == '?') && (i + 1 == text.size() || is_space(text[i + 1]));
    // A text without full stops is cut where a long sentence would end.
    constexpr size_t kLongest = 400;
    if (ends || (is_space(c) && sentence.size() > kLongest) || i + 1 == text.size()) {
      while (!sentence.empty() && sentence.back() == ' ') sentence.pop_back();
      if (!sentence.empty()) haystack.sentences_.push_back(std::move(sentence));
      sentence.clear();
    }
  }
  if (haystack.sentences_.empty()) {
    return Status(Code::kInvalidArgument,
                  StrCat(source, ": has no sentence, expected text; is this the right file?"));
  }
  return haystack;
}

std::vector<std::string> Haystack::Sentences(int64_t count, uint64_t seed) const {
  std::vector<std::string> sentences;
  sentences.reserve(static_cast<size_t>(count));
  if (sentences_.empty()) {
    FillerText filler(seed);
    for (int64_t i = 0; i < count; ++i) sentences.push_back(filler.Sentence());
    return sentences;
  }
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    sentences.push_back(sentences_[i % sentences_.size()]);
  }
  return sentences;
}

}  // namespace lserve
