// BpeModel: byte-pair encoding of one piece of text by a fixed list of merges. It neither splits
// text into pieces nor knows special tokens. Used by Tokenizer only.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
};
using StringToId = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

// Ids are indices into tables, so a lying file may not make them huge.
inline constexpr int32_t kMaxTokenId = (1 << 21) - 1;

class BpeModel {
 public:
  // `json` is the "model" member. `byte_level`: pieces are bytes, spelled in the byte alphabet in
  // the file; otherwise they are characters.
  static Result<BpeModel> FromJson(const Json& json, bool byte_level);

  // Memory that EncodePiece reuses from piece to piece.
  struct Symbol {
    int32_t id = 0;
    int32_t previous = -1;
    int32_t next = -1;
    bool alive = true;
  };
  struct Candidate {
    uint32_t rank = 0;
    int32_t position = 0;
    int32_t merged = 0;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  // Appends the ids of `piece`. O(n log n). REQUIRES: valid UTF-8 unless byte-level.
  void EncodePiece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;

  const StringToId& vocab() const { return vocab_; }  // as the file spells the tokens

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t merged = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  Status ReadVocab(const Json& json);
  Status ReadMerges(const Json& json);
  Status ReadUnknown(const Json& json);
  void IndexPieces();
  void InsertMerge(const Merge& merge);
  const Merge* FindMerge(int32_t left, int32_t right) const;
  void AppendSymbols(std::string_view piece, std::vector<Symbol>& symbols) const;
  // Appends the merge of the symbol at `left` and the next one, if there is one.
  bool AddCandidate(int32_t left, Scratch& scratch) const;
  void PushCandidate(int32_t left, Scratch& scratch) const;

  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
  std::optional<int32_t> unknown_id_;
  StringToId vocab_;
  StringToId pieces_;                        // byte-level: from bytes; otherwise unused
  std::array<int32_t, 256> byte_ids_{};      // byte-level: the token of each byte, -1 without
  std::array<int32_t, 256> fallback_ids_{};  // "<0x00>" to "<0xFF>", -1 without
  std::vector<Merge> merges_;                // open addressing, a power of two, half empty
};

}  // namespace lserve
