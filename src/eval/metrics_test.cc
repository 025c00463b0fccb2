// Each metric against values worked out by hand from its published definition.
#include "eval/metrics.h"

#include <gtest/gtest.h>

namespace lserve {
namespace {

using Texts = std::vector<std::string>;

TEST(Ruler, StringMatchAllIsTheShareOfReferences) {
  EXPECT_DOUBLE_EQ(StringMatchAll("The numbers are 11 and 33.", Texts{"11", "22", "33", "44"}),
                   0.5);
  EXPECT_DOUBLE_EQ(StringMatchAll("ABCDE and fghij", Texts{"abcde", "FGHIJ"}), 1.0);
  EXPECT_DOUBLE_EQ(StringMatchAll("nothing", Texts{"11"}), 0.0);
  // A substring counts, as published.
  EXPECT_DOUBLE_EQ(StringMatchAll("12345", Texts{"234"}), 1.0);
}

TEST(Ruler, StringMatchPartTakesOneReference) {
  EXPECT_DOUBLE_EQ(StringMatchPart("in Paris", Texts{"London", "paris"}), 1.0);
  EXPECT_DOUBLE_EQ(StringMatchPart("in Rome", Texts{"London", "paris"}), 0.0);
}

TEST(Normalize, LowerPunctuationArticlesSpaces) {
  EXPECT_EQ(NormalizeEnglish("The  U.S.\tArmy, an army!"), "us army army");
  // Punctuation goes first: what it joins is one word, and no article.
  EXPECT_EQ(NormalizeEnglish("a-the The_a than"), "athe thea than");
  EXPECT_EQ(NormalizeEnglish("the"), "");
  // An article beside a letter of another script is part of its word.
  EXPECT_EQ(NormalizeEnglish("\xc3\xa9"
                             "a a"),
            "\xc3\xa9"
            "a");
}

TEST(QaF1, BagsOfWords) {
  // Words: {cat sat mat} and {cat mat hat hat}: two in common; precision 2/3, recall 2/4.
  EXPECT_DOUBLE_EQ(QaF1("The cat sat, mat", "cat mat hat hat"),
                   2 * (2.0 / 3) * 0.5 / (2.0 / 3 + 0.5));
  // A repeated word counts as often as the other side has it: 1 of 3 and 1 of 1.
  EXPECT_DOUBLE_EQ(QaF1("yes yes yes", "yes"), 0.5);
  EXPECT_DOUBLE_EQ(QaF1("", "yes"), 0.0);
  EXPECT_DOUBLE_EQ(QaF1("the", "a"), 0.0);  // nothing is left of either
}

TEST(QaF1Chinese, Characters) {
  // "beijing shi" (3 characters) with a full stop, against "beijing" (2): 2/3 and 2/2.
  EXPECT_DOUBLE_EQ(QaF1Chinese("\u5317\u4eac\u5e02\u3002", "\u5317\u4eac"), 0.8);
  EXPECT_DOUBLE_EQ(QaF1Chinese("\u5317\u4eac", "\u4e0a\u6d77"), 0.0);
}

TEST(RougeL, LongestCommonSubsequenceOfWords) {
  // "a b c d" and "a x c y": common subsequence a c, 4 distinct words each: 2/4 both.
  EXPECT_NEAR(RougeL("a b c d", "a x c y"), 0.5, 1e-7);
  // Order matters: "c b a" and "a b c" have one word in sequence: 1/3 both.
  EXPECT_NEAR(RougeL("c b a", "a b c"), 1.0 / 3, 1e-7);
  // Words count once (`rouge` uses sets): {a b} and {a b}.
  EXPECT_NEAR(RougeL("a a a b", "a b"), 1.0, 1e-7);
  // The union over sentences, after Lin (2004): w1 w2 of the first and w1 w3 w5 of the second
  // sentence make 4 of the reference's 5 words; the answer has 8 distinct words: w1-w3, w5-w9.
  const double precision = 4.0 / 8, recall = 4.0 / 5;
  EXPECT_NEAR(RougeL("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5.", "w1 w2 w3 w4 w5"),
              2 * precision * recall / (precision + recall), 1e-7);
  EXPECT_EQ(RougeL("", "a"), 0.0);
  EXPECT_EQ(RougeL("...", "a"), 0.0);
}

TEST(RougeLChinese, Characters) {
  // Three of four characters in order.
  EXPECT_NEAR(RougeLChinese("\u4e00\u4e8c\u4e09\u56db", "\u4e00\u4e8c\u4e94\u56db"), 0.75, 1e-7);
}

TEST(Classification, SharesTheScoreWithOtherNamedClasses) {
  const Texts classes = {"Number of something", "Number", "City", "Other location"};
  EXPECT_DOUBLE_EQ(ClassificationScore("City", "City", classes), 1.0);
  EXPECT_DOUBLE_EQ(ClassificationScore("City or Other location", "City", classes), 0.5);
  EXPECT_DOUBLE_EQ(ClassificationScore("Other location", "City", classes), 0.0);
  // "Number" is part of the right class's name and does not count against it.
  EXPECT_DOUBLE_EQ(ClassificationScore("Number of something", "Number of something", classes), 1.0);
  // The published loop skips the class after a removed one: of A, B, "A B C" only A goes.
  EXPECT_DOUBLE_EQ(ClassificationScore("A B C", "A B C", Texts{"A", "B", "A B C"}), 0.5);
}

TEST(Retrieval, ShareOfTheAnswersNumbers) {
  EXPECT_DOUBLE_EQ(RetrievalScore("Paragraph 7", "Paragraph 7", "Paragraph "), 1.0);
  EXPECT_DOUBLE_EQ(RetrievalScore("Paragraph 7 or 12", "Paragraph 7", "Paragraph "), 0.5);
  EXPECT_DOUBLE_EQ(RetrievalScore("Paragraph 17", "Paragraph 7", "Paragraph "), 0.0);
  EXPECT_DOUBLE_EQ(RetrievalScore("none", "Paragraph 7", "Paragraph "), 0.0);
  EXPECT_DOUBLE_EQ(RetrievalScore("\u6bb5\u843d"
                                  "3",
                                  "\u6bb5\u843d"
                                  "3",
                                  "\u6bb5\u843d"),
                   1.0);
}

TEST(Count, ShareOfTheAnswersNumbers) {
  EXPECT_DOUBLE_EQ(CountScore("There are 5.", "5"), 1.0);
  EXPECT_DOUBLE_EQ(CountScore("5 of 10, so 5", "5"), 2.0 / 3);
  EXPECT_DOUBLE_EQ(CountScore("five", "5"), 0.0);
}

TEST(Code, RatioOfTheFirstLineOfCode) {
  EXPECT_DOUBLE_EQ(CodeSimilarity("return x\nmore", "return x"), 1.0);
  // Comments and fences are skipped.
  EXPECT_DOUBLE_EQ(CodeSimilarity("```python\n# a comment\nreturn x", "return x"), 1.0);
  // "abcd" and "bcde": common subsequence bcd; 2 * 3 / 8 = 0.75.
  EXPECT_DOUBLE_EQ(CodeSimilarity("abcd", "bcde"), 0.75);
  // 2 * 2 / 7 = 0.5714, to whole percent.
  EXPECT_DOUBLE_EQ(CodeSimilarity("abc", "abxy"), 0.57);
  EXPECT_DOUBLE_EQ(CodeSimilarity("", "x"), 0.0);
}

}  // namespace
}  // namespace lserve
