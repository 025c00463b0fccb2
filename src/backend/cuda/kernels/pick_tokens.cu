// PickTokens on the device: finds the token that a draw takes of a row of logits, as
// backend/token_draw.h says, without sorting the row. The sums are integers, so blocks may add in
// any order and the token is the host's.
//
// The order of tokens is (level, id). A search follows a target (the k-th token, or the token that
// holds a point of the mass) down the 31 bits of a level: one histogram of counts and masses over
// its upper 11 bits, then one over the next 10 within the bin that holds the target, then one over
// the last 10. The first histogram is the same for all searches: top-k, then top-p, then the draw,
// which need two passes each. A last pass finds the token among those of equal level by id.
//
// What changes the logits first (backend/logit_edits.h) does so in the pass that looks for the
// largest one, in place: a block has the shifts of its tokens in shared memory.
//
// Bound: launches, of which there are 3 and 2 per search (docs/kernels/cuda_decode.md); a pass
// reads 4 bytes per token from the L2 cache. A row is shared by blocks of kBlockTokens.
#include <algorithm>
#include <cstdint>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/launch.cuh"
#include "backend/cuda/kernels/top_pages.cuh"

namespace lserve {
namespace {

using Word = unsigned long long;  // what 64-bit atomics take

constexpr int kThreads = 256;
constexpr int kPerThread = 8;
// Few enough for the halves of a block's sums to stay below 2^32.
constexpr int kBlockTokens = kThreads * kPerThread;
constexpr int kHalfBits = kDrawOctaves / 2;
static_assert((uint64_t{kBlockTokens} << (kDrawOctaves - kHalfBits)) < (uint64_t{1} << 32));

// A level's digits from the top: [0, kTopBins), then twice kDigitBits.
constexpr int kDigitBits = 10;
constexpr int kTopShift = 2 * kDigitBits;
constexpr int kTopBins = kNoLevel >> kTopShift;
constexpr int kDigitBins = 1 << kDigitBits;
constexpr int kTopPerThread = kTopBins / kThreads;
constexpr int kDigitPerThread = kDigitBins / kThreads;
static_assert(kTopBins % kThreads == 0 && kDigitBins % kThreads == 0);

struct Bin {
  Word mass;
  Word count;
};

enum Search : int { kTopK, kTopP, kDraw, kTie };

// Of one row; zero before the first kernel.
struct RowState {
  Word largest;  // OrderedKey of the largest logit, then ~id; ~0: a logit is NaN
  Word passing;  // mass of the tokens up to max_level
  Word target;   // of the search: the rank of a token, or a point of the mass; kTie: rank by id
  Word mass;     // of the levels before `level`
  Word count;
  uint32_t level;  // as far as it is known, the other digits 0
  int search;
  int digit;      // whose histogram is next
  uint32_t done;  // blocks that are through with the kernel
};

struct Rows {
  RowState* states;  // [rows]
  Bin* top;          // [rows, kTopBins]
  Bin* digits;       // [rows, kDigitBins], zero between kernels
  int* ties;         // [rows, blocks]
  const TokenDraw* draws;
  const LogitEdits* edits;  // nullptr: none
  int32_t* out;
};

// Ascends with the logit; 0 and -0 are equal.
__device__ uint32_t OrderedKey(float logit) {
  const uint32_t bits = __float_as_uint(logit == 0 ? 0.0f : logit);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ float OfOrderedKey(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// Whether the largest logit's token is what the row gives, or -1.
__device__ bool NeedsNoSearch(const RowState& state, const TokenDraw& draw) {
  return draw.takes_largest || state.largest == ~Word{0} ||
         OfOrderedKey(static_cast<uint32_t>(state.largest >> 32)) == -INFINITY;
}

// True in all threads of the last block of the row that gets here, which then sees what the others
// have written.
__device__ bool IsLastOfRow(RowState* state) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();  // every thread's writes are out
  if (threadIdx.x == 0) {
    last = atomicAdd(&state->done, 1u) + 1 == gridDim.x;
    if (last) state->done = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

__device__ Bin Plus(const Bin& a, const Bin& b) {
  return {a.mass + b.mass, a.count + b.count};
}

// The sums of the threads before this one, and of all.
__device__ Bin SumBefore(Bin own, Bin* all) {
  __shared__ Bin warps[kThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Bin sum = own;
  for (int offset = 1; offset < 32; offset *= 2) {
    const Bin before = {__shfl_up_sync(0xffffffffu, sum.mass, offset),
                        __shfl_up_sync(0xffffffffu, sum.count, offset)};
    if (lane >= offset) sum = Plus(sum, before);
  }
  __syncthreads();  // the last call's reads are done
  if (lane == 31) warps[warp] = sum;
  __syncthreads();
  Bin before = {0, 0};
  *all = {0, 0};
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) before = Plus(before, warps[w]);
    *all = Plus(*all, warps[w]);
  }
  return {before.mass + sum.mass - own.mass, before.count + sum.count - own.count};
}

// Goes down one digit: the bin that holds what is left of the target, and what lies before it. All
// threads; the result is in `state` (shared memory) after the next barrier. Returns all bins' sum.
template <int kBinsPerThread>
__device__ Bin Descend(const Bin* bins, int shift, RowState* state) {
  Bin own[kBinsPerThread], sum = {0, 0};
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    const Bin* bin = bins + threadIdx.x * kBinsPerThread + i;
    own[i] = {__ldcg(&bin->mass), __ldcg(&bin->count)};
    sum = Plus(sum, own[i]);
  }
  Bin all;
  Bin before = SumBefore(sum, &all);
  const bool by_count = state->search == kTopK;
  const Word left = state->target - (by_count ? state->count : state->mass);
  __syncthreads();  // everyone has read `state`
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    const Bin after = Plus(before, own[i]);
    if (left >= (by_count ? before.count : before.mass) &&
        left < (by_count ? after.count : after.mass)) {
      state->level |= static_cast<uint32_t>(threadIdx.x * kBinsPerThread + i) << shift;
      state->mass += before.mass;
      state->count += before.count;
    }
    before = after;
  }
  return all;
}

// After a histogram: what the row does next. One block; `state` is its copy in shared memory.
__device__ void Advance(const TokenDraw& draw, Bin* top, Bin* digits, RowState* state) {
  const int digit = state->digit;
  bool begins = false;
  if (digit == 0) {
    Bin own = {0, 0}, all;
    for (int i = 0; i < kTopPerThread; ++i) {
      const Bin* bin = top + threadIdx.x * kTopPerThread + i;
      own = Plus(own, {__ldcg(&bin->mass), __ldcg(&bin->count)});
    }
    SumBefore(own, &all);
    if (threadIdx.x == 0) {
      if (draw.top_k > 0 && static_cast<Word>(draw.top_k) < all.count) {
        state->search = kTopK;
        state->target = static_cast<Word>(draw.top_k) - 1;
      } else {
        state->search = kTopP;
        state->target = all.mass;  // kept; becomes a point below
      }
    }
    begins = true;
  } else {
    Descend<kDigitPerThread>(digits, kTopShift - digit * kDigitBits, state);
    for (int i = threadIdx.x; i < kDigitBins; i += kThreads) digits[i] = {0, 0};
  }
  __syncthreads();  // `state` is whole
  if (threadIdx.x == 0) {
    bool has_mass = digit == 0 && state->search == kTopP;  // target: the mass that is kept
    if (digit == 2) {
      const Word weight = LevelWeight(state->level);
      if (state->search == kTopK) {
        state->target = state->mass + (state->target + 1 - state->count) * weight;
        state->search = kTopP;
        has_mass = true;
      } else {
        const Word rank = (state->target - state->mass) / weight;  // among equals
        if (state->search == kTopP) state->target = state->mass + (rank + 1) * weight;
        if (state->search == kDraw) state->target = rank;
        ++state->search;  // kTie: done
      }
    }
    if (has_mass) {
      if (draw.top_p == TokenDraw::kWhole) {
        state->search = kDraw;
      } else {
        state->target = WantedMass(state->target, draw.top_p) - 1;
      }
    }
    if (state->search == kDraw && (has_mass || digit == 2)) {
      state->target = MulHigh(min(state->target, state->passing), draw.random);
    }
    state->digit = digit == 2 ? 1 : digit + 1;
    if (digit == 2 && state->search != kTie) {
      state->level = 0;
      state->mass = state->count = 0;
    }
  }
  __syncthreads();  // the next search is known
  begins = begins || (digit == 2 && state->search != kTie);
  if (begins) Descend<kTopPerThread>(top, kTopShift, state);
  __syncthreads();  // `state` is whole
}

// Of the block's tokens, each by the thread that reads it next in LargestKernel.
__device__ void EditBlock(const LogitEdits& edits, int cols, float* row) {
  __shared__ float biases[kBlockTokens], penalties[kBlockTokens];
  for (int i = threadIdx.x; i < kBlockTokens; i += kThreads) biases[i] = penalties[i] = 0;
  __syncthreads();  // the zeros are there
  const int first = static_cast<int>(blockIdx.x) * kBlockTokens;
  for (size_t i = threadIdx.x; i < edits.shifts.size(); i += kThreads) {
    const LogitShift shift = edits.shifts.data()[i];
    const int at = shift.token - first;
    if (at < 0 || at >= kBlockTokens) continue;
    biases[at] = shift.bias;
    penalties[at] = shift.penalty;
  }
  __syncthreads();  // the shifts are there
  const int64_t num_repeated = static_cast<int64_t>(edits.repeated.size()) * kTokensPerWord;
  for (int at = threadIdx.x; at < kBlockTokens && first + at < cols; at += kThreads) {
    const int c = first + at;
    const bool allowed = edits.allowed.empty() || HasToken(edits.allowed.data(), c);
    const bool repeated = c < num_repeated && HasToken(edits.repeated.data(), c);
    row[c] =
        EditedLogit(row[c], allowed, biases[at], repeated ? edits.repetition : 1.0f, penalties[at]);
  }
}

__global__ void LargestKernel(MatrixView x, int cols, Rows rows) {
  LetNextStart();
  WaitForPrevious();
  float* row = x.data + blockIdx.y * x.stride;
  if (rows.edits != nullptr && rows.edits[blockIdx.y].any()) {
    EditBlock(rows.edits[blockIdx.y], cols, row);
  }
  Word best = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = static_cast<int>(blockIdx.x) * kBlockTokens + i * kThreads + threadIdx.x;
    if (c >= cols) continue;
    const Word key = Word{OrderedKey(row[c])} << 32 | ~static_cast<uint32_t>(c);
    best = max(best, isnan(row[c]) ? ~Word{0} : key);
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    best = max(best, __shfl_xor_sync(0xffffffffu, best, offset));
  }
  if (threadIdx.x % 32 == 0) atomicMax(&rows.states[blockIdx.y].largest, best);
}

__global__ void HistogramKernel(ConstMatrixView x, int cols, Rows rows) {
  LetNextStart();
  WaitForPrevious();
  RowState* state = rows.states + blockIdx.y;
  const TokenDraw draw = rows.draws[blockIdx.y];
  if (state->search == kTie || NeedsNoSearch(*state, draw)) return;
  __shared__ uint32_t low[kTopBins], high[kTopBins], counts[kTopBins];
  const int digit = state->digit;
  const int num_bins = digit == 0 ? kTopBins : kDigitBins;
  const int shift = kTopShift - digit * kDigitBits;
  const uint32_t prefix = digit == 0 ? 0 : state->level >> (shift + kDigitBits);
  const float largest = OfOrderedKey(static_cast<uint32_t>(state->largest >> 32));
  for (int i = threadIdx.x; i < num_bins; i += kThreads) low[i] = high[i] = counts[i] = 0;
  __syncthreads();  // the bins are empty

  const float* row = x.data + blockIdx.y * x.stride;
  Word passing = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = static_cast<int>(blockIdx.x) * kBlockTokens + i * kThreads + threadIdx.x;
    if (c >= cols) continue;
    const uint32_t level = DrawLevel(row[c], largest, draw.scale);
    if (level >= kNoLevel || (digit != 0 && level >> (shift + kDigitBits) != prefix)) continue;
    const int bin = digit == 0 ? level >> kTopShift : (level >> shift) % kDigitBins;
    const Word weight = LevelWeight(level);
    if (level <= draw.max_level) passing += weight;
    atomicAdd(&low[bin], static_cast<uint32_t>(weight) & ((1u << kHalfBits) - 1));
    atomicAdd(&high[bin], static_cast<uint32_t>(weight >> kHalfBits));
    atomicAdd(&counts[bin], 1u);
  }
  __syncthreads();  // the bins hold the block's tokens
  Bin* top = rows.top + blockIdx.y * kTopBins;
  Bin* digits = rows.digits + blockIdx.y * kDigitBins;
  Bin* bins = digit == 0 ? top : digits;
  for (int i = threadIdx.x; i < num_bins; i += kThreads) {
    if (counts[i] == 0) continue;
    atomicAdd(&bins[i].mass, (Word{high[i]} << kHalfBits) + low[i]);
    atomicAdd(&bins[i].count, Word{counts[i]});
  }
  if (digit == 0) {
    for (int offset = 16; offset > 0; offset /= 2) {
      passing += __shfl_xor_sync(0xffffffffu, passing, offset);
    }
    if (threadIdx.x % 32 == 0 && passing != 0) atomicAdd(&state->passing, passing);
  }
  if (!IsLastOfRow(state)) return;
  __shared__ RowState next;
  if (threadIdx.x == 0) {
    next = *state;
    next.passing = __ldcg(&state->passing);
  }
  __syncthreads();  // `next` is there
  Advance(draw, top, digits, &next);
  if (threadIdx.x == 0) *state = next;
}

