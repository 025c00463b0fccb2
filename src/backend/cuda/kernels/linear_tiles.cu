// Products of many rows with the bits that the kernels of few rows give each of them: what
// batch-invariant results need (ADR 0034), where cuBLAS would take another order of sums for
// another number of rows.
//
//   Bound: the rate of mma.sync, about 0.6 of what wgmma reaches on Hopper; wgmma and cuBLAS are
//   out, since what they sum in which order is not that of the kernels that decode. A block
//   multiplies 128 (codes: 64) rows of x by 128 out features, eight warps of 64 (32) out features
//   by 32 rows. W is the 16 rows of a tensor-core tile and x its 8 columns, as in linear.cu; a
//   stage is a turn (sums.cuh), whose vectors are laid out so that a lane's 16 bytes are its
//   fragments and no bank is asked twice: vector v of a row at v, or v ^ 4 in odd rows, and those
//   of x in the order in which lanes want them. Turns come slice by slice, so that a slice's sum
//   needs registers only while it grows, beside the total.
//
//   Blocks are numbered in bands of 16 tiles of rows, so that those that run at once share both
//   operands in L2.
#include <algorithm>
#include <cstddef>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/launch.cuh"
#include "backend/cuda/kernels/mma.cuh"
#include "backend/cuda/kernels/sums.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTileOuts = 16;
constexpr int kTileRows = 8;
constexpr int kRowTiles = 4;  // of a warp
constexpr int kWarpRows = kRowTiles * kTileRows;
constexpr int kBand = 16;  // tiles of rows

// Of a warp. Codes widen into registers that more out features would need.
template <Stored W>
constexpr int kOutTiles = W == Stored::kBf16 ? 4 : 2;
// The shape of a block follows from what its operands weigh: codes are the lighter one.
template <Stored W>
constexpr int kWarpsAlongOuts = W == Stored::kBf16 ? 2 : 4;
template <Stored W>
constexpr int kBlockOuts = kWarpsAlongOuts<W>* kOutTiles<W>* kTileOuts;
template <Stored W>
constexpr int kBlockRows = kWarps / kWarpsAlongOuts<W>* kWarpRows;
// Vectors of a row of x in a turn.
template <Stored W>
constexpr int kXVectors = kTurnVectors* kParts<W>;
// Of bf16 GPUs with 99 KiB of shared memory hold as many.
constexpr int kStages = 3;

static_assert(kBlockOuts<Stored::kBf16> * kTurnVectors % kThreads == 0);
static_assert(kBlockRows<Stored::kInt8> * kXVectors<Stored::kInt8> % kThreads == 0);

template <Stored W>
struct Stage {
  uint4 w[kBlockOuts<W>][kTurnVectors];
  uint4 x[kBlockRows<W>][kXVectors<W>];
};

// Where vector `at` of row `row` lies.
__device__ int Place(int row, int at) {
  return at ^ (row % 2 * 4);
}

// Turns in the order of their sums: slice by slice.
struct Turn {
  int slice = 0;
  int byte = 0;  // of a row of W

  template <int kSlices>
  __device__ void Next(int row_bytes) {
    byte += kSlices * kTurnBytes;
    if (byte < row_bytes) return;
    ++slice;
    byte = slice * kTurnBytes;
  }
};

// The block's part of both operands.
struct Corner {
  int64_t out = 0;
  int row = 0;
};

