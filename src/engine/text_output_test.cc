#include "engine/text_output.h"

#include <gtest/gtest.h>

namespace lserve {
namespace {

TEST(StopMatcher, HoldsBackWhatMayBecomeAStopString) {
  StopMatcher matcher({"STOP", "\n\n"});
  EXPECT_EQ(matcher.Push("ab S"), "ab ");
  EXPECT_EQ(matcher.Push("T"), "");
  EXPECT_EQ(matcher.Push("x"), "STx");
  EXPECT_EQ(matcher.Push("y\n"), "y");
  EXPECT_EQ(matcher.Push("z"), "\nz");
  EXPECT_FALSE(matcher.stopped());
  EXPECT_EQ(matcher.Push("end STOP after"), "end ");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.Push("more"), "");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcher, FinishGivesTheRest) {
  StopMatcher matcher({"abc"});
  EXPECT_EQ(matcher.Push("xab"), "x");
  EXPECT_EQ(matcher.Finish(), "ab");
}

TEST(StopMatcher, TheFirstOfSeveralMatchesWins) {
  StopMatcher matcher({"lo", "hell"});
  EXPECT_EQ(matcher.Push("say hello"), "say ");
}

TEST(StopMatcher, EqualsFindOnTheWholeTextWhateverThePieces) {
  const std::string text = "aabaabaaabab";
  for (const std::string stop : {"aaab", "abab", "b", "zz", "aabaaba"}) {
    const size_t at = text.find(stop);
    for (size_t piece = 1; piece <= text.size(); ++piece) {
      StopMatcher matcher({stop});
      std::string shown;
      for (size_t i = 0; i < text.size(); i += piece) shown += matcher.Push(text.substr(i, piece));
      shown += matcher.Finish();
      EXPECT_EQ(shown, text.substr(0, at)) << stop << " in pieces of " << piece;
    }
  }
}

}  // namespace
}  // namespace lserve
