// prefill_attention for Hopper (sm_90a), bf16 pages: what prefill_attention.cu computes, with the
// instructions that reach this chip's rate.
//
// Grid: x = (slot, query head of the group), y = plan rows, the longest first. Block: two consumer
// warpgroups of 64 queries each and a producer warp. A step is two visited pages, 128 keys, which
// need not be neighbours.
//
// Pipeline: the producer walks the plan and copies K and V of a step by TMA into one of kStages
// buffers; "full" and "empty" barriers hand them over, K and V apart, since K is done with first. A
// consumer computes S = Q K^T (wgmma, both in shared memory), softmax in registers, then O += P V
// (P in registers). The two warpgroups fall out of step: one's softmax runs under the other's
// products.
//
// Shared memory, D = 128: Q 32 KiB, 2 x (K 32 + V 32) KiB. FLOPs per step and block: 8.4 M, against
// 64 KiB from L2. Registers: S 64, P 32, O 64 of 232.
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
constexpr int kStages = 2;
constexpr int kStepPages = 2;
constexpr int kStepKeys = kStepPages * kPageTokens;
constexpr int kRowElements = 64;  // of a swizzled row: 128 bytes
constexpr int kKeyTiles = kStepKeys / 8;
constexpr float kLog2E = 1.4426950408889634f;
// setmaxnreg: 128 * 40 + 256 * 232 of the 384 * 168 registers that the block starts with.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
// Arrivals on an "empty" barrier: a lane of each consumer warp.
constexpr int kConsumerWarps = kConsumers * kGroupThreads / kWarp;

template <int D>
struct Shared {
  static constexpr int kParts = D / kRowElements;
  uint16_t q[kConsumers][kParts][kGroupQueries][kRowElements];
  uint16_t k[kStages][kParts][kStepKeys][kRowElements];
  uint16_t v[kStages][kStepPages][D][kRowElements];  // V^T
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  PageIdx pages[kStages][kStepPages];  // of the step; the first is PageCursor::kEnd after the last
};

// Element (row, column) of a matrix of swizzled rows.
__device__ uint16_t* Swizzled(uint16_t (*rows)[kRowElements], int row, int column) {
  return &rows[row][(column / 8 ^ row % 8) * 8 + column % 8];
}

struct BlockWork {
  PlanRow row;
  int way = 0;
  int slot = 0;
  int q_head = 0;
};

template <int D>
__device__ void Produce(const AttentionArgs& args,
                        const PrefillMaps& maps,
                        const BlockWork& work,
                        Shared<D>& shared) {
  const WayView& way = args.layer.ways[work.way];
  const PageId* table = args.sequences[work.row.sequence].pages[work.way];
  PageCursor cursor(PagesOf(args.plan, work.row, way.first_entry + work.slot));
  PageIdx first = cursor.Next();
  for (int step = 0;; ++step) {
    const int stage = step % kStages;
    const uint32_t parity = step / kStages % 2 ^ 1;
    Wait(&shared.k_empty[stage], parity);
    shared.pages[stage][0] = first;
    if (first == PageCursor::kEnd) {
      Arrive(&shared.k_full[stage]);
      return;
    }
    const PageIdx second = cursor.Next();
    shared.pages[stage][1] = second;
    // A last page that has no partner is copied twice; the second is masked.
    const int ids[kStepPages] = {table[first], table[second == PageCursor::kEnd ? first : second]};
    ArriveAndExpect(&shared.k_full[stage], sizeof(shared.k[stage]));
    for (int page = 0; page < kStepPages; ++page) {
      for (int part = 0; part < Shared<D>::kParts; ++part) {
        CopyTensor5(&shared.k[stage][part][page * kPageTokens], &maps.keys[work.way], 0, 0, part,
                    work.slot, ids[page], &shared.k_full[stage]);
      }
    }
    Wait(&shared.v_empty[stage], parity);
    ArriveAndExpect(&shared.v_full[stage], sizeof(shared.v[stage]));
    for (int page = 0; page < kStepPages; ++page) {
      CopyTensor4(&shared.v[stage][page], &maps.values[work.way], 0, 0, work.slot, ids[page],
                  &shared.v_full[stage]);
    }
    first = second == PageCursor::kEnd ? PageCursor::kEnd : cursor.Next();
  }
}

