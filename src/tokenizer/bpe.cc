#include "tokenizer/bpe.h"

#include <algorithm>
#include <bit>

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/unicode.h"

namespace lserve {
namespace {

uint64_t PairOf(int32_t left, int32_t right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

uint64_t HashPair(uint64_t pair) {
  pair *= 0x9e3779b97f4a7c15u;
  return pair ^ (pair >> 32);
}

std::string FallbackToken(size_t byte) {
  constexpr char kHex[] = "0123456789ABCDEF";
  return StrCat("<0x", kHex[byte >> 4], kHex[byte & 15], ">");
}

// A member that must be absent, null or empty.
Status RefuseText(const Json& json, std::string_view name) {
  const Json* value = json.Find(name);
  if (value == nullptr || value->is_null()) return {};
  if (value->is_string() && value->as_string().empty()) return {};
  return Unsupported(StrCat("model.", name), value->is_string() ? value->as_string() : "?", "null");
}

// Both spellings of a merge, "a b" and ["a", "b"].
Result<std::pair<std::string_view, std::string_view>> ParseMerge(const Json& json, size_t index) {
  using Parts = std::pair<std::string_view, std::string_view>;
  if (json.is_array() && json.as_array().size() == 2 && json.as_array()[0].is_string() &&
      json.as_array()[1].is_string()) {
    return Parts(json.as_array()[0].as_string(), json.as_array()[1].as_string());
  }
  if (json.is_string()) {
    const std::string_view text = json.as_string();
    const size_t space = text.find(' ');
    if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos) {
      return Parts(text.substr(0, space), text.substr(space + 1));
    }
  }
  return BadField(StrCat("model.merges[", index, "]"), json.TypeName(),
                  "two tokens, as \"a b\" or [\"a\", \"b\"]");
}

}  // namespace

Result<BpeModel> BpeModel::FromJson(const Json& json, bool byte_level) {
  // Old files leave the type out; their vocabulary is an object and they have merges.
  if (json.Find("type") != nullptr || json.Find("merges") == nullptr) {
    const std::string type = LS_TRY(StringField(json, "model", "type"));
    if (type != "BPE") return Unsupported("model.type", type, "BPE");
  }
  LS_TRY(RefuseText(json, "continuing_subword_prefix"));
  LS_TRY(RefuseText(json, "end_of_word_suffix"));
  const Json* dropout = json.Find("dropout");
  if (dropout != nullptr && !dropout->is_null() &&
      !(dropout->is_number() && dropout->as_double() == 0.0)) {
    return Unsupported("model.dropout", WriteJson(*dropout), "null");
  }
  BpeModel model;
  model.byte_level_ = byte_level;
  model.byte_fallback_ = LS_TRY(BoolField(json, "model", "byte_fallback", false));
  model.fuse_unknown_ = LS_TRY(BoolField(json, "model", "fuse_unk", false));
  model.ignore_merges_ = LS_TRY(BoolField(json, "model", "ignore_merges", false));
  LS_TRY(model.ReadVocab(json));
  LS_TRY(model.ReadMerges(json));
  LS_TRY(model.ReadUnknown(json));
  model.IndexPieces();
  const bool any_missing =
      std::find(model.byte_ids_.begin(), model.byte_ids_.end(), -1) != model.byte_ids_.end();
  if (byte_level && model.byte_fallback_ && any_missing) {
    return Unsupported("model.byte_fallback", "true with ByteLevel and bytes without a token",
                       "false");
  }
  return model;
}

Status BpeModel::ReadVocab(const Json& json) {
  const Json* vocab = json.Find("vocab");
  if (vocab == nullptr || !vocab->is_object()) {
    return BadField("model.vocab", vocab == nullptr ? "missing" : vocab->TypeName(), "an object");
  }
  vocab_.reserve(vocab->as_object().size());
  for (const auto& [token, id] : vocab->as_object()) {
    if (!id.is_int() || id.as_int() < 0 || id.as_int() > kMaxTokenId) {
      return BadField(StrCat("model.vocab[\"", token, "\"]"), WriteJson(id),
                      StrCat("an integer from 0 to ", kMaxTokenId));
    }
    vocab_.emplace(token, static_cast<int32_t>(id.as_int()));
  }
  return {};
}

Status BpeModel::ReadMerges(const Json& json) {
  const Json::Array* merges = LS_TRY(ArrayField(json, "model", "merges"));
  if (merges->size() > size_t{1} << 24) {
    return BadField("model.merges", StrCat(merges->size(), " long"), "at most 16777216 merges");
  }
  merges_.assign(std::bit_ceil(2 * merges->size() + 2), Merge());
  std::string joined;
  for (size_t i = 0; i < merges->size(); ++i) {
    const Json& entry = (*merges)[i];
    if (entry.is_string() && entry.as_string().starts_with("#version")) continue;
    const auto [left, right] = LS_TRY(ParseMerge(entry, i));
    joined.assign(left).append(right);
    const auto left_id = vocab_.find(left);
    const auto right_id = vocab_.find(right);
    const auto merged_id = vocab_.find(joined);
    if (left_id == vocab_.end() || right_id == vocab_.end() || merged_id == vocab_.end()) {
      return BadField(StrCat("model.merges[", i, "]"), StrCat("\"", left, "\" and \"", right, "\""),
                      "two tokens that are in the vocabulary, as is what they make");
    }
    InsertMerge(
        {PairOf(left_id->second, right_id->second), static_cast<uint32_t>(i), merged_id->second});
  }
  return {};
}

Status BpeModel::ReadUnknown(const Json& json) {
  const Json* unknown = json.Find("unk_token");
  if (unknown == nullptr || unknown->is_null()) return {};
  if (!unknown->is_string()) return BadField("model.unk_token", unknown->TypeName(), "a string");
  const auto id = vocab_.find(unknown->as_string());
  if (id == vocab_.end()) {
    return BadField("model.unk_token", StrCat("\"", unknown->as_string(), "\""),
                    "a token of the vocabulary");
  }
  unknown_id_ = id->second;
  return {};
}

void BpeModel::IndexPieces() {
  byte_ids_.fill(-1);
  fallback_ids_.fill(-1);
  for (size_t byte = 0; byte < 256; ++byte) {
    const auto id = vocab_.find(FallbackToken(byte));
    if (id != vocab_.end()) fallback_ids_[byte] = id->second;
  }
  if (!byte_level_) return;
  for (const auto& [token, id] : vocab_) {
    const std::optional<std::string> bytes = BytesOfAlphabet(token);
    if (!bytes.has_value()) continue;
    if (bytes->size() == 1) byte_ids_[static_cast<unsigned char>((*bytes)[0])] = id;
    if (ignore_merges_) pieces_.emplace(*bytes, id);
  }
}

// A pair that is listed twice has its last rank.
void BpeModel::InsertMerge(const Merge& merge) {
  const size_t mask = merges_.size() - 1;
  size_t slot = HashPair(merge.pair) & mask;
  while (merges_[slot].pair != kNoPair && merges_[slot].pair != merge.pair) {
    slot = (slot + 1) & mask;
  }
  merges_[slot] = merge;
}

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const uint64_t pair = PairOf(left, right);
  const size_t mask = merges_.size() - 1;
  size_t slot = HashPair(pair) & mask;
  while (merges_[slot].pair != pair) {
    if (merges_[slot].pair == kNoPair) return nullptr;
    slot = (slot + 1) & mask;
  }
  return &merges_[slot];
}