// Copies a turn. Rows past the end are copies of the last one and not stored; K ends with zeros.
template <Stored W>
__device__ void Load(const GemvArgs& args, const Corner& corner, int byte, Stage<W>* stage) {
  const int64_t row_bytes = RowBytes<W>(args.in_features);
#pragma unroll
  for (int copy = 0; copy < kBlockOuts<W> * kTurnVectors / kThreads; ++copy) {
    const int i = copy * kThreads + static_cast<int>(threadIdx.x);
    const int row = i / kTurnVectors, v = i % kTurnVectors;
    const int64_t out = min(corner.out + row, args.out_features - 1);
    const int64_t at = byte + v * kVectorBytes;
    const bool there = at < row_bytes;
    const std::byte* from =
        static_cast<const std::byte*>(args.weight) + out * row_bytes + (there ? at : 0);
    CopyAsyncIf(there, &stage->w[row][Place(row, v)], from);
  }
  const int64_t first = int64_t{byte} / kVectorBytes * kElements<W>;
#pragma unroll
  for (int copy = 0; copy < kBlockRows<W> * kXVectors<W> / kThreads; ++copy) {
    const int i = copy * kThreads + static_cast<int>(threadIdx.x);
    const int row = i / kXVectors<W>, v = i % kXVectors<W>;
    const int64_t x_row = min(corner.row + row, args.rows - 1);
    const int64_t at = first + v * kVector;
    const bool there = at < args.in_features;
    const uint16_t* from =
        static_cast<const uint16_t*>(args.x) + x_row * args.x_stride + (there ? at : 0);
    // Vector (chunk, j, part) of memory, in the order (chunk, part, j).
    const int j = v / kParts<W> % 4, piece = v / (4 * kParts<W>)*kParts<W> + v % kParts<W>;
    CopyAsyncIf(there, &stage->x[row][Place(row, piece * 4 + j)], from);
  }
}

// Adds a turn to a slice's sums.
template <Stored W, SumsOf kSums>
__device__ void Multiply(const GemvArgs& args,
                         const Corner& corner,
                         int byte,
                         const Stage<W>& stage,
                         float (&sums)[kOutTiles<W>][kRowTiles][4]) {
  constexpr int kPieces = kGroupChunks<W> * kParts<W>;  // vectors of x, of a lane and a group
  constexpr bool kHoldsX = W == Stored::kBf16;          // for all out features of the warp
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, r = lane / 4, j = lane % 4;
  const int w_row = warp % kWarpsAlongOuts<W> * kOutTiles<W> * kTileOuts + r;
  const int x_row = warp / kWarpsAlongOuts<W> * kWarpRows + r;
  // Rows that are a multiple of 8 apart keep their vectors at the same places.
  const auto load_x = [&](int tile, int piece) {
    return stage.x[x_row + tile * kTileRows][Place(r, piece * 4 + j)];
  };
#pragma unroll 1
  for (int g = 0; g < kTurnGroups<W>; ++g) {
    const int first_piece = g * kPieces;
    uint4 x[kHoldsX ? kRowTiles : 1][kHoldsX ? kPieces : 1];
    if constexpr (kHoldsX) {
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) x[n][i] = load_x(n, first_piece + i);
      }
    }
    float x_sums[kRowTiles][2] = {};
    if constexpr (W == Stored::kInt4) {
      constexpr uint32_t kOnes = 0x3f803f80u;
      const uint4 ones = {kOnes, kOnes, kOnes, kOnes};
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        float c[4] = {}, d[4] = {};
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
          MultiplyEight(ones, ones, load_x(n, first_piece + i), c, d);
        x_sums[n][0] = c[0] + d[0];  // the same in all rows of the tile
        x_sums[n][1] = c[1] + d[1];
      }
    }