// Q of one warpgroup: float to bf16, into swizzled rows.
template <int D>
__device__ void LoadQueries(const AttentionArgs& args,
                            const BlockWork& work,
                            int group,
                            Shared<D>& shared) {
  const float* q = args.q.data + work.row.first_query * args.q.stride + work.q_head * D;
  for (int i = threadIdx.x % kGroupThreads; i < kGroupQueries * D / 2; i += kGroupThreads) {
    const int r = i / (D / 2), d = i % (D / 2) * 2;
    const int query = group * kGroupQueries + r;
    const float* at = q + query * args.q.stride + d;
    uint16_t* to = Swizzled(shared.q[group][d / kRowElements], r, d % kRowElements);
    *reinterpret_cast<uint32_t*>(to) = query < work.row.num_queries ? PackBf16(at[0], at[1]) : 0u;
  }
  FenceAsync();
  SyncThreads(1 + group, kGroupThreads);
}

// Zeroes V of keys that were never written: memory past the last token may hold anything, and
// 0 * NaN is NaN. Both warpgroups write the same zeros.
template <int D>
__device__ void ClearUnwritten(const PageIdx (&pages)[kStepPages],
                               int64_t last_position,
                               int group,
                               int stage,
                               Shared<D>& shared) {
  for (int page = 0; page < kStepPages; ++page) {
    const PageIdx index = pages[page];
    if (index == PageCursor::kEnd) continue;  // a copy of the first: cleared below
    const int64_t written = last_position + 1 - int64_t{index} * kPageTokens;
    if (written >= kPageTokens) continue;
    const bool twice = pages[1] == PageCursor::kEnd;
    const int count = kPageTokens - static_cast<int>(written);
    for (int i = threadIdx.x % kGroupThreads; i < D * count; i += kGroupThreads) {
      const int d = i / count, token = static_cast<int>(written) + i % count;
      *Swizzled(shared.v[stage][page], d, token) = 0;
      if (twice) *Swizzled(shared.v[stage][1], d, token) = 0;
    }
  }
  FenceAsync();
  SyncThreads(1 + group, kGroupThreads);
}

