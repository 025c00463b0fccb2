// Words: the keys and values of synthetic tasks: words, adjective-noun pairs, numbers, UUIDs,
// random letters. RULER draws its words from a Python package; these are our own lists, and beyond
// them made-up words that can be pronounced. Used by ruler_tasks.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/rng.h"

namespace lserve {

std::string RandomAdjectiveNoun(Rng& rng);                          // "quiet-harbor"
std::string RandomNumber(Rng& rng, int num_digits);                 // no leading zero
std::string RandomUuid(Rng& rng);                                   // version 4
std::string RandomLetters(Rng& rng, int count, char first_letter);  // from 'a' or 'A' on

// `count` different words in random order.
std::vector<std::string> DistinctWords(Rng& rng, int64_t count);

template <class T>
void Shuffle(std::vector<T>& items, Rng& rng) {
  for (size_t i = items.size(); i > 1; --i) {
    std::swap(items[i - 1], items[static_cast<size_t>(rng.NextBelow(i))]);
  }
}

}  // namespace lserve
