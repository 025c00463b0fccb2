// prefill_attention for Hopper (sm_90a), bf16 pages: what prefill_attention.cu computes, with the
// instructions that reach this chip's rate (FlashAttention-3, arXiv 2407.08608, sections 3.1, 3.2).
//
// Items: (plan row, query head), in the order of PrefillOrder. Grid: a block per SM; each takes the
// next item from a counter when it has produced the last one. Block: two consumer warpgroups of 64
// queries each; of a third one, a thread walks the plan and three warps convert queries. A step is
// the visited pages of a tile of 128 keys: two or, at the ends of runs, one. Tiles are absolute, so
// that a query's sums do not depend on pages which its row visits for the queries beside it.
//
// Pipeline: the producer copies K and V of a step by TMA into one of three buffers for K and one of
// two for V; "full" and "empty" barriers hand them over. The queries of the
// next item, and its first keys, arrive while this one is computed. A consumer queues
// S' = Q K'^T of the next step and O += P V of this one (wgmma), then computes the softmax of S' in
// registers while the other warpgroup's products run.
//
// Shared memory, D = 128: Q 2 x 32 KiB, K 3 x 32 KiB, V 2 x 32 KiB. FLOPs per step and block: 8.4
// M, against 64 KiB from L2. Registers: S 64, P 32, O 64 of 216.
#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/kv_part.cuh"
#include "backend/cuda/kernels/mma.cuh"
#include "backend/cuda/kernels/plan.cuh"
#include "backend/cuda/kernels/wgmma.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kGroupThreads = 128;  // of a warpgroup
constexpr int kConsumers = 2;
constexpr int kThreads = (kConsumers + 1) * kGroupThreads;
constexpr int kGroupQueries = kTileTokens / kConsumers;
constexpr int kKeyStages = 3;
constexpr int kValueStages = 2;
constexpr int kItemBuffers = 2;  // of queries
constexpr int kLoaderWarps = 3;  // convert queries
constexpr int kStepPages = 2;
constexpr int kStepKeys = kStepPages * kPageTokens;
constexpr int kRowElements = 64;  // of a swizzled row: 128 bytes
constexpr int kKeyTiles = kStepKeys / 8;
constexpr float kLog2E = 1.4426950408889634f;
// setmaxnreg: 128 * 72 + 256 * 216 are the 384 * 168 registers that the block starts with. With 40
// and 232 the producer spills.
constexpr int kProducerRegisters = 72;
constexpr int kConsumerRegisters = 216;
// Arrivals on an "empty" barrier: a lane of each consumer warp.
constexpr int kConsumerWarps = kConsumers * kGroupThreads / kWarp;

struct Item {
  PlanRow row;
  int way = 0;
  int slot = 0;
  int q_head = 0;
  bool end = false;  // there is no such item: stop
};

// What the producer says of a step, so that consumers find it in one word: to look at the pages
// themselves took a tenth of a step, between its products.
enum StepFlag : uint32_t {
  kLastStep = 1,     // of its item
  kUnwritten = 2,    // V has rows past the last token
  kMaskedFirst = 4,  // some query of warpgroup g does not see all of it: kMaskedFirst << g
};
struct Step {
  PageIdx pages[kStepPages];  // kEnd where there is none
  uint32_t flags;
};

template <int D>
struct Shared {
  static constexpr int kParts = D / kRowElements;
  uint16_t q[kItemBuffers][kConsumers][kParts][kGroupQueries][kRowElements];
  uint16_t k[kKeyStages][kParts][kStepKeys][kRowElements];
  uint16_t v[kValueStages][kStepPages][D][kRowElements];  // V^T
  uint64_t k_full[kKeyStages], k_empty[kKeyStages], v_full[kValueStages], v_empty[kValueStages];
  uint64_t item_full[kItemBuffers], q_full[kItemBuffers], q_empty[kItemBuffers];
  Step steps[kKeyStages];
  Item items[kItemBuffers];
};