template <int D>
__device__ void Consume(const AttentionArgs& args,
                        const BlockWork& work,
                        int group,
                        Shared<D>& shared) {
  LoadQueries(args, work, group, shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x % kGroupThreads / kWarp;
  const PlanRow& row = work.row;
  const Mask mask = {row.sink_end, row.window};
  const float scale_log2 = args.scale * kLog2E;
  const int64_t last_position = row.first_position + row.num_queries - 1;
  const int64_t group_first = row.first_position + group * kGroupQueries;

  float out[D / 8][4];
#pragma unroll
  for (int i = 0; i < D / 8; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0;
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  for (int step = 0;; ++step) {
    const int stage = step % kStages;
    const uint32_t parity = step / kStages % 2;
    Wait(&shared.k_full[stage], parity);
    const PageIdx pages[kStepPages] = {shared.pages[stage][0], shared.pages[stage][1]};
    if (pages[0] == PageCursor::kEnd) break;

    float s[kKeyTiles][4];
    Pin(s);
    WgmmaFence();
#pragma unroll
    for (int d = 0; d < D; d += 16) {
      const int part = d / kRowElements, column = d % kRowElements;
      WgmmaShared(s, Descriptor(&shared.q[group][part][0][column]),
                  Descriptor(&shared.k[stage][part][0][column]), d > 0);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    Pin(s);
    if (lane == 0) Arrive(&shared.k_empty[stage]);

    bool tail = pages[1] == PageCursor::kEnd;
#pragma unroll
    for (int page = 0; page < kStepPages; ++page) {
      const bool absent = pages[page] == PageCursor::kEnd;
      if (!absent && mask.SeesAll(group_first, group_first + kGroupQueries - 1, pages[page])) {
        continue;
      }
      const int64_t first_key = int64_t{pages[page]} * kPageTokens;
      tail |= first_key + kPageTokens - 1 > last_position;
#pragma unroll
      for (int n = 0; n < kPageTokens / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t position = group_first + warp * 16 + lane / 4 + e / 2 * 8;
          const int64_t key = first_key + n * 8 + lane % 4 * 2 + e % 2;
          float& score = s[page * (kPageTokens / 8) + n][e];
          if (absent || !mask.Sees(position, key)) score = -INFINITY;
        }
      }
    }

    uint32_t p[kKeyTiles / 2][4];
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
      const float rescale = Exp2(max[half] - base);
      max[half] = now;
      float total = sum[half] * rescale;
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
        const float a = Exp2(fmaf(s[n][2 * half], scale_log2, -base));
        const float b = Exp2(fmaf(s[n][2 * half + 1], scale_log2, -base));
        total += a + b;
        p[n / 2][n % 2 * 2 + half] = PackBf16(a, b);
      }
      sum[half] = total;
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
        out[i][2 * half] *= rescale;
        out[i][2 * half + 1] *= rescale;
      }
    }

    Wait(&shared.v_full[stage], parity);
    if (tail) ClearUnwritten(pages, last_position, group, stage, shared);
    Pin(out);
    WgmmaFence();
#pragma unroll
    for (int n = 0; n < kKeyTiles / 2; ++n) {
      const int page = n / 4, column = n % 4 * 16;
      WgmmaRegisters(out, p[n], Descriptor(&shared.v[stage][page][0][column]));
    }
    WgmmaCommit();
    WgmmaWait<0>();
    Pin(out);
    if (lane == 0) Arrive(&shared.v_empty[stage]);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    const int r = group * kGroupQueries + warp * 16 + half * 8 + lane / 4;
    if (r >= row.num_queries) continue;
    float* to = args.out.data + (row.first_query + r) * args.out.stride + work.q_head * D;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      const int d = i * 8 + lane % 4 * 2;
      to[d] = out[i][2 * half] * inverse;
      to[d + 1] = out[i][2 * half + 1] * inverse;
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 1)
    PrefillAttentionSm90Kernel(AttentionArgs args, const __grid_constant__ PrefillMaps maps) {
  extern __shared__ uint4 raw_shared[];
  // Swizzled operands start at multiples of 1024 bytes.
  constexpr uintptr_t kAlignment = 1024;
  Shared<D>& shared = *reinterpret_cast<Shared<D>*>(
      (reinterpret_cast<uintptr_t>(raw_shared) + kAlignment - 1) / kAlignment * kAlignment);
  BlockWork work;
  work.row = args.plan.rows[args.plan.order[blockIdx.y]];
  work.way = static_cast<int>(work.row.way);
  const WayView& way = args.layer.ways[work.way];
  work.slot = blockIdx.x / args.layer.group;
  if (work.slot >= way.num_slots || (work.row.slot != kAllSlots && work.row.slot != work.slot)) {
    return;
  }
  work.q_head = way.heads[work.slot] * args.layer.group + blockIdx.x % args.layer.group;

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      InitBarrier(&shared.k_full[stage], 1);
      InitBarrier(&shared.v_full[stage], 1);
      InitBarrier(&shared.k_empty[stage], kConsumerWarps);
      InitBarrier(&shared.v_empty[stage], kConsumerWarps);
    }
    FenceAsync();
  }
  __syncthreads();
  const int group = threadIdx.x / kGroupThreads;
  if (group == kConsumers) {
    GiveRegisters<kProducerRegisters>();
    if (threadIdx.x % kGroupThreads == 0) Produce(args, maps, work, shared);
  } else {
    TakeRegisters<kConsumerRegisters>();
    Consume(args, work, group, shared);
  }
}

template <int D>
cudaError_t Launch(const AttentionArgs& args, const PrefillMaps& maps, cudaStream_t stream) {
  const auto kernel = PrefillAttentionSm90Kernel<D>;
  constexpr int kSharedBytes = static_cast<int>(sizeof(Shared<D>)) + 1024;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const int slots = max(args.layer.ways[0].num_slots, args.layer.ways[1].num_slots);
  const dim3 grid(static_cast<unsigned>(slots * args.layer.group),
                  static_cast<unsigned>(args.plan.num_rows));
  kernel<<<grid, kThreads, kSharedBytes, stream>>>(args, maps);
  return cudaGetLastError();
}

}  // namespace

bool HasSm90Prefill(DType dtype, int head_dim) {
  return dtype == DType::kBf16 && (head_dim == 64 || head_dim == 128);
}

cudaError_t LaunchPrefillAttentionSm90(const AttentionArgs& args,
                                       const PrefillMaps& maps,
                                       cudaStream_t stream) {
  if (args.plan.num_rows == 0) return cudaSuccess;
  switch (args.layer.head_dim) {
    case 64:
      return Launch<64>(args, maps, stream);
    case 128:
      return Launch<128>(args, maps, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace lserve
