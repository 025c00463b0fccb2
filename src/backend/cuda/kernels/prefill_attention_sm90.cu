// prefill_attention for Hopper (sm_90a), bf16 pages: what prefill_attention.cu computes, with the
// instructions that reach this chip's rate (FlashAttention-3, arXiv 2407.08608, sections 3.1, 3.2).
//
// Items: (plan row, query head), the rows with most pages first. Grid: a block per SM; each takes
// the next item from a counter when it has produced the last one. Block: two consumer warpgroups
// of 64 queries each; of a third one, a thread walks the plan and three warps convert queries. A
// step is two visited pages, 128 keys, which need not be neighbours.
//
// Pipeline: the producer copies K and V of a step by TMA into one of kStages buffers; "full" and
// "empty" barriers hand them over, K and V apart, since K is done with first. The queries of the
// next item, and its first keys, arrive while this one is computed. A consumer queues
// S' = Q K'^T of the next step and O += P V of this one (wgmma), and computes the softmax of S' in
// registers while the second product runs; the other warpgroup's products fill what is left.
//
// Shared memory, D = 128: Q 2 x 32 KiB, 2 x (K 32 + V 32) KiB. FLOPs per step and block: 8.4 M,
// against 64 KiB from L2. Registers: S 64, P 32, O 64 of 216.
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
constexpr int kStages = 2;       // of keys and values
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

struct Step {
  PageIdx pages[kStepPages];  // kEnd where there is none
  bool last;                  // of its item
};

template <int D>
struct Shared {
  static constexpr int kParts = D / kRowElements;
  uint16_t q[kItemBuffers][kConsumers][kParts][kGroupQueries][kRowElements];
  uint16_t k[kStages][kParts][kStepKeys][kRowElements];
  uint16_t v[kStages][kStepPages][D][kRowElements];  // V^T
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  uint64_t item_full[kItemBuffers], q_full[kItemBuffers], q_empty[kItemBuffers];
  Step steps[kStages];
  Item items[kItemBuffers];
};

// Where the i-th user of `buffers` buffers in turn finds its own, and the parity of the phase in
// which that is full; it is empty in the other.
struct Turn {
  int buffer;
  uint32_t parity;
};
__device__ Turn TurnOf(int i, int buffers) {
  return {i % buffers, static_cast<uint32_t>(i / buffers % 2)};
}

// Element (row, column) of a matrix of swizzled rows.
__device__ uint16_t* Swizzled(uint16_t (*rows)[kRowElements], int row, int column) {
  return &rows[row][(column / 8 ^ row % 8) * 8 + column % 8];
}

// Item i in `item`; false if a layer's way has no such slot.
__device__ bool FindItem(const AttentionArgs& args, int i, int heads, Item* item) {
  const PlanRow row = args.plan.rows[args.plan.order[i / heads]];
  const int way = static_cast<int>(row.way);
  const int slot = i % heads / args.layer.group;
  if (slot >= args.layer.ways[way].num_slots) return false;
  if (row.slot != kAllSlots && row.slot != slot) return false;
  const int q_head =
      args.layer.ways[way].heads[slot] * args.layer.group + i % heads % args.layer.group;
  *item = {row, way, slot, q_head, false};
  return true;
}

// Copies K and V of an item's pages, step by step; the next step's number. `ahead` is called once,
// when as many steps as there are stages, or all, are on their way.
template <int D, class Ahead>
__device__ int ProduceSteps(const AttentionArgs& args,
                            const PrefillMaps& maps,
                            const Item& item,
                            int step,
                            Shared<D>& shared,
                            Ahead ahead) {
  const WayView& way = args.layer.ways[item.way];
  const PageId* table = args.sequences[item.row.sequence].pages[item.way];
  const int way_index = item.way, slot = item.slot;
  PageCursor cursor(PagesOf(args.plan, item.row, way.first_entry + slot));
  PageIdx first = cursor.Next();
  const int ahead_at = step + kStages;
  for (bool last = false; !last; ++step) {
    const PageIdx second = first == PageCursor::kEnd ? PageCursor::kEnd : cursor.Next();
    const PageIdx after = second == PageCursor::kEnd ? PageCursor::kEnd : cursor.Next();
    last = after == PageCursor::kEnd;
    // A last page that has no partner is copied twice, an item without pages takes page 0; what is
    // absent is masked.
    const PageIdx partner = second == PageCursor::kEnd ? first : second;
    const int ids[kStepPages] = {table[max(first, 0)], table[max(partner, 0)]};
    if (step == ahead_at) ahead();
    const auto [stage, parity] = TurnOf(step, kStages);
    Wait(&shared.k_empty[stage], parity ^ 1);
    shared.steps[stage] = {{first, second}, last};
    ArriveAndExpect(&shared.k_full[stage], sizeof(shared.k[stage]));
    for (int page = 0; page < kStepPages; ++page) {
      for (int part = 0; part < Shared<D>::kParts; ++part) {
        CopyTensor5(&shared.k[stage][part][page * kPageTokens], &maps.keys[way_index], 0, 0, part,
                    slot, ids[page], &shared.k_full[stage]);
      }
    }
    Wait(&shared.v_empty[stage], parity ^ 1);
    ArriveAndExpect(&shared.v_full[stage], sizeof(shared.v[stage]));
    for (int page = 0; page < kStepPages; ++page) {
      CopyTensor4(&shared.v[stage][page], &maps.values[way_index], 0, 0, slot, ids[page],
                  &shared.v_full[stage]);
    }
    first = after;
  }
  if (step <= ahead_at) ahead();
  return step;
}