// Whose turn it is among kBuffers buffers, and the parity of the phase in which that one is full;
// it is empty in the other.
template <int kBuffers>
struct Turn {
  int buffer = 0;
  uint32_t parity = 0;

  __device__ void Advance() {
    if (++buffer == kBuffers) {
      buffer = 0;
      parity ^= 1;
    }
  }
};

// A record in shared memory, for all lanes, read by the one that hands the record's place back
// (ReleaseByWarp): then the write after it is ordered behind every read.
template <class T>
__device__ T ReadByWarp(const T& record) {
  static_assert(sizeof(T) % sizeof(uint32_t) == 0);
  uint32_t words[sizeof(T) / sizeof(uint32_t)] = {};
  if (threadIdx.x % kWarp == 0) memcpy(words, &record, sizeof(T));
  for (uint32_t& word : words) word = __shfl_sync(0xffffffffu, word, 0);
  T value;
  memcpy(&value, words, sizeof(T));
  return value;
}

// Element (row, column) of a matrix of swizzled rows.
__device__ uint16_t* Swizzled(uint16_t (*rows)[kRowElements], int row, int column) {
  return &rows[row][(column / 8 ^ row % 8) * 8 + column % 8];
}

// Item i in `item`; false if there is none of this number, or its row is of another slot only.
__device__ bool FindItem(const AttentionArgs& args, const PrefillOrder& order, int i, Item* item) {
  const auto [exists, way, row_index, slot, head] = order.At(i);
  if (!exists) return false;
  const PlanRow row = args.plan.rows[args.plan.order[row_index]];
  const int layer_slot = args.layer.ways[way].first_slot + slot;
  if (row.slot != kAllSlots && row.slot != layer_slot) return false;
  *item = {row, way, slot, args.layer.ways[way].heads[slot] * args.layer.group + head, false};
  return true;
}

struct StepTurns {
  Turn<kKeyStages> key;
  Turn<kValueStages> value;

  __device__ void Advance() {
    key.Advance();
    value.Advance();
  }
};

// A warpgroup's view of one item. Positions are below kMaxSm90PrefillTokens.
struct Rows {
  int first = 0;          // position of the warpgroup's first query
  int last_position = 0;  // of the item's last query
  int sink_end = 0, window = 0;
  float scale_log2 = 0;
  // Pages of which every query sees every key: those before full_end, but for [sink_pages,
  // window_page).
  PageIdx full_end = 0, sink_pages = 0, window_page = 0;

  __device__ Rows(const AttentionArgs& args, const PlanRow& row, int group)
      : first(static_cast<int>(row.first_position) + group * kGroupQueries),
        last_position(static_cast<int>(row.first_position) + row.num_queries - 1),
        sink_end(static_cast<int>(min(row.sink_end, int64_t{kMaxSm90PrefillTokens}))),
        window(static_cast<int>(min(row.window, int64_t{kMaxSm90PrefillTokens}))),
        scale_log2(args.scale * kLog2E),
        full_end((first + 1) / kPageTokens),
        sink_pages(sink_end / kPageTokens) {
    const int last = first + kGroupQueries - 1;
    window_page = last < window ? 0 : (last - window) / kPageTokens + 1;
  }
  __device__ bool SeeAll(PageIdx page) const {
    return page < full_end && (page < sink_pages || page >= window_page);
  }
};

// Of the step with these pages, but for kLastStep.
__device__ uint32_t FlagsOf(const Rows (&rows)[kConsumers], const PageIdx (&pages)[kStepPages]) {
  uint32_t flags = 0;
  for (const PageIdx page : pages) {
    // A second page that is a copy of the first is cleared with it.
    const PageIdx written = page == PageCursor::kEnd ? pages[0] : page;
    if (written == PageCursor::kEnd || (written + 1) * kPageTokens - 1 > rows[0].last_position) {
      flags |= kUnwritten;
    }
    for (int group = 0; group < kConsumers; ++group) {
      if (page == PageCursor::kEnd || !rows[group].SeeAll(page)) flags |= kMaskedFirst << group;
    }
  }
  return flags;
}

