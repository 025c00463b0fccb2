// StreamingHeadsFile: which KV heads may stream, as measured by a calibration: our JSON or
// DuoAttention's full_attention_heads.tsv. Not the policy (attention/ decides what a streaming head
// reads). Used by engine/ and the command line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace lserve {

// [layers * kv_heads], layer-major: 1 = retrieval head, 0 = streaming head.
using HeadKinds = std::vector<uint8_t>;

struct StreamingHeadsFile {
  int64_t layers = 0;
  int64_t kv_heads = 0;
  std::vector<float> score;       // [layers * kv_heads]; higher: needs its whole context more
  std::optional<HeadKinds> kind;  // the file's own cut; a TSV has none
};

// The format follows from the first byte that is no white space: '{' is JSON.
Result<StreamingHeadsFile> LoadStreamingHeads(const std::string& path);
Result<StreamingHeadsFile> ParseStreamingHeads(std::string_view text, const std::string& path);

// An error if the file is for another shape of model.
Status CheckShape(const StreamingHeadsFile& file,
                  int64_t layers,
                  int64_t kv_heads,
                  const std::string& path);

// The floor(ratio * heads + 0.5) heads with the lowest score stream; of equal scores the one that
// comes first (by layer, then by head) streams first. Error: ratio is NaN or outside [0, 1].
Result<HeadKinds> CutByRatio(const StreamingHeadsFile& file, double ratio);

}  // namespace lserve