// One thread: hands out items and their pages until there are no more. An item is known long before
// its first step, so that its queries are there by then.
template <int D>
__device__ void Produce(const AttentionArgs& args,
                        const PrefillMaps& maps,
                        int heads,
                        int* next_item,
                        Shared<D>& shared) {
  const int num_items = args.plan.num_rows * heads;
  int i = blockIdx.x, announced = 0;
  const auto announce = [&] {
    const auto [buffer, parity] = TurnOf(announced++, kItemBuffers);
    Item& item = shared.items[buffer];
    Wait(&shared.q_empty[buffer], parity ^ 1);
    const auto take = [&] { return static_cast<int>(gridDim.x) + atomicAdd(next_item, 1); };
    while (i < num_items && !FindItem(args, i, heads, &item)) i = take();
    item.end = i >= num_items;
    if (!item.end) i = take();
    Arrive(&shared.item_full[buffer]);
  };
  announce();
  for (int n = 0, step = 0;; ++n) {
    const Item& item = shared.items[n % kItemBuffers];
    if (item.end) return;
    step = ProduceSteps(args, maps, item, step, shared, announce);
  }
}

// Three warps: queries of the items, float to bf16, into swizzled rows.
template <int D>
__device__ void LoadQueries(const AttentionArgs& args, int thread, Shared<D>& shared) {
  constexpr int kPairs = D / 2;
  for (int n = 0;; ++n) {
    const auto [buffer, parity] = TurnOf(n, kItemBuffers);
    Wait(&shared.item_full[buffer], parity);
    const Item& item = shared.items[buffer];
    const bool end = item.end;
    if (!end) {
      const int num_queries = item.row.num_queries;
      const float* q = args.q.data + item.row.first_query * args.q.stride + item.q_head * D;
#pragma unroll 4
      for (int i = thread; i < kTileTokens * kPairs; i += kLoaderWarps * kWarp) {
        const int query = i / kPairs, d = i % kPairs * 2;
        const float* at = q + query * args.q.stride + d;
        auto* rows = shared.q[buffer][query / kGroupQueries][d / kRowElements];
        *reinterpret_cast<uint32_t*>(Swizzled(rows, query % kGroupQueries, d % kRowElements)) =
            query < num_queries ? PackBf16(at[0], at[1]) : 0u;
      }
      FenceAsync();
    }
    __syncwarp();
    if (thread % kWarp == 0) Arrive(&shared.q_full[buffer]);
    if (end) return;
  }
}

