// Reading: which parts of a prompt the retrieval heads attended while an answer was written, summed
// over layers, heads and tokens. Fed by Request::on_attention; used by `lserve run --explain`.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/attention_probe.h"

namespace lserve {

// Positions [first, last) of neighbouring pages, and their share of the weight.
struct ReadPart {
  int64_t first = 0;
  int64_t last = 0;
  double weight = 0;
};

class Reading {
 public:
  // Of positions [first, last) of a prompt of `prompt_size` tokens.
  Reading(int64_t prompt_size, int64_t first, int64_t last);

  // The query that draws the first token, then every decode step.
  Status Observe(const AttentionView& view);

  // The parts with most weight, at most `most`, the heaviest first; none if nothing was read.
  std::vector<ReadPart> Parts(int most) const;

 private:
  int64_t prompt_size_;
  int64_t first_;
  int64_t last_;
  std::vector<double> pages_;  // weight of each page of the prompt
};

}  // namespace lserve
