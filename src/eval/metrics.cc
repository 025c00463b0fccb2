#include "eval/metrics.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "tokenizer/unicode.h"

namespace lserve {
namespace {

bool IsAsciiPunctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
         (c >= '{' && c <= '~');
}

bool IsAsciiWord(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

// ASCII letters only: answers in other scripts are compared as they are.
std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

std::vector<std::string> SplitWhiteSpace(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : text) {
    if (c == ' ' || (c >= '\t' && c <= '\r')) {
      if (!word.empty()) words.push_back(std::move(word));
      word.clear();
    } else {
      word.push_back(c);
    }
  }
  if (!word.empty()) words.push_back(std::move(word));
  return words;
}

bool Contains(const std::string& lower_text, const std::string& reference) {
  return lower_text.find(Lower(reference)) != std::string::npos;
}

double F1(const std::vector<std::string>& answer, const std::vector<std::string>& reference) {
  std::map<std::string, int> counts;
  for (const std::string& word : reference) ++counts[word];
  int same = 0;
  for (const std::string& word : answer) same += counts[word]-- > 0 ? 1 : 0;
  if (same == 0) return 0.0;
  const double precision = static_cast<double>(same) / static_cast<double>(answer.size());
  const double recall = static_cast<double>(same) / static_cast<double>(reference.size());
  return 2.0 * precision * recall / (precision + recall);
}

// Punctuation that LongBench removes from Chinese answers.
bool IsChinesePunctuation(char32_t c) {
  return (c >= 0xff01 && c <= 0xff0f) || (c >= 0xff1a && c <= 0xff20) ||
         (c >= 0xff3b && c <= 0xff40) || (c >= 0xff5b && c <= 0xff65) ||
         (c >= 0x3001 && c <= 0x3003) || (c >= 0x3008 && c <= 0x3011) ||
         (c >= 0x3014 && c <= 0x301f) || c == 0x3030 || c == 0x303e || c == 0x303f || c == 0x2013 ||
         c == 0x2014 || (c >= 0x2018 && c <= 0x201f) || c == 0x2026 || c == 0x2027 || c == 0xfe4f;
}

// Characters that are neither white space nor, if so wished, punctuation, as strings.
std::vector<std::string> Characters(std::string_view text, bool drop_punctuation) {
  std::vector<std::string> characters;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = DecodeAt(text, at);
    const bool drop = IsWhiteSpace(point.value) ||
                      (drop_punctuation && (IsChinesePunctuation(point.value) ||
                                            (point.value < 0x80 && IsAsciiPunctuation(text[at]))));
    if (!drop) characters.push_back(Lower(text.substr(at, point.bytes)));
    at += point.bytes;
  }
  return characters;
}

using Words = std::vector<std::string>;

// The table of lengths of common subsequences; row i and column j stand for the first i and j.
class CommonSubsequence {
 public:
  CommonSubsequence(const Words& a, const Words& b)
      : a_(a), b_(b), columns_(b.size() + 1), lengths_((a.size() + 1) * columns_, 0) {
    for (size_t i = 1; i <= a.size(); ++i) {
      for (size_t j = 1; j <= b.size(); ++j) {
        At(i, j) =
            a[i - 1] == b[j - 1] ? At(i - 1, j - 1) + 1 : std::max(At(i - 1, j), At(i, j - 1));
      }
    }
  }

  // Adds the words of one longest common subsequence; of equal ones, the one `rouge` finds.
  void AddWords(std::set<std::string>& words) {
    size_t i = a_.size(), j = b_.size();
    while (i > 0 && j > 0) {
      if (a_[i - 1] == b_[j - 1]) {
        words.insert(a_[i - 1]);
        --i, --j;
      } else if (At(i - 1, j) > At(i, j - 1)) {
        --i;
      } else {
        --j;
      }
    }
  }

 private:
  int& At(size_t i, size_t j) { return lengths_[i * columns_ + j]; }

  const Words& a_;
  const Words& b_;
  size_t columns_;
  std::vector<int> lengths_;
};

// `rouge` counts distinct words, of the texts and of the union of the common subsequences of each
// pair of sentences.
double RougeOfSentences(const std::vector<Words>& answer, const std::vector<Words>& reference) {
  std::set<std::string> answer_words, reference_words, common;
  for (const Words& sentence : answer) answer_words.insert(sentence.begin(), sentence.end());
  for (const Words& sentence : reference) reference_words.insert(sentence.begin(), sentence.end());
  if (answer_words.empty() || reference_words.empty()) return 0.0;
  for (const Words& expected : reference) {
    for (const Words& given : answer) CommonSubsequence(expected, given).AddWords(common);
  }
  const double precision =
      static_cast<double>(common.size()) / static_cast<double>(answer_words.size());
  const double recall =
      static_cast<double>(common.size()) / static_cast<double>(reference_words.size());
  return 2.0 * precision * recall / (precision + recall + 1e-8);
}

// Sentences end at a full stop, as `rouge` has it; "3.5" are two.
template <class Split>
std::vector<Words> Sentences(std::string_view text, Split split) {
  std::vector<Words> sentences;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('.', begin), text.size());
    Words words = split(text.substr(begin, end - begin));
    if (!words.empty()) sentences.push_back(std::move(words));
    begin = end + 1;
  }
  return sentences;
}

std::vector<std::string> Numbers(std::string_view text) {
  std::vector<std::string> numbers;
  std::string digits;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && text[i] >= '0' && text[i] <= '9') {
      digits.push_back(text[i]);
    } else if (!digits.empty()) {
      numbers.push_back(std::move(digits));
      digits.clear();
    }
  }
  return numbers;
}

