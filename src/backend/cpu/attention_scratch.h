// How much memory each of the attention ops takes at most, beside its parameters. Used by
// CpuBackend::AttentionScratchBytes; the op's own file knows.
#pragma once

#include <cstdint>

#include "backend/cpu/attention_kernels.h"
#include "backend/ops.h"

namespace lserve {

struct ScratchQuery {
  const KvLayout& layout;
  const AttentionLimits& limits;
  const AttentionKernels& kernels;
  int num_threads = 0;
};

int64_t WalkScratchBytes(const ScratchQuery& query);           // attention.cc
int64_t PageSelectionScratchBytes(const ScratchQuery& query);  // select_pages.cc
int64_t TileSelectionScratchBytes(const ScratchQuery& query);  // select_tiles.cc

}  // namespace lserve