#pragma unroll
    for (int m = 0; m < kOutTiles<W>; ++m) {
      GroupScale by = {};
      if constexpr (W != Stored::kBf16) {
        const int64_t out = corner.out + w_row + m * kTileOuts;
        const int64_t outs[2] = {min(out, args.out_features - 1),
                                 min(out + kTileOuts / 2, args.out_features - 1)};
        const int last_group = (static_cast<int>(args.in_features) - 1) / kQuantGroup;
        const int group = byte / kVectorBytes * kElements<W> / kQuantGroup + g;
        by = LoadScale<W>(args, outs, min(group, last_group));
      }
      uint4 low[kPieces], high[kPieces];
#pragma unroll
      for (int c = 0; c < kGroupChunks<W>; ++c) {
        const int at = Place(r, (g * kGroupChunks<W> + c) * 4 + j);
        const uint4 low_codes = stage.w[w_row + m * kTileOuts][at];
        const uint4 high_codes = stage.w[w_row + m * kTileOuts + kTileOuts / 2][at];
#pragma unroll
        for (int p = 0; p < kParts<W>; ++p) {
          low[c * kParts<W> + p] = Expand<W>(low_codes, p);
          high[c * kParts<W> + p] = Expand<W>(high_codes, p);
        }
      }
      // Column tiles in turn, so that no product waits for the one before.
      float c[kRowTiles][4] = {}, d[kRowTiles][4] = {};
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
          uint4 b;
          if constexpr (kHoldsX) {
            b = x[n][i];
          } else {
            b = load_x(n, first_piece + i);
          }
          if constexpr (kSums == SumsOf::kGemvSm90) {
            MultiplyEight(low[i], high[i], b, c[n], d[n]);
          } else {
            Mma(sums[m][n], low[i].x, high[i].x, low[i].y, high[i].y, b.x, b.y);
          }
        }
        if constexpr (kSums == SumsOf::kGemv) {
#pragma unroll
          for (int n = 0; n < kRowTiles; ++n) {
            Mma(sums[m][n], low[i].z, high[i].z, low[i].w, high[i].w, x[n][i].z, x[n][i].w);
          }
        }
      }
      if constexpr (kSums == SumsOf::kGemvSm90) {
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            sums[m][n][e] = SumGroup<W>(sums[m][n][e], c[n][e], d[n][e], by, e, x_sums[n][e % 2]);
          }
        }
      }
    }
  }
}

template <Stored W>
__device__ void Store(const GemvArgs& args,
                      const Corner& corner,
                      float scale,
                      const float (&totals)[kOutTiles<W>][kRowTiles][4]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, r = lane / 4, j = lane % 4;
  const int64_t first_out = corner.out + warp % kWarpsAlongOuts<W> * kOutTiles<W> * kTileOuts + r;
  const int first_row = corner.row + warp / kWarpsAlongOuts<W> * kWarpRows + 2 * j;
#pragma unroll
  for (int m = 0; m < kOutTiles<W>; ++m) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t out = first_out + m * kTileOuts + e / 2 * (kTileOuts / 2);
        const int row = first_row + n * kTileRows + e % 2;
        if (out >= args.out_features || row >= args.rows) continue;
        float sum = __fmul_rn(totals[m][n][e], scale);
        if (args.bias != nullptr) sum += args.bias[out];
        float* y = args.y.data + row * args.y.stride + out;
        *y = args.accumulate ? *y + sum : sum;
      }
    }
  }
}

