// PageScores: every way to score pages that the selector study compares, over the keys as the CPU
// backend stores them, and every way to make one list of the scores of a KV head's query heads.
// The product has one of each (backend/ops.h, SelectPages); the others live here, where they are
// measured, and nowhere else. Speed is no aim. Used by selector_backend.h.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "backend/cpu/cpu_kv_store.h"
#include "kv/page.h"

namespace lserve::study {

// What q says about the keys of a logical page; a page has the largest of its logical pages, but
// for kGaussian and kTrueMass, which are logarithms of weights and add up.
enum class Score : uint8_t {
  // With the box of the keys, its middle m and its half width r: q m + x sum over d of |q| r.
  kBound,     // x = 1, sum over d of max(q min, q max): no key can have more
  kBox75,     // x = 3/4
  kBox50,     // x = 1/2
  kBox25,     // x = 1/4
  kMiddle,    // x = 0
  kMean,      // q mean
  kMeanAbs,   // q mean + sum over d of |q| deviation
  kMeanRoot,  // q mean + root of the sum of q^2 variance
  kGaussian,  // ln of the weight of normally distributed keys: q mean + q^2 variance / 2
  kTrueMax,   // the largest q k: an oracle that reads every key
  kTrueMass,  // ln of the sum of exp(q k): likewise
};
inline constexpr Score kScores[] = {Score::kBound,   Score::kBox75,    Score::kBox50,
                                    Score::kBox25,   Score::kMiddle,   Score::kMean,
                                    Score::kMeanAbs, Score::kMeanRoot, Score::kGaussian,
                                    Score::kTrueMax, Score::kTrueMass};
std::string_view Name(Score score);

// How the query heads of a group agree on one list.
enum class Grouping : uint8_t {
  kSoftmaxMean,  // mean of the softmax over the pages that compete: the product's
  kSoftmaxMax,   // its largest
  kRawMean,      // mean of the scores: of the mean query
  kRawMax,       // the largest score
  kTurns,        // each head in turn names the best page that is not in the list
};
inline constexpr Grouping kGroupings[] = {Grouping::kSoftmaxMean, Grouping::kSoftmaxMax,
                                          Grouping::kRawMean, Grouping::kRawMax, Grouping::kTurns};
std::string_view Name(Grouping grouping);

// Scores, [query heads, pages] and already times the softmax scale, to `count` pages, ascending;
// ties go to the lower page.
std::vector<PageIdx> ChoosePages(Grouping grouping,
                                 const std::vector<float>& scores,
                                 int group,
                                 int count);

// The statistics and keys of pages, read from the store when they are first asked for and kept.
class PageScores {
 public:
  explicit PageScores(const CpuKvStore& store) : store_(store) {}

  // The page's bytes are about to change.
  void Forget(PageId page);

  // The scores of one head's part of `pages` for q, [head_dim] and rounded to bf16, times `scale`.
  // `logical` is 16, 32 or 64 tokens.
  void Compute(Score score,
               int logical,
               int layer,
               int slot,
               std::span<const PageId> pages,
               std::span<const float> q,
               float scale,
               float* scores);

 private:
  // Of one head's part of a page.
  struct Part {
    std::vector<float> keys;        // [64, head_dim]
    std::vector<float> moments[3];  // by logical page size: [pages, 4, head_dim], see Moments()
  };
  Part& Find(int layer, int slot, PageId page);
  // Minima, maxima, means and variances of each logical page.
  const std::vector<float>& Moments(Part& part, int logical) const;

  const CpuKvStore& store_;
  std::unordered_map<PageId, std::vector<Part>> pages_;  // by entry of the retrieval way
};

}  // namespace lserve::study
