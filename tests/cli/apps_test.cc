// The parts of apps/ that need no program: numbers, token files, NumPy headers, prefixes, filler.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "apps/answering.h"
#include "apps/npy_file.h"
#include "apps/progress_bar.h"
#include "apps/prompts.h"
#include "apps/quantities.h"
#include "apps/token_file.h"
#include "eval/filler_text.h"
#include "eval/needle_document.h"

namespace lserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Quantities, Sizes) {
  const auto size = [](const char* text) { return ParseSize(text, 1, INT64_MAX, "--x").value(); };
  EXPECT_EQ(size("4096"), 4096);
  EXPECT_EQ(size("128k"), 131072);
  EXPECT_EQ(size("128K"), 131072);
  EXPECT_EQ(size("1M"), 1048576);
  EXPECT_EQ(size("1.5GiB"), 1610612736);
  EXPECT_EQ(size("9223372036854775807"), INT64_MAX);
  for (const char* bad : {"", "k", "1x", "1kk", "-1", "0", "1e30", "nan", "inf", "1 k", "0x10",
                          "9223372036854775808", "99999999T"}) {
    EXPECT_FALSE(ParseSize(bad, 1, INT64_MAX, "--x").ok()) << bad;
  }
}

TEST(Quantities, Numbers) {
  EXPECT_EQ(ParseNumber("0.25", 0, 1, "--x").value(), 0.25);
  for (const char* bad : {"", "0.5x", "nan", "inf", "1.01", "-0.1", " 1"}) {
    EXPECT_FALSE(ParseNumber(bad, 0, 1, "--x").ok()) << bad;
  }
  EXPECT_THAT(ParseInteger("7x", 0, 9, "--x").status().message(), HasSubstr("from 0 to 9"));
}

TEST(Quantities, ForPeople) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(-1234567), "-1,234,567");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatSeconds(0.25), "250 ms");
  EXPECT_EQ(FormatSeconds(250), "4 min 10 s");
  EXPECT_EQ(ProgressLine("reading", 512, 2048, 1.0),
            "reading [######..................] 512/2,048 tokens, 512 tok/s, 3.0 s left");
}

TEST(TokenFile, OneNumberPerWord) {
  EXPECT_THAT(ParseTokens(" 1\t2\r\n3 ", 4, "f").value(), ElementsAre(1, 2, 3));
  EXPECT_FALSE(ParseTokens("4", 4, "f").ok());
  EXPECT_FALSE(ParseTokens("+1", 4, "f").ok());
  EXPECT_FALSE(ParseTokens("1.0", 4, "f").ok());
}

TEST(NpyHeader, IsPaddedTo64Bytes) {
  for (const int64_t rows : {int64_t{1}, int64_t{131072}, int64_t{999999999}}) {
    const std::string header = NpyHeader(rows, 128256);
    EXPECT_EQ(header.size() % 64, 0u);
    EXPECT_EQ(header.back(), '\n');
    EXPECT_EQ(static_cast<size_t>(static_cast<unsigned char>(header[8])) + 10, header.size());
  }
}

TEST(CommonPrefix, LeavesATokenToCompute) {
  using Prompts = std::vector<std::vector<int32_t>>;
  EXPECT_EQ(CommonPrefix(Prompts{}), 0);
  EXPECT_EQ(CommonPrefix(Prompts{{1, 2, 3}}), 2);
  EXPECT_EQ(CommonPrefix(Prompts{{1, 2, 3}, {1, 2, 3}}), 2);
  EXPECT_EQ(CommonPrefix(Prompts{{1, 2, 3, 4}, {1, 2, 9}}), 2);
  EXPECT_EQ(CommonPrefix(Prompts{{1, 2, 3, 4}, {1, 2}}), 1);
  EXPECT_EQ(CommonPrefix(Prompts{{1, 2}, {1, 2, 3, 4}}), 1);
  EXPECT_EQ(CommonPrefix(Prompts{{1}, {2}}), 0);
  EXPECT_EQ(CommonPrefix(Prompts{{1, 2}, {}}), 0);
}

TEST(Attention, WhatRan) {
  RequestStats stats;
  stats.pages_visited = stats.pages_present = 8;
  stats.prefill_tiles_visited = stats.prefill_tiles_present = 3;
  EXPECT_STREQ(AttentionThatRan(stats), "dense");
  stats.prefill_tiles_visited = 2;  // streaming heads while the prompt was read
  EXPECT_STREQ(AttentionThatRan(stats), "sparse");
}

TEST(FillerText, IsDeterministicAndHoldsNoLongNumber) {
  FillerText a(7), b(7), c(8);
  bool differs = false;
  for (int i = 0; i < 2000; ++i) {
    const std::string sentence = a.Sentence();
    EXPECT_EQ(sentence, b.Sentence());
    differs |= sentence != c.Sentence();
    EXPECT_EQ(sentence.find('$'), std::string::npos) << sentence;
    int digits = 0;
    for (const char ch : sentence) {
      digits = ch >= '0' && ch <= '9' ? digits + 1 : 0;
      ASSERT_LE(digits, 3) << sentence;
    }
  }
  EXPECT_TRUE(differs);
}

TEST(NeedleDocument, HoldsEachFactAtItsDepth) {
  const auto tokenizer = Tokenizer::Load(LS_SOURCE_DIR "/models/needle");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  NeedleOptions options;
  options.num_tokens = 4096;
  options.num_values_of_one_key = 3;
  const Result<NeedleDocument> made = MakeNeedleDocument(*tokenizer.value(), options);
  ASSERT_TRUE(made.ok());
  const NeedleDocument& document = made.value();
  EXPECT_NEAR(static_cast<double>(document.num_tokens), 4096.0, 0.02 * 4096.0);
  ASSERT_EQ(document.questions.size(), options.depths.size());
  for (const NeedleQuestion& question : document.questions) {
    const std::string value = [&] {
      const size_t end = question.answer.size() - 1;  // the full stop
      const size_t begin = question.answer.find_last_of(' ', end) + 1;
      return question.answer.substr(begin, end - begin);
    }();
    const size_t at = document.text.find(value);
    ASSERT_NE(at, std::string::npos) << value;
    EXPECT_NEAR(static_cast<double>(at) / static_cast<double>(document.text.size()), question.depth,
                0.03);
  }
  ASSERT_EQ(document.all_values.size(), 1u);
  EXPECT_EQ(MakeNeedleDocument(*tokenizer.value(), options).value().text, document.text);
}

}  // namespace
}  // namespace lserve