// Copies K and V of an item's pages, step by step. `ahead` is called once, when as many steps as
// keys have stages, or all, are on their way.
template <int D, class Ahead>
__device__ void ProduceSteps(const AttentionArgs& args,
                             const PrefillMaps& maps,
                             const Item& item,
                             StepTurns& turns,
                             Shared<D>& shared,
                             Ahead ahead) {
  const WayView& way = args.layer.ways[item.way];
  const PageId* table = args.sequences[item.row.sequence].pages[item.way];
  const int way_index = item.way, slot = item.slot;
  static_assert(kConsumers == 2);
  const Rows rows[kConsumers] = {Rows(args, item.row, 0), Rows(args, item.row, 1)};
  PageCursor cursor(PagesOf(args.plan, item.row, way.first_entry + slot));
  PageIdx first = cursor.Next();
  int step = 0;
  for (bool last = false; !last; ++step, turns.Advance()) {
    PageIdx second = PageCursor::kEnd, after = cursor.Next();
    if (first % kStepPages == 0 && after == first + 1) {
      second = after;
      after = cursor.Next();
    }
    last = after == PageCursor::kEnd;
    // A page that has no partner is copied twice, an item without pages takes page 0; what is
    // absent is masked.
    const PageIdx partner = second == PageCursor::kEnd ? first : second;
    const int ids[kStepPages] = {table[max(first, 0)], table[max(partner, 0)]};
    if (step == kKeyStages) ahead();
    const auto [k, k_parity] = turns.key;
    Wait(&shared.k_empty[k], k_parity ^ 1);
    Step& record = shared.steps[k];
    record = {{first, second}, last ? kLastStep : 0u};
    record.flags |= FlagsOf(rows, record.pages);
    ArriveAndExpect(&shared.k_full[k], sizeof(shared.k[k]));
    for (int page = 0; page < kStepPages; ++page) {
      for (int part = 0; part < Shared<D>::kParts; ++part) {
        CopyTensor5(&shared.k[k][part][page * kPageTokens], &maps.keys[way_index], 0, 0, part, slot,
                    ids[page], &shared.k_full[k]);
      }
    }
    const auto [v, v_parity] = turns.value;
    Wait(&shared.v_empty[v], v_parity ^ 1);
    ArriveAndExpect(&shared.v_full[v], sizeof(shared.v[v]));
    for (int page = 0; page < kStepPages; ++page) {
      CopyTensor4(&shared.v[v][page], &maps.values[way_index], 0, 0, slot, ids[page],
                  &shared.v_full[v]);
    }
    first = after;
  }
  if (step <= kKeyStages) ahead();
}

// One thread: hands out items and their pages until there are no more. An item is known long before
// its first step, so that its queries are there by then.
template <int D>
__device__ void Produce(const AttentionArgs& args,
                        const PrefillMaps& maps,
                        const PrefillOrder& order,
                        int* next_item,
                        Shared<D>& shared) {
  const int num_items = order.NumItems();
  int i = static_cast<int>(blockIdx.x);
  Turn<kItemBuffers> next;
  const auto announce = [&] {
    Item& item = shared.items[next.buffer];
    Wait(&shared.q_empty[next.buffer], next.parity ^ 1);
    const auto take = [&] { return static_cast<int>(gridDim.x) + atomicAdd(next_item, 1); };
    while (i < num_items && !FindItem(args, order, i, &item)) i = take();
    item.end = i >= num_items;
    if (!item.end) i = take();
    Arrive(&shared.item_full[next.buffer]);
    next.Advance();
  };
  announce();
  StepTurns turns;
  for (Turn<kItemBuffers> now;; now.Advance()) {
    const Item& item = shared.items[now.buffer];
    if (item.end) return;
    ProduceSteps(args, maps, item, turns, shared, announce);
  }
}