// Zeroes V of keys that were never written: memory past the last token may hold anything, and
// 0 * NaN is NaN. Both warpgroups write the same zeros.
template <int D>
__device__ void ClearUnwritten(
    const Step& step, int64_t last_position, int group, Turn turn, Shared<D>& shared) {
  Wait(&shared.v_full[turn.buffer], turn.parity);
  for (int page = 0; page < kStepPages; ++page) {
    const PageIdx index = step.pages[page];
    if (index == PageCursor::kEnd && page > 0) continue;  // a copy of the first: cleared with it
    const int64_t written =
        index == PageCursor::kEnd ? 0 : last_position + 1 - int64_t{index} * kPageTokens;
    if (written >= kPageTokens) continue;
    const bool twice = step.pages[1] == PageCursor::kEnd;
    const int count = kPageTokens - static_cast<int>(written);
    for (int i = threadIdx.x % kGroupThreads; i < D * count; i += kGroupThreads) {
      const int d = i / count, token = static_cast<int>(written) + i % count;
      *Swizzled(shared.v[turn.buffer][page], d, token) = 0;
      if (twice) *Swizzled(shared.v[turn.buffer][1], d, token) = 0;
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

// A warpgroup's view of one item.
struct Rows {
  Mask mask;
  int64_t first = 0;          // position of the warpgroup's first query
  int64_t last_position = 0;  // of the item's last query
  float scale_log2 = 0;
};

// -inf for what a query does not see; whether V of the step has rows past the last token.
__device__ bool MaskScores(const Rows& rows, const Step& step, float (&s)[kKeyTiles][4]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x % kGroupThreads / kWarp;
  bool tail = step.pages[1] == PageCursor::kEnd;
#pragma unroll
  for (int page = 0; page < kStepPages; ++page) {
    const PageIdx index = step.pages[page];
    const bool absent = index == PageCursor::kEnd;
    if (!absent && rows.mask.SeesAll(rows.first, rows.first + kGroupQueries - 1, index)) continue;
    const int64_t first_key = int64_t{index} * kPageTokens;
    tail |= first_key + kPageTokens - 1 > rows.last_position;
#pragma unroll
    for (int n = 0; n < kPageTokens / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t position = rows.first + warp * 16 + lane / 4 + e / 2 * 8;
        const int64_t key = first_key + n * 8 + lane % 4 * 2 + e % 2;
        float& score = s[page * (kPageTokens / 8) + n][e];
        if (absent || !rows.mask.Sees(position, key)) score = -INFINITY;
      }
    }
  }
  return tail;
}

// Scores to weights relative to the rows' new maxima; what earlier sums are to be multiplied by.
__device__ void Softmax(float scale_log2,
                        float (&s)[kKeyTiles][4],
                        float (&max)[2],
                        float (&sum)[2],
                        float (&rescale)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    const float now = fmaxf(max[half], top * scale_log2);
    // A query that has seen nothing has weight 2^-inf for all, not 2^nan.
    const float base = now == -INFINITY ? 0.0f : now;
    rescale[half] = Exp2(max[half] - base);
    max[half] = now;
    float total = sum[half] * rescale[half];
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      float& a = s[n][2 * half];
      float& b = s[n][2 * half + 1];
      a = Exp2(fmaf(a, scale_log2, -base));
      b = Exp2(fmaf(b, scale_log2, -base));
      total += a + b;
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

// Weights as the left operand of P V.
__device__ void PackWeights(const float (&s)[kKeyTiles][4], uint32_t (&p)[kKeyTiles / 2][4]) {
#pragma unroll
  for (int n = 0; n < kKeyTiles; ++n) {
    p[n / 2][n % 2 * 2] = PackBf16(s[n][0], s[n][1]);
    p[n / 2][n % 2 * 2 + 1] = PackBf16(s[n][2], s[n][3]);
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

// One item whose queries are in `buffer`, from step number `step` on; the next item's first step.
template <int D>
__device__ int Attend(const AttentionArgs& args,
                      const Item& item,
                      int buffer,
                      int group,
                      int step,
                      Shared<D>& shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x % kGroupThreads / kWarp;
  // The item's place is free for another one as soon as its queries are.
  const PlanRow row = item.row;
  const int q_head = item.q_head;
  const Rows rows = {{row.sink_end, row.window},
                     row.first_position + group * kGroupQueries,
                     row.first_position + row.num_queries - 1,
                     args.scale * kLog2E};
  float s[kKeyTiles][4];
  uint32_t p[kKeyTiles / 2][4];
  float out[D / 8][4];
#pragma unroll
  for (int i = 0; i < D / 8; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0;
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, rescale[2];
  const uint64_t q_desc = Descriptor(shared.q[buffer][group]);

  Turn now = TurnOf(step, kStages);
  Wait(&shared.k_full[now.buffer], now.parity);
  Step pages = shared.steps[now.buffer];
  Pin(s);
  WgmmaFence();
  QueueScores<D>(q_desc, Descriptor(shared.k[now.buffer]), s);
  WgmmaWait<0>();
  Pin(s);
  ReleaseByWarp(&shared.k_empty[now.buffer]);
  bool tail = MaskScores(rows, pages, s);
  Softmax(rows.scale_log2, s, max, sum, rescale);
  PackWeights(s, p);

  while (!pages.last) {
    const Turn next = TurnOf(++step, kStages);
    Wait(&shared.k_full[next.buffer], next.parity);
    const Step next_pages = shared.steps[next.buffer];
    // Not between the products: a branch there makes the compiler wait for each.
    if (tail) ClearUnwritten(pages, rows.last_position, group, now, shared);
    Pin(s);
    Pin(out);
    WgmmaFence();
    QueueScores<D>(q_desc, Descriptor(shared.k[next.buffer]), s);
    Wait(&shared.v_full[now.buffer], now.parity);
    WgmmaFence();
    QueueOutput<D>(p, Descriptor(shared.v[now.buffer]), out);
    WgmmaWait<1>();
    Pin(s);
    ReleaseByWarp(&shared.k_empty[next.buffer]);
    tail = MaskScores(rows, next_pages, s);
    Softmax(rows.scale_log2, s, max, sum, rescale);
    WgmmaWait<0>();
    Pin(out);
    Pin(p);
    ReleaseByWarp(&shared.v_empty[now.buffer]);
    // Later steps rarely raise a maximum.
    if (__any_sync(0xffffffffu, rescale[0] != 1.0f || rescale[1] != 1.0f)) Rescale(rescale, out);
    PackWeights(s, p);
    now = next;
    pages = next_pages;
  }
  ReleaseByWarp(&shared.q_empty[buffer]);

  Wait(&shared.v_full[now.buffer], now.parity);
  if (tail) ClearUnwritten(pages, rows.last_position, group, now, shared);
  Pin(out);
  WgmmaFence();
  QueueOutput<D>(p, Descriptor(shared.v[now.buffer]), out);
  WgmmaWait<0>();
  Pin(out);
  ReleaseByWarp(&shared.v_empty[now.buffer]);

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    const int r = group * kGroupQueries + warp * 16 + half * 8 + lane / 4;
    if (r >= row.num_queries) continue;
    float* to = args.out.data + (row.first_query + r) * args.out.stride + q_head * D;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      const int d = i * 8 + lane % 4 * 2;
      to[d] = out[i][2 * half] * inverse;
      to[d + 1] = out[i][2 * half + 1] * inverse;
    }
  }
  return step + 1;
}

template <int D>
__device__ void Consume(const AttentionArgs& args, int group, Shared<D>& shared) {
  int step = 0;
  for (int n = 0;; ++n) {
    const auto [buffer, parity] = TurnOf(n, kItemBuffers);
    Wait(&shared.q_full[buffer], parity);
    const Item& item = shared.items[buffer];
    if (item.end) return;
    step = Attend(args, item, buffer, group, step, shared);
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 1) PrefillAttentionSm90Kernel(
    AttentionArgs args, const __grid_constant__ PrefillMaps maps, int heads, int* next_item) {
  extern __shared__ uint4 raw_shared[];
  // Swizzled operands start at multiples of 1024 bytes.
  constexpr uintptr_t kAlignment = 1024;
  Shared<D>& shared = *reinterpret_cast<Shared<D>*>(
      (reinterpret_cast<uintptr_t>(raw_shared) + kAlignment - 1) / kAlignment * kAlignment);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      InitBarrier(&shared.k_full[stage], 1);
      InitBarrier(&shared.v_full[stage], 1);
      InitBarrier(&shared.k_empty[stage], kConsumerWarps);
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
      Produce(args, maps, heads, next_item, shared);
    }
  } else {
    TakeRegisters<kConsumerRegisters>();
    Consume(args, group, shared);
  }
}

template <int D>
cudaError_t Launch(const AttentionArgs& args,
                   const PrefillMaps& maps,
                   int* next_item,
                   cudaStream_t stream) {
  const auto kernel = PrefillAttentionSm90Kernel<D>;
  constexpr int kSharedBytes = static_cast<int>(sizeof(Shared<D>)) + 1024;
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
  const int heads =
      max(args.layer.ways[0].num_slots, args.layer.ways[1].num_slots) * args.layer.group;
  const int blocks = min(num_sms, heads * args.plan.num_rows);
  kernel<<<static_cast<unsigned>(blocks), kThreads, kSharedBytes, stream>>>(args, maps, heads,
                                                                            next_item);
  return cudaGetLastError();
}

}  // namespace

bool HasSm90Prefill(DType dtype, int head_dim) {
  return dtype == DType::kBf16 && (head_dim == 64 || head_dim == 128);
}

cudaError_t LaunchPrefillAttentionSm90(const AttentionArgs& args,
                                       const PrefillMaps& maps,
                                       int* next_item,
                                       cudaStream_t stream) {
  if (args.plan.num_rows == 0) return cudaSuccess;
  switch (args.layer.head_dim) {
    case 64:
      return Launch<64>(args, maps, next_item, stream);
    case 128:
      return Launch<128>(args, maps, next_item, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace lserve