double ShareOf(const std::vector<std::string>& numbers, std::string_view wanted) {
  if (numbers.empty()) return 0.0;
  const auto right = std::count(numbers.begin(), numbers.end(), wanted);
  return static_cast<double>(right) / static_cast<double>(numbers.size());
}

}  // namespace

double StringMatchAll(std::string_view answer, std::span<const std::string> references) {
  if (references.empty()) return 0.0;
  const std::string lower = Lower(answer);
  const auto found = std::count_if(references.begin(), references.end(),
                                   [&](const std::string& r) { return Contains(lower, r); });
  return static_cast<double>(found) / static_cast<double>(references.size());
}

double StringMatchPart(std::string_view answer, std::span<const std::string> references) {
  const std::string lower = Lower(answer);
  return std::any_of(references.begin(), references.end(),
                     [&](const std::string& r) { return Contains(lower, r); })
             ? 1.0
             : 0.0;
}

std::string NormalizeEnglish(std::string_view text) {
  std::string kept = Lower(text);
  std::erase_if(kept, IsAsciiPunctuation);
  std::string without_articles;
  for (size_t i = 0; i < kept.size();) {
    if (!IsAsciiWord(kept[i])) {
      without_articles.push_back(kept[i++]);
      continue;
    }
    size_t end = i;
    while (end < kept.size() && IsAsciiWord(kept[end])) ++end;
    const std::string_view word = std::string_view(kept).substr(i, end - i);
    const bool is_article = word == "a" || word == "an" || word == "the";
    without_articles += is_article ? std::string_view(" ") : word;
    i = end;
  }
  std::string normal;
  for (const std::string& word : SplitWhiteSpace(without_articles)) {
    if (!normal.empty()) normal.push_back(' ');
    normal += word;
  }
  return normal;
}

double QaF1(std::string_view answer, std::string_view reference) {
  return F1(SplitWhiteSpace(NormalizeEnglish(answer)),
            SplitWhiteSpace(NormalizeEnglish(reference)));
}

double QaF1Chinese(std::string_view answer, std::string_view reference) {
  return F1(Characters(answer, true), Characters(reference, true));
}

double RougeL(std::string_view answer, std::string_view reference) {
  return RougeOfSentences(Sentences(answer, SplitWhiteSpace),
                          Sentences(reference, SplitWhiteSpace));
}

double RougeLChinese(std::string_view answer, std::string_view reference) {
  const auto split = [](std::string_view text) { return Characters(text, false); };
  return RougeOfSentences(Sentences(answer, split), Sentences(reference, split));
}

double ClassificationScore(std::string_view answer,
                           std::string_view reference,
                           std::span<const std::string> classes) {
  std::vector<std::string> named;
  for (const std::string& name : classes) {
    if (answer.find(name) != std::string_view::npos) named.push_back(name);
  }
  // A class whose name is part of the right one's does not count against it. The published loop
  // removes while it iterates, and so skips the class after a removed one; so do we.
  for (size_t i = 0; i < named.size(); ++i) {
    if (named[i] != reference && reference.find(named[i]) != std::string_view::npos) {
      named.erase(std::find(named.begin(), named.end(), named[i]));
    }
  }
  const bool right = std::find(named.begin(), named.end(), reference) != named.end();
  return right ? 1.0 / static_cast<double>(named.size()) : 0.0;
}

double RetrievalScore(std::string_view answer,
                      std::string_view reference,
                      std::string_view marker) {
  const size_t at = reference.find(marker);
  if (at == std::string_view::npos) return 0.0;
  const std::vector<std::string> wanted = Numbers(reference.substr(at + marker.size()));
  return wanted.empty() ? 0.0 : ShareOf(Numbers(answer), wanted.front());
}

double CountScore(std::string_view answer, std::string_view reference) {
  return ShareOf(Numbers(answer), reference);
}

double CodeSimilarity(std::string_view answer, std::string_view reference) {
  while (answer.starts_with('\n')) answer.remove_prefix(1);
  std::string_view first_line;
  while (true) {
    const size_t end = std::min(answer.find('\n'), answer.size());
    const std::string_view line = answer.substr(0, end);
    if (line.find_first_of("`#") == std::string_view::npos &&
        line.find("//") == std::string_view::npos) {
      first_line = line;
      break;
    }
    if (end == answer.size()) break;
    answer.remove_prefix(end + 1);
  }
  // 2 M / T with M the longest common subsequence: the indel ratio of python-Levenshtein, which
  // fuzzywuzzy uses where it is installed; rounded to whole percent, as it does.
  std::vector<char32_t> a, b;
  const auto decode = [](std::string_view text, std::vector<char32_t>& out) {
    for (size_t at = 0; at < text.size();) {
      const CodePoint point = DecodeAt(text, at);
      out.push_back(point.value);
      at += point.bytes;
    }
  };
  decode(first_line, a);
  decode(reference, b);
  if (a.empty() || b.empty()) return 0.0;
  std::vector<size_t> previous(b.size() + 1, 0), row(b.size() + 1, 0);
  for (const char32_t c : a) {
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = c == b[j - 1] ? previous[j - 1] + 1 : std::max(previous[j], row[j - 1]);
    }
    std::swap(previous, row);
  }
  const double ratio =
      2.0 * static_cast<double>(previous[b.size()]) / static_cast<double>(a.size() + b.size());
  return std::round(100.0 * ratio) / 100.0;
}

}  // namespace lserve