// Four floats that begin at any float, or, if `aligned`, at a multiple of 16 bytes.
__device__ float4 LoadFour(const float* from, bool aligned) {
  if (aligned) return *reinterpret_cast<const float4*>(from);
  return {from[0], from[1], from[2], from[3]};
}
__device__ void StoreFour(float* to, float4 x, bool aligned) {
  if (aligned) {
    *reinterpret_cast<float4*>(to) = x;
  } else {
    to[0] = x.x;
    to[1] = x.y;
    to[2] = x.z;
    to[3] = x.w;
  }
}
// Whether every fourth element of every row begins at a multiple of 16 bytes.
__device__ bool HasAlignedRows(const float* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % sizeof(float4) == 0 && stride % 4 == 0;
}

// Three warps: queries of the items, float to bf16, into swizzled rows.
template <int D>
__device__ void LoadQueries(const AttentionArgs& args, int thread, Shared<D>& shared) {
  constexpr int kQuads = D / 4;
  const bool aligned = HasAlignedRows(args.q.data, args.q.stride);
  for (Turn<kItemBuffers> turn;; turn.Advance()) {
    Wait(&shared.item_full[turn.buffer], turn.parity);
    const Item item = ReadByWarp(shared.items[turn.buffer]);
    if (!item.end) {
      const int num_queries = item.row.num_queries;
      const float* q = args.q.data + item.row.first_query * args.q.stride + item.q_head * D;
      // What a thread loads at once has to cover the latency of memory: with a fourth of the bytes
      // in flight, short items waited 8 us for their queries.
#pragma unroll 4
      for (int i = thread; i < kTileTokens * kQuads; i += kLoaderWarps * kWarp) {
        const int query = i / kQuads, d = i % kQuads * 4;
        float4 x = {0, 0, 0, 0};
        if (query < num_queries) x = LoadFour(q + query * args.q.stride + d, aligned);
        auto* rows = shared.q[turn.buffer][query / kGroupQueries][d / kRowElements];
        *reinterpret_cast<uint2*>(Swizzled(rows, query % kGroupQueries, d % kRowElements)) = {
            PackBf16(x.x, x.y), PackBf16(x.z, x.w)};
      }
      FenceAsync();
    }
    __syncwarp();
    if (thread % kWarp == 0) Arrive(&shared.q_full[turn.buffer]);
    if (item.end) return;
  }
}

// Zeroes V of keys that were never written, in a buffer that is full: memory past the last token
// may hold anything, and 0 * NaN is NaN. Both warpgroups write the same zeros.
template <int D>
__device__ void ClearUnwritten(
    const Step& step, int last_position, int group, int buffer, Shared<D>& shared) {
  for (int page = 0; page < kStepPages; ++page) {
    const PageIdx index = step.pages[page];
    if (index == PageCursor::kEnd && page > 0) continue;  // a copy of the first: cleared with it
    const int written = index == PageCursor::kEnd ? 0 : last_position + 1 - index * kPageTokens;
    if (written >= kPageTokens) continue;
    const bool twice = step.pages[1] == PageCursor::kEnd;
    const int count = kPageTokens - written;
    for (int i = threadIdx.x % kGroupThreads; i < D * count; i += kGroupThreads) {
      const int d = i / count, token = written + i % count;
      *Swizzled(shared.v[buffer][page], d, token) = 0;
      if (twice) *Swizzled(shared.v[buffer][1], d, token) = 0;
    }
  }
  FenceAsync();
  SyncThreads(1 + group, kGroupThreads);
}

// The warp is done with a buffer: all lanes have read what they need of it.
__device__ void ReleaseByWarp(uint64_t* empty) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) Arrive(empty);
}

// -inf for what a query does not see.
__device__ void MaskScores(const Rows& rows, const Step& step, float (&s)[kKeyTiles][4]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x % kGroupThreads / kWarp;
#pragma unroll
  for (int page = 0; page < kStepPages; ++page) {
    const PageIdx index = step.pages[page];
    const bool absent = index == PageCursor::kEnd;
    if (!absent && rows.SeeAll(index)) continue;
    const int first_key = index * kPageTokens;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // A query sees [0, last] but for [sink, window): counted from the thread's first key.
      const int key = first_key + lane % 4 * 2;
      const int position = rows.first + warp * 16 + lane / 4 + half * 8;
      const int last = absent ? -1 : position - key;
      const int sink = rows.sink_end - key;
      const int window = position - rows.window + 1 - key;
#pragma unroll
      for (int n = 0; n < kPageTokens / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int i = n * 8 + e;
          float& score = s[page * (kPageTokens / 8) + n][2 * half + e];
          if (i > last || (i >= sink && i < window)) score = -INFINITY;
        }
      }
    }
  }
}

