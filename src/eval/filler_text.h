// FillerText: endless prose in the manner of a software manual, made by a seeded grammar; the hay
// of needle documents. Own text, so that documents of any length can be made and shared. It holds
// no number of more than three digits: those are the needles. Used by needle_document.cc.
#pragma once

#include <cstdint>
#include <string>

#include "base/rng.h"

namespace lserve {

class FillerText {
 public:
  explicit FillerText(uint64_t seed) : rng_(seed) {}

  // One sentence, without white space around it.
  std::string Sentence();
  // A short title without a full stop.
  std::string Heading();

 private:
  std::string Fill(const char* pattern);
  const char* Word(char kind);

  Rng rng_;
};

}  // namespace lserve