// The token of rank `target` by id among those of the level that was found.
__global__ void TieKernel(ConstMatrixView x, int cols, Rows rows) {
  LetNextStart();
  WaitForPrevious();
  __shared__ int shared[33];
  RowState* state = rows.states + blockIdx.y;
  const TokenDraw draw = rows.draws[blockIdx.y];
  int32_t* out = rows.out + blockIdx.y;
  if (NeedsNoSearch(*state, draw)) {
    const bool has_nan = state->largest == ~Word{0};
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      *out = has_nan ? -1 : static_cast<int32_t>(~static_cast<uint32_t>(state->largest));
    }
    return;
  }
  const float largest = OfOrderedKey(static_cast<uint32_t>(state->largest >> 32));
  const uint32_t level = state->level;
  const float* row = x.data + blockIdx.y * x.stride;
  const auto is_tie = [&](int c) {
    return c < cols && DrawLevel(row[c], largest, draw.scale) == level;
  };
  int own = 0, total = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    own += is_tie(static_cast<int>(blockIdx.x) * kBlockTokens + i * kThreads + threadIdx.x);
  }
  ExclusiveSum(own, shared, &total);
  int* ties = rows.ties + blockIdx.y * gridDim.x;
  if (threadIdx.x == 0) ties[blockIdx.x] = total;
  if (!IsLastOfRow(state)) return;

  // The block that holds it, then the thread, each with a stretch of ids.
  __shared__ int found_block, found_rank;
  int before = 0;
  const int target = static_cast<int>(state->target);
  for (int first = 0; first < static_cast<int>(gridDim.x); first += kThreads) {
    const int b = first + threadIdx.x;
    const int count = b < static_cast<int>(gridDim.x) ? __ldcg(ties + b) : 0;
    const int start = before + ExclusiveSum(count, shared, &total);
    if (target >= start && target < start + count) {
      found_block = b;
      found_rank = target - start;
    }
    before += total;
  }
  __syncthreads();  // the block is known
  const int first = found_block * kBlockTokens + static_cast<int>(threadIdx.x) * kPerThread;
  own = 0;
  for (int i = 0; i < kPerThread; ++i) own += is_tie(first + i);
  int rank = found_rank - ExclusiveSum(own, shared, &total);
  if (rank < 0 || rank >= own) return;
  for (int i = 0; i < kPerThread; ++i) {
    if (is_tie(first + i) && rank-- == 0) *out = first + i;
  }
}