// Raises a row's maximum to `top`, the largest of its new scores in the thread. `base` is what its
// weights are relative to, `rescale` what earlier sums are to be multiplied by.
__device__ void RaiseMaximum(float scale_log2, float top, float& max, float& base, float& rescale) {
  top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
  top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
  const float now = fmaxf(max, top * scale_log2);
  // A query that has seen nothing has weight 2^-inf for all, not 2^nan.
  base = now == -INFINITY ? 0.0f : now;
  rescale = Exp2(max - base);
  max = now;
}

// Scores to weights relative to the rows' new maxima, as the left operand of P V. The exponentials
// of the first row take long enough to find the second one's maximum meanwhile, and those of both
// to pack the weights.
__device__ void Softmax(float scale_log2,
                        const float (&s)[kKeyTiles][4],
                        float (&max)[2],
                        float (&sum)[2],
                        float (&rescale)[2],
                        uint32_t (&p)[kKeyTiles / 2][4]) {
  float top = -INFINITY;
#pragma unroll
  for (int n = 0; n < kKeyTiles; ++n) top = fmaxf(top, fmaxf(s[n][0], s[n][1]));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float base;
    RaiseMaximum(scale_log2, top, max[half], base, rescale[half]);
    top = -INFINITY;
    float total = sum[half] * rescale[half];
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      const float a = Exp2(fmaf(s[n][2 * half], scale_log2, -base));
      const float b = Exp2(fmaf(s[n][2 * half + 1], scale_log2, -base));
      total += a + b;
      p[n / 2][n % 2 * 2 + half] = PackBf16(a, b);
      if (half == 0) top = fmaxf(top, fmaxf(s[n][2], s[n][3]));
    }
    sum[half] = total;
  }
}

template <int N>
__device__ void Rescale(const float (&rescale)[2], float (&out)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) out[i][e] *= rescale[e / 2];
  }
}

// Queues S = Q K^T. The descriptors are those of the first rows of Q and K.
template <int D>
__device__ void QueueScores(uint64_t q, uint64_t k, float (&s)[kKeyTiles][4]) {
  constexpr int kQueryPart = kGroupQueries * kRowElements, kKeyPart = kStepKeys * kRowElements;
#pragma unroll
  for (int d = 0; d < D; d += 16) {
    const int part = d / kRowElements, column = d % kRowElements;
    WgmmaShared(s, Advance(q, part * kQueryPart + column), Advance(k, part * kKeyPart + column),
                d > 0);
  }
  WgmmaCommit();
}

// Queues O += P V.
template <int D>
__device__ void QueueOutput(const uint32_t (&p)[kKeyTiles / 2][4],
                            uint64_t v,
                            float (&out)[D / 8][4]) {
#pragma unroll
  for (int n = 0; n < kKeyTiles / 2; ++n) {
    const int page = n / 4, column = n % 4 * 16;
    WgmmaRegisters(out, p[n], Advance(v, page * D * kRowElements + column));
  }
  WgmmaCommit();
}

