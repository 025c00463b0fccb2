#include "tokenizer/added_tokens.h"

#include <algorithm>

#include "tokenizer/bpe.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/unicode.h"

namespace lserve {
namespace {

// Bounds the work per byte of text.
constexpr size_t kMaxContentBytes = 512;

bool StandsAlone(std::string_view text, size_t begin, size_t end) {
  const bool word_before = begin > 0 && IsWordCharacter(DecodeBefore(text, begin).value);
  const bool word_after = end < text.size() && IsWordCharacter(DecodeAt(text, end).value);
  return !word_before && !word_after;
}

size_t SkipSpacesBefore(std::string_view text, size_t begin, size_t limit) {
  while (begin > limit) {
    const CodePoint c = DecodeBefore(text, begin);
    if (!IsWhiteSpace(c.value)) break;
    begin -= c.bytes;
  }
  return std::max(begin, limit);
}

size_t SkipSpacesAfter(std::string_view text, size_t end) {
  while (end < text.size()) {
    const CodePoint c = DecodeAt(text, end);
    if (!IsWhiteSpace(c.value)) break;
    end += c.bytes;
  }
  return end;
}

}  // namespace

bool Touches(const std::vector<ByteRange>& ranges, size_t begin, size_t end) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), begin,
                                      [](size_t at, const ByteRange& r) { return at < r.end; });
  return after != ranges.end() && after->begin < end;
}

Result<AddedToken> ParseAddedToken(const Json& json, std::string_view where) {
  AddedToken token;
  token.content = LS_TRY(StringField(json, where, "content"));
  if (token.content.empty() || token.content.size() > kMaxContentBytes) {
    return BadField(StrCat(where, ".content"), StrCat(token.content.size(), " bytes"),
                    StrCat("1 to ", kMaxContentBytes, " bytes"));
  }
  token.single_word = LS_TRY(BoolField(json, where, "single_word", false));
  token.lstrip = LS_TRY(BoolField(json, where, "lstrip", false));
  token.rstrip = LS_TRY(BoolField(json, where, "rstrip", false));
  token.special = LS_TRY(BoolField(json, where, "special", false));
  token.normalized = LS_TRY(BoolField(json, where, "normalized", !token.special));
  const int64_t id = LS_TRY(IntField(json, where, "id", 0));
  if (id < 0 || id > kMaxTokenId) {
    return BadField(StrCat(where, ".id"), StrCat(id), StrCat("0 to ", kMaxTokenId));
  }
  token.id = static_cast<int32_t>(id);
  return token;
}

void TokenMatcher::Add(const AddedToken& token, std::string_view content) {
  if (content.empty()) return;
  starts_[static_cast<unsigned char>(content[0])] = true;
  size_t node = 0;
  for (const char c : content) {
    const auto [child, is_new] = nodes_[node].next.try_emplace(c, nodes_.size());
    node = child->second;
    if (is_new) nodes_.emplace_back();
  }
  nodes_[node].token = static_cast<int>(tokens_.size());
  tokens_.push_back(token);
}

TokenMatcher::Found TokenMatcher::LongestAt(std::string_view text,
                                            size_t at,
                                            const MatchRules& rules,
                                            size_t base) const {
  Found best;
  size_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto child = nodes_[node].next.find(text[i]);
    if (child == nodes_[node].next.end()) break;
    node = child->second;
    const int token = nodes_[node].token;
    if (token < 0) continue;
    const bool allowed = (rules.special || !tokens_[static_cast<size_t>(token)].special) &&
                         (rules.user == nullptr || !Touches(*rules.user, base + at, base + i + 1));
    if (allowed) best = {i + 1, token};
  }
  return best;
}

std::vector<Stretch> TokenMatcher::Cut(std::string_view text,
                                       const MatchRules& rules,
                                       size_t base) const {
  std::vector<Stretch> stretches;
  size_t done = 0;
  for (size_t at = 0; at < text.size() && !tokens_.empty();) {
    if (!starts_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    const Found found = LongestAt(text, at, rules, base);
    if (found.token < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(found.token)];
    if (token.single_word && !StandsAlone(text, at, found.end)) {
      at = found.end;  // the search goes on behind a rejected match
      continue;
    }
    const size_t begin = token.lstrip ? SkipSpacesBefore(text, at, done) : at;
    const size_t end = token.rstrip ? SkipSpacesAfter(text, found.end) : found.end;
    if (done < begin) stretches.push_back({{done, begin}, -1});
    stretches.push_back({{begin, end}, token.id});
    done = at = end;
  }
  if (done < text.size()) stretches.push_back({{done, text.size()}, -1});
  return stretches;
}

}  // namespace lserve
