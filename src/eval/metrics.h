// Metrics: how near an answer is to what was expected, as RULER and LongBench define it, in [0, 1].
// Where a published definition is odd, it is kept, so that figures compare; the .cc says where.
// Used by the tasks of this folder.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lserve {

// RULER: the share of `references` that `answer` contains, whatever the case.
double StringMatchAll(std::string_view answer, std::span<const std::string> references);
// RULER, for QA: 1 if it contains any of them.
double StringMatchPart(std::string_view answer, std::span<const std::string> references);

// SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single spaces.
std::string NormalizeEnglish(std::string_view text);
// F1 of the bags of words after NormalizeEnglish.
double QaF1(std::string_view answer, std::string_view reference);
// Chinese: F1 of the bags of characters without punctuation and white space. LongBench segments
// into words with jieba, which is not here: these figures are on characters.
double QaF1Chinese(std::string_view answer, std::string_view reference);

// F of ROUGE-L at summary level as the Python package `rouge` computes it.
double RougeL(std::string_view answer, std::string_view reference);
// The same on characters, for Chinese.
double RougeLChinese(std::string_view answer, std::string_view reference);

// 1 / (number of classes that the answer names) if the right one is among them.
double ClassificationScore(std::string_view answer,
                           std::string_view reference,
                           std::span<const std::string> classes);
// The share of the answer's numbers that are the one in `reference`. For retrieval it stands there
// after `marker` ("Paragraph ").
double RetrievalScore(std::string_view answer, std::string_view reference, std::string_view marker);
double CountScore(std::string_view answer, std::string_view reference);
// fuzzywuzzy's ratio of the answer's first line of code and `reference`.
double CodeSimilarity(std::string_view answer, std::string_view reference);

}  // namespace lserve