// Rows of the warpgroup, divided by their sums of weights.
template <int D>
__device__ void StoreOutput(const AttentionArgs& args,
                            const PlanRow& row,
                            int q_head,
                            int group,
                            const float (&sum)[2],
                            const float (&out)[D / 8][4]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x % kGroupThreads / kWarp;
  const bool odd = lane % 2 == 1, aligned = HasAlignedRows(args.out.data, args.out.stride);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    const int r = group * kGroupQueries + warp * 16 + half * 8 + lane / 4;
    float* to = args.out.data + (row.first_query + r) * args.out.stride + q_head * D;
    // Of every two tiles of 8 columns, lanes of even number take the first and those of odd number
    // the second: four columns a store, where a lane's own are two and two.
#pragma unroll
    for (int i = 0; i < D / 8; i += 2) {
      const float2 a = {out[i][2 * half] * inverse, out[i][2 * half + 1] * inverse};
      const float2 b = {out[i + 1][2 * half] * inverse, out[i + 1][2 * half + 1] * inverse};
      const float2 other = {__shfl_xor_sync(0xffffffffu, odd ? a.x : b.x, 1),
                            __shfl_xor_sync(0xffffffffu, odd ? a.y : b.y, 1)};
      const int d = (odd ? i + 1 : i) * 8 + lane % 4 / 2 * 4;
      const float4 x =
          odd ? float4{other.x, other.y, b.x, b.y} : float4{a.x, a.y, other.x, other.y};
      if (r < row.num_queries) StoreFour(to + d, x, aligned);
    }
  }
}

// One item whose queries are in `buffer`; `turns` are those of its first step, then of the next
// item's.
template <int D>
__device__ void Attend(const AttentionArgs& args,
                       const Item& item,
                       int buffer,
                       int group,
                       StepTurns& turns,
                       Shared<D>& shared) {
  const Rows rows(args, item.row, group);
  const uint32_t masked = kMaskedFirst << group;
  float s[kKeyTiles][4];
  uint32_t p[kKeyTiles / 2][4];
  float out[D / 8][4];
#pragma unroll
  for (int i = 0; i < D / 8; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0;
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, rescale[2];
  const uint64_t q_desc = Descriptor(shared.q[buffer][group]);

  Turn<kKeyStages>& key = turns.key;
  Turn<kValueStages>& value = turns.value;
  Wait(&shared.k_full[key.buffer], key.parity);
  Pin(s);
  WgmmaFence();
  QueueScores<D>(q_desc, Descriptor(shared.k[key.buffer]), s);
  Step step = ReadByWarp(shared.steps[key.buffer]);
  WgmmaWait<0>();
  Pin(s);
  ReleaseByWarp(&shared.k_empty[key.buffer]);
  key.Advance();
  if (step.flags & masked) MaskScores(rows, step, s);
  Softmax(rows.scale_log2, s, max, sum, rescale, p);

  while (!(step.flags & kLastStep)) {
    Wait(&shared.k_full[key.buffer], key.parity);
    Wait(&shared.v_full[value.buffer], value.parity);
    // Not between the products: a branch there makes the compiler wait for each.
    if (step.flags & kUnwritten) [[unlikely]] {
      ClearUnwritten(step, rows.last_position, group, value.buffer, shared);
    }
    Pin(s);
    Pin(out);
    WgmmaFence();
    QueueScores<D>(q_desc, Descriptor(shared.k[key.buffer]), s);
    QueueOutput<D>(p, Descriptor(shared.v[value.buffer]), out);
    step = ReadByWarp(shared.steps[key.buffer]);
    WgmmaWait<1>();
    Pin(s);
    ReleaseByWarp(&shared.k_empty[key.buffer]);
    key.Advance();
    if (step.flags & masked) [[unlikely]]
      MaskScores(rows, step, s);
    // Before the softmax, where the compiler would move it to: then weights can take the place of
    // those that this product reads as they come. It is the other warpgroup's products that run
    // meanwhile.
    WgmmaWait<0>();
    Pin(out);
    Pin(p);
    ReleaseByWarp(&shared.v_empty[value.buffer]);
    value.Advance();
    Softmax(rows.scale_log2, s, max, sum, rescale, p);
    // Later steps rarely raise a maximum.
    if (__any_sync(0xffffffffu, rescale[0] != 1.0f || rescale[1] != 1.0f)) Rescale(rescale, out);
  }
  ReleaseByWarp(&shared.q_empty[buffer]);

  Wait(&shared.v_full[value.buffer], value.parity);
  if (step.flags & kUnwritten) {
    ClearUnwritten(step, rows.last_position, group, value.buffer, shared);
  }
  Pin(out);
  WgmmaFence();
  QueueOutput<D>(p, Descriptor(shared.v[value.buffer]), out);
  WgmmaWait<0>();
  Pin(out);
  ReleaseByWarp(&shared.v_empty[value.buffer]);
  value.Advance();
  StoreOutput<D>(args, item.row, item.q_head, group, sum, out);
}

template <int D>
__device__ void Consume(const AttentionArgs& args, int group, Shared<D>& shared) {
  StepTurns turns;
  for (Turn<kItemBuffers> turn;; turn.Advance()) {
    Wait(&shared.q_full[turn.buffer], turn.parity);
    const Item item = ReadByWarp(shared.items[turn.buffer]);
    if (item.end) return;
    Attend(args, item, turn.buffer, group, turns, shared);
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 1)
    PrefillAttentionSm90Kernel(AttentionArgs args,
                               const __grid_constant__ PrefillMaps maps,
                               PrefillOrder order,
                               int* next_item) {
  // Swizzled operands start at multiples of 1024 bytes.
  extern __shared__ __align__(1024) uint4 raw_shared[];
  Shared<D>& shared = *reinterpret_cast<Shared<D>*>(raw_shared);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kKeyStages; ++stage) {
      InitBarrier(&shared.k_full[stage], 1);
      InitBarrier(&shared.k_empty[stage], kConsumerWarps);
    }
    for (int stage = 0; stage < kValueStages; ++stage) {
      InitBarrier(&shared.v_full[stage], 1);
      InitBarrier(&shared.v_empty[stage], kConsumerWarps);
    }
    for (int buffer = 0; buffer < kItemBuffers; ++buffer) {
      InitBarrier(&shared.item_full[buffer], 1);
      InitBarrier(&shared.q_full[buffer], kLoaderWarps);
      InitBarrier(&shared.q_empty[buffer], kConsumerWarps);
    }
    FenceAsync();
  }
  __syncthreads();
  // The same for a warp, as the compiler is to know.
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / kGroupThreads, 0);
  if (group == kConsumers) {
    GiveRegisters<kProducerRegisters>();
    const int thread = threadIdx.x % kGroupThreads;
    if (thread >= kWarp) {
      LoadQueries(args, thread - kWarp, shared);
    } else if (thread == 0) {
      Produce(args, maps, order, next_item, shared);
    }
  } else {
    TakeRegisters<kConsumerRegisters>();
    Consume(args, group, shared);
  }
}

