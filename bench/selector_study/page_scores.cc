#include "bench/selector_study/page_scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/page_choice.h"
#include "base/check.h"

// One build for every processor with a fast path where it has the instructions.
#define LS_STUDY_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))

namespace lserve::study {
namespace {

enum Moment : int { kMin, kMax, kMean, kVariance, kNumMoments };

LS_STUDY_CLONES float Dot(const float* a, const float* b, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

LS_STUDY_CLONES float BoxOf(const float* q, const float* low, const float* high, float x, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) {
    sum += q[i] * (low[i] + high[i]) / 2 + x * std::abs(q[i]) * (high[i] - low[i]) / 2;
  }
  return sum;
}

LS_STUDY_CLONES float AbsDeviation(const float* q, const float* variance, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += std::abs(q[i]) * std::sqrt(variance[i]);
  return sum;
}

LS_STUDY_CLONES float VarianceOf(const float* q, const float* variance, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += q[i] * q[i] * variance[i];
  return sum;
}

float LogSum(std::span<const float> x) {
  const float max = *std::max_element(x.begin(), x.end());
  float sum = 0;
  for (const float value : x) sum += std::exp(value - max);
  return max + std::log(sum);
}

int SizeIndex(int logical) {
  LS_CHECK(logical == 16 || logical == 32 || logical == 64) << logical;
  return logical == 16 ? 0 : logical == 32 ? 1 : 2;
}

float ScoreOfMoments(Score score, const float* m, std::span<const float> q, float scale) {
  const int n = static_cast<int>(q.size());
  const float* mean = m + int64_t{kMean} * n;
  const float* variance = m + int64_t{kVariance} * n;
  switch (score) {
    case Score::kBound:
    case Score::kBox75:
    case Score::kBox50:
    case Score::kBox25:
    case Score::kMiddle: {
      const float x = 1.0f - 0.25f * static_cast<float>(score);
      return scale * BoxOf(q.data(), m + int64_t{kMin} * n, m + int64_t{kMax} * n, x, n);
    }
    case Score::kMean:
      return scale * Dot(q.data(), mean, n);
    case Score::kMeanAbs:
      return scale * (Dot(q.data(), mean, n) + AbsDeviation(q.data(), variance, n));
    case Score::kMeanRoot:
      return scale * (Dot(q.data(), mean, n) + std::sqrt(VarianceOf(q.data(), variance, n)));
    case Score::kGaussian:
      return scale * Dot(q.data(), mean, n) + scale * scale * VarianceOf(q.data(), variance, n) / 2;
    case Score::kTrueMax:
    case Score::kTrueMass:
      break;
  }
  LS_CHECK(false) << "an oracle has no moments";
  return 0;
}

// The best page that is not taken, for each head in turn.
std::vector<PageIdx> TakeTurns(const std::vector<float>& scores, int group, int count) {
  const size_t n = scores.size() / static_cast<size_t>(group);
  std::vector<std::vector<PageIdx>> orders;
  for (int h = 0; h < group; ++h) {
    const float* row = scores.data() + static_cast<size_t>(h) * n;
    std::vector<PageIdx>& order = orders.emplace_back();
    for (size_t i = 0; i < n; ++i) order.push_back(static_cast<PageIdx>(i));
    std::stable_sort(order.begin(), order.end(),
                     [&](PageIdx a, PageIdx b) { return row[a] > row[b]; });
  }
  std::vector<size_t> at(static_cast<size_t>(group), 0);
  std::vector<bool> taken(n, false);
  std::vector<PageIdx> chosen;
  for (int h = 0; static_cast<int>(chosen.size()) < count; h = (h + 1) % group) {
    const std::vector<PageIdx>& order = orders[static_cast<size_t>(h)];
    size_t& next = at[static_cast<size_t>(h)];
    while (taken[static_cast<size_t>(order[next])]) ++next;
    taken[static_cast<size_t>(order[next])] = true;
    chosen.push_back(order[next]);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace

std::string_view Name(Score score) {
  constexpr std::string_view kNames[] = {"bound",    "box_75",   "box_50",   "box_25",
                                         "middle",   "mean",     "mean_abs", "mean_root",
                                         "gaussian", "true_max", "true_mass"};
  return kNames[static_cast<size_t>(score)];
}

std::string_view Name(Grouping grouping) {
  constexpr std::string_view kNames[] = {"softmax_mean", "softmax_max", "raw_mean", "raw_max",
                                         "turns"};
  return kNames[static_cast<size_t>(grouping)];
}

std::vector<PageIdx> ChoosePages(Grouping grouping,
                                 const std::vector<float>& scores,
                                 int group,
                                 int count) {
  const size_t n = scores.size() / static_cast<size_t>(group);
  if (grouping == Grouping::kTurns) return TakeTurns(scores, group, count);
  if (grouping == Grouping::kSoftmaxMean) {
    return BestPages(MeanSoftmax(scores, group, 1.0f), count);
  }
  std::vector<double> merged(
      n, grouping == Grouping::kRawMean ? 0.0 : std::numeric_limits<double>::lowest());
  for (int h = 0; h < group; ++h) {
    std::span<const float> row = std::span(scores).subspan(static_cast<size_t>(h) * n, n);
    std::vector<double> softmax;
    if (grouping == Grouping::kSoftmaxMax) softmax = MeanSoftmax(row, 1, 1.0f);
    for (size_t i = 0; i < n; ++i) {
      const double value = softmax.empty() ? static_cast<double>(row[i]) : softmax[i];
      merged[i] = grouping == Grouping::kRawMean ? merged[i] + value : std::max(merged[i], value);
    }
  }
  return BestPages(merged, count);
}

void PageScores::Forget(PageId page) {
  pages_.erase(page);
}

PageScores::Part& PageScores::Find(int layer, int slot, PageId page) {
  const WayLayout& way = store_.layout().way(Way::kRetrieval);
  std::vector<Part>& parts = pages_[page];
  if (parts.empty()) parts.resize(static_cast<size_t>(way.num_entries));
  const int entry = way.first_entry[static_cast<size_t>(layer)] + slot;
  Part& part = parts[static_cast<size_t>(entry)];
  if (part.keys.empty()) {
    const std::byte* kv = store_.kv_part(Way::kRetrieval, page, layer, slot);
    for (int token = 0; token < kPageTokens; ++token) {
      for (int d = 0; d < store_.part().width; ++d) {
        part.keys.push_back(ToFloat(store_.part().Key(kv, token, d)));
      }
    }
  }
  return part;
}

const std::vector<float>& PageScores::Moments(Part& part, int logical) const {
  std::vector<float>& moments = part.moments[SizeIndex(logical)];
  if (!moments.empty()) return moments;
  const size_t n = static_cast<size_t>(store_.part().width);
  moments.resize(static_cast<size_t>(kPageTokens / logical) * kNumMoments * n);
  for (int first = 0; first < kPageTokens; first += logical) {
    float* m = moments.data() + static_cast<size_t>(first / logical) * kNumMoments * n;
    for (size_t d = 0; d < n; ++d) {
      double sum = 0, squares = 0;
      float low = std::numeric_limits<float>::infinity(), high = -low;
      for (int token = first; token < first + logical; ++token) {
        const float key = part.keys[static_cast<size_t>(token) * n + d];
        low = std::min(low, key);
        high = std::max(high, key);
        sum += key;
        squares += double{key} * key;
      }
      const double mean = sum / logical;
      m[kMin * n + d] = low;
      m[kMax * n + d] = high;
      m[kMean * n + d] = static_cast<float>(mean);
      m[kVariance * n + d] = static_cast<float>(std::max(0.0, squares / logical - mean * mean));
    }
  }
  return moments;
}

void PageScores::Compute(Score score,
                         int logical,
                         int layer,
                         int slot,
                         std::span<const PageId> pages,
                         std::span<const float> q,
                         float scale,
                         float* scores) {
  const int n = static_cast<int>(q.size());
  for (size_t i = 0; i < pages.size(); ++i) {
    Part& part = Find(layer, slot, pages[i]);
    std::vector<float> values;
    if (score == Score::kTrueMax || score == Score::kTrueMass) {
      for (int token = 0; token < kPageTokens; ++token) {
        values.push_back(scale * Dot(q.data(), part.keys.data() + int64_t{token} * n, n));
      }
    } else {
      const std::vector<float>& moments = Moments(part, logical);
      for (int l = 0; l < kPageTokens / logical; ++l) {
        values.push_back(
            ScoreOfMoments(score, moments.data() + int64_t{l} * kNumMoments * n, q, scale));
      }
    }
    scores[i] = score == Score::kGaussian || score == Score::kTrueMass
                    ? LogSum(values)
                    : *std::max_element(values.begin(), values.end());
  }
}

}  // namespace lserve::study
