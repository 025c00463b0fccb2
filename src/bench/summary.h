// Summary: median and range of repeated measurements. Used by everything in this folder.
#pragma once

#include <span>

namespace lserve {

struct Summary {
  double median = 0;  // of an even number of samples: the mean of the middle two
  double min = 0;
  double max = 0;
};

// Zeros for no sample.
Summary Summarize(std::span<const double> samples);

}  // namespace lserve