template <int D>
cudaError_t Launch(const AttentionArgs& args,
                   const PrefillMaps& maps,
                   const PrefillOrder& order,
                   int* next_item,
                   cudaStream_t stream) {
  const auto kernel = PrefillAttentionSm90Kernel<D>;
  constexpr int kSharedBytes = static_cast<int>(sizeof(Shared<D>));
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  int device = 0, num_sms = 0;
  error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaMemsetAsync(next_item, 0, sizeof(int), stream);
  if (error != cudaSuccess) return error;
  const int num_items = order.NumItems();
  if (num_items == 0) return cudaSuccess;
  const int blocks = min(num_sms, num_items);
  kernel<<<static_cast<unsigned>(blocks), kThreads, kSharedBytes, stream>>>(args, maps, order,
                                                                            next_item);
  return cudaGetLastError();
}

}  // namespace

bool HasSm90Prefill(int head_dim) {
  return head_dim == 64 || head_dim == 128;
}

cudaError_t LaunchPrefillAttentionSm90(const AttentionArgs& args,
                                       const PrefillMaps& maps,
                                       const PrefillOrder& order,
                                       int* next_item,
                                       cudaStream_t stream) {
  if (args.plan.num_rows == 0) return cudaSuccess;
  switch (args.layer.head_dim) {
    case 64:
      return Launch<64>(args, maps, order, next_item, stream);
    case 128:
      return Launch<128>(args, maps, order, next_item, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace lserve