template <Stored W, SumsOf kSums>
__device__ void MultiplyTile(GemvArgs args, const TileBatch& batch) {
  constexpr int kSlices = kSums == SumsOf::kGemv ? kGemvSlices : kSm90Slices;
  extern __shared__ uint4 raw_shared[];
  auto* stages = reinterpret_cast<Stage<W>*>(raw_shared);
  LetNextStart();
  const int row_tiles = (args.rows + kBlockRows<W> - 1) / kBlockRows<W>;
  const int64_t out_tiles = (args.out_features + kBlockOuts<W> - 1) / kBlockOuts<W>;
  const int64_t band = blockIdx.x / (kBand * out_tiles), in_band = blockIdx.x % (kBand * out_tiles);
  const int first_tile = static_cast<int>(band) * kBand;
  const int tiles = min(kBand, row_tiles - first_tile);
  const Corner corner = {.out = in_band / tiles * kBlockOuts<W>,
                         .row = (first_tile + static_cast<int>(in_band % tiles)) * kBlockRows<W>};
  args.x = static_cast<const uint16_t*>(args.x) + blockIdx.y * batch.x_stride;
  args.weight = static_cast<const std::byte*>(args.weight) + blockIdx.y * batch.weight_stride;
  args.y.data += blockIdx.y * batch.y_stride;
  const int row_bytes = static_cast<int>(RowBytes<W>(args.in_features));
  const int turns = (row_bytes + kTurnBytes - 1) / kTurnBytes;
  WaitForPrevious();

  Turn ahead;
  int loaded = 0;
  const auto load_next = [&] {
    if (loaded < turns) {
      Load<W>(args, corner, ahead.byte, &stages[loaded % kStages]);
      ahead.Next<kSlices>(row_bytes);
    }
    ++loaded;
    CommitCopies();
  };
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) load_next();
  float sums[kOutTiles<W>][kRowTiles][4] = {}, totals[kOutTiles<W>][kRowTiles][4] = {};
  Turn turn;
  for (int i = 0; i < turns; ++i) {
    WaitCopies<kStages - 2>();
    __syncthreads();  // the turn is here, and nobody reads the one before any more
    load_next();
    Multiply<W, kSums>(args, corner, turn.byte, stages[i % kStages], sums);
    const int slice = turn.slice;
    turn.Next<kSlices>(row_bytes);
    if (i + 1 < turns && turn.slice == slice) continue;
#pragma unroll
    for (int m = 0; m < kOutTiles<W>; ++m) {
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          totals[m][n][e] += sums[m][n][e];
          sums[m][n][e] = 0;
        }
      }
    }
  }
  Store<W>(args, corner, batch.scale, totals);
}

// Codes are multiplied as they are by the kernels of few rows on Hopper only.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kMultipliesCodes = false;
#else
constexpr bool kMultipliesCodes = true;
#endif

template <Stored W, SumsOf kSums>
__global__ void __launch_bounds__(kThreads, 1) TilesKernel(GemvArgs args, TileBatch batch) {
  if constexpr (W == Stored::kBf16 || kMultipliesCodes) MultiplyTile<W, kSums>(args, batch);
}

template <Stored W, SumsOf kSums>
cudaError_t Launch(const GemvArgs& args, const TileBatch& batch, cudaStream_t stream) {
  const auto kernel = TilesKernel<W, kSums>;
  constexpr size_t kBytes = sizeof(Stage<W>) * kStages;
  if (const cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes));
      error != cudaSuccess) {
    return error;
  }
  const int64_t row_tiles = (args.rows + kBlockRows<W> - 1) / kBlockRows<W>;
  const int64_t out_tiles = (args.out_features + kBlockOuts<W> - 1) / kBlockOuts<W>;
  const dim3 grid(static_cast<unsigned>(row_tiles * out_tiles), static_cast<unsigned>(batch.count));
  return LaunchChained(kernel, grid, kThreads, kBytes, stream, args, batch);
}

}  // namespace

cudaError_t LaunchTiles(const GemvArgs& args,
                        SumsOf sums,
                        const TileBatch& batch,
                        cudaStream_t stream) {
  if (args.rows < 1 || args.in_features % kVector != 0 || args.x_dtype != DType::kBf16 ||
      args.norm != nullptr || args.gate) {
    return cudaErrorInvalidValue;
  }
  if (args.dtype == DType::kBf16 && sums == SumsOf::kGemv) {
    return Launch<Stored::kBf16, SumsOf::kGemv>(args, batch, stream);
  }
  if (sums == SumsOf::kGemv) return cudaErrorInvalidValue;
  switch (args.dtype) {
    case DType::kBf16:
      return Launch<Stored::kBf16, SumsOf::kGemvSm90>(args, batch, stream);
    case DType::kInt8:
      return Launch<Stored::kInt8, SumsOf::kGemvSm90>(args, batch, stream);
    case DType::kInt4:
      return Launch<Stored::kInt4, SumsOf::kGemvSm90>(args, batch, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace lserve
