#include <gtest/gtest.h>

#include <cmath>

#include "backend/cpu/page_choice.h"

namespace lserve {
namespace {

TileSelectRequest Threshold(double threshold) {
  return {.sink_tiles = 1, .newest_tiles = 2, .threshold = threshold, .table = {}};
}

using Runs = std::vector<PageRun>;

TEST(ChooseTiles, TakesTheHeaviestUntilTheThreshold) {
  // Read whatever the threshold: tiles 0, 5 and 6, together 0.5.
  const std::vector<double> masses = {0.2, 0.05, 0.25, 0.0, 0.2, 0.1, 0.2};
  EXPECT_EQ(ChooseTiles(Threshold(0.5), masses), (Runs{{0, 2}}));
  EXPECT_EQ(ChooseTiles(Threshold(0.51), masses), (Runs{{0, 2}, {4, 6}}));
  EXPECT_EQ(ChooseTiles(Threshold(0.75), masses), (Runs{{0, 2}, {4, 6}}));
  EXPECT_EQ(ChooseTiles(Threshold(0.8), masses), (Runs{{0, 2}, {4, 6}, {8, 10}}));
  EXPECT_EQ(ChooseTiles(Threshold(0.99), masses), (Runs{{0, 6}, {8, 10}}));
}

TEST(ChooseTiles, TakesNoMoreThanAllowed) {
  const std::vector<double> masses = {0.2, 0.05, 0.25, 0.0, 0.2, 0.1, 0.2};
  TileSelectRequest request = Threshold(0.99);
  const auto at_most = [&](int tiles) {
    request.max_listed_tiles = tiles;
    return ChooseTiles(request, masses);
  };
  EXPECT_EQ(at_most(4), (Runs{{0, 6}, {8, 10}}));
  EXPECT_EQ(at_most(3), (Runs{{0, 2}, {4, 6}, {8, 10}}));
  EXPECT_EQ(at_most(2), (Runs{{0, 2}, {4, 6}})) << "the heaviest";
  EXPECT_EQ(at_most(1), (Runs{{0, 2}})) << "the sink";
  EXPECT_EQ(at_most(0), (Runs{{0, 2}})) << "the sink is never cut";
  request.threshold = 0.75;
  EXPECT_EQ(at_most(3), (Runs{{0, 2}, {4, 6}})) << "the threshold needs no more";
}

TEST(ChooseTiles, TiesGoToTheLowerTile) {
  const std::vector<double> masses(8, 0.125);
  EXPECT_EQ(ChooseTiles(Threshold(0.625), masses), (Runs{{0, 6}}));
}

TEST(ChooseTiles, FewTilesAreAllForced) {
  EXPECT_EQ(ChooseTiles(Threshold(0.9), std::vector<double>{1.0}), Runs{});
  EXPECT_EQ(ChooseTiles(Threshold(0.9), std::vector<double>{0.5, 0.5}), Runs{});
  EXPECT_EQ(ChooseTiles(Threshold(0.9), std::vector<double>{0.1, 0.5, 0.4}), (Runs{{0, 2}}));
}

// A broken model must not become a crash.
TEST(ChooseTiles, NanMassesGiveSomeValidList) {
  const std::vector<double> masses(6, std::nan(""));
  EXPECT_EQ(ChooseTiles(Threshold(0.9), masses), (Runs{{0, 2}}));
}

}  // namespace
}  // namespace lserve