int NumBlocks(int64_t cols) {
  return static_cast<int>((cols + kBlockTokens - 1) / kBlockTokens);
}

// The parts of the scratch, each aligned for its elements; the first three are to be zero.
struct Layout {
  explicit Layout(int64_t rows, int64_t cols) {
    const size_t n = static_cast<size_t>(rows);
    top = n * sizeof(RowState);
    digits = top + n * kTopBins * sizeof(Bin);
    ties = digits + n * kDigitBins * sizeof(Bin);
    bytes = ties + n * static_cast<size_t>(NumBlocks(cols)) * sizeof(int);
  }
  size_t top, digits, ties, bytes;
};
static_assert(sizeof(RowState) % alignof(Bin) == 0);

}  // namespace

size_t PickTokensScratchBytes(int64_t rows, int64_t cols) {
  return Layout(rows, cols).bytes;
}

cudaError_t LaunchPickTokens(MatrixView x,
                             int64_t cols,
                             std::span<const TokenDraw> host_draws,
                             const TokenDraw* draws,
                             const LogitEdits* edits,
                             std::byte* scratch,
                             int32_t* out,
                             cudaStream_t stream) {
  const int64_t num_rows = static_cast<int64_t>(host_draws.size());
  if (num_rows == 0) return cudaSuccess;
  const Layout layout(num_rows, cols);
  cudaError_t error = cudaMemsetAsync(scratch, 0, layout.ties, stream);
  const Rows rows = {.states = reinterpret_cast<RowState*>(scratch),
                     .top = reinterpret_cast<Bin*>(scratch + layout.top),
                     .digits = reinterpret_cast<Bin*>(scratch + layout.digits),
                     .ties = reinterpret_cast<int*>(scratch + layout.ties),
                     .draws = draws,
                     .edits = edits,
                     .out = out};
  // Of the row with the most: a draw, and what cuts before it.
  int searches = 0;
  for (const TokenDraw& draw : host_draws) {
    if (draw.takes_largest) continue;
    const int cuts = (draw.top_k > 0 ? 1 : 0) + (draw.top_p != TokenDraw::kWhole ? 1 : 0);
    searches = std::max(searches, 1 + cuts);
  }
  const dim3 grid(static_cast<unsigned>(NumBlocks(cols)), static_cast<unsigned>(num_rows));
  const auto launch = [&](auto kernel, auto view) {
    if (error != cudaSuccess) return;
    error = LaunchChained(kernel, grid, kThreads, 0, stream, view, static_cast<int>(cols), rows);
  };
  launch(LargestKernel, x);
  const ConstMatrixView edited = {.data = x.data, .stride = x.stride};
  const int histograms = searches == 0 ? 0 : 1 + 2 * searches;
  for (int i = 0; i < histograms; ++i) launch(HistogramKernel, edited);
  launch(TieKernel, edited);
  return error;
}

}  // namespace lserve