// The characters (or bytes) of the piece as tokens. One without a token becomes its bytes'
// fallback tokens, if all exist, else the unknown token, else nothing. An unknown token waits for
// the next known character, as in the reference implementation: fallback bytes may overtake it.
void BpeModel::AppendSymbols(std::string_view piece, std::vector<Symbol>& symbols) const {
  const auto add = [&](int32_t id) { symbols.push_back({id, -1, -1, true}); };
  bool unknown_waits = false;
  for (size_t at = 0; at < piece.size();) {
    const size_t length = byte_level_ ? 1 : DecodeAt(piece, at).bytes;
    const std::string_view character = piece.substr(at, length);
    at += length;
    int32_t id = -1;
    if (byte_level_) {
      id = byte_ids_[static_cast<unsigned char>(character[0])];
    } else if (const auto found = vocab_.find(character); found != vocab_.end()) {
      id = found->second;
    }
    if (id >= 0) {
      if (unknown_waits) add(*unknown_id_);
      unknown_waits = false;
      add(id);
      continue;
    }
    const auto fallback = [&](char c) { return fallback_ids_[static_cast<unsigned char>(c)]; };
    if (byte_fallback_ &&
        std::all_of(character.begin(), character.end(), [&](char c) { return fallback(c) >= 0; })) {
      for (const char c : character) add(fallback(c));
    } else if (unknown_id_.has_value()) {
      if (unknown_waits && !fuse_unknown_) add(*unknown_id_);
      unknown_waits = true;
    }
  }
  if (unknown_waits) add(*unknown_id_);
}

bool BpeModel::AddCandidate(int32_t left, Scratch& scratch) const {
  if (left < 0) return false;
  const Symbol& symbol = scratch.symbols[static_cast<size_t>(left)];
  if (symbol.next < 0) return false;
  const Merge* merge = FindMerge(symbol.id, scratch.symbols[static_cast<size_t>(symbol.next)].id);
  if (merge == nullptr) return false;
  scratch.heap.push_back({merge->rank, left, merge->merged});
  return true;
}

void BpeModel::PushCandidate(int32_t left, Scratch& scratch) const {
  if (!AddCandidate(left, scratch)) return;
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), std::greater<>());
}

void BpeModel::EncodePiece(std::string_view piece,
                           Scratch& scratch,
                           std::vector<int32_t>& out) const {
  if (ignore_merges_) {
    const StringToId& whole = byte_level_ ? pieces_ : vocab_;
    if (const auto found = whole.find(piece); found != whole.end()) {
      out.push_back(found->second);
      return;
    }
  }
  std::vector<Symbol>& symbols = scratch.symbols;
  symbols.clear();
  scratch.heap.clear();
  AppendSymbols(piece, symbols);
  const int32_t count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[static_cast<size_t>(i)].previous = i - 1;
    symbols[static_cast<size_t>(i)].next = i + 1 < count ? i + 1 : -1;
  }
  for (int32_t i = 0; i + 1 < count; ++i) AddCandidate(i, scratch);
  std::make_heap(scratch.heap.begin(), scratch.heap.end(), std::greater<>());

  while (!scratch.heap.empty()) {
    const Candidate best = scratch.heap.front();
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), std::greater<>());
    scratch.heap.pop_back();
    Symbol& left = symbols[static_cast<size_t>(best.position)];
    if (!left.alive || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    // The pair may have changed since it was queued.
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->merged != best.merged) continue;
    left.id = best.merged;
    left.next = right.next;
    right.alive = false;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.position;
    PushCandidate(left.previous, scratch);
    PushCandidate(best.position, scratch);
  }
  for (int32_t i = count > 0 ? 0 : -1; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    out.push_back(symbols[static_cast<size_t>(i)].id);
  }
}

}  // namespace lserve
