#include "apps/explanation.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "apps/console.h"
#include "apps/quantities.h"
#include "base/strings.h"

namespace lserve {
namespace {

// A sentence that a page cuts is completed if it ends this near.
constexpr size_t kNearby = 240;

bool EndsSentence(const std::string& text, size_t at) {
  const char c = text[at];
  if (c == '\n') return true;
  const bool space_follows = at + 1 < text.size() && (text[at + 1] == ' ' || text[at + 1] == '\n');
  return (c == '.' || c == '!' || c == '?') && space_follows;
}

// Bytes [begin, end) of text [low, high), widened to where sentences begin and end.
std::pair<size_t, size_t> Widened(
    const std::string& text, size_t low, size_t high, size_t begin, size_t end) {
  size_t first = begin;
  while (first > low && begin - first < kNearby && !EndsSentence(text, first - 1)) --first;
  if (first == low || EndsSentence(text, first - 1)) begin = first;
  size_t last = end;
  while (last < high && last - end < kNearby && !(last > begin && EndsSentence(text, last - 1))) {
    ++last;
  }
  if (last == high || EndsSentence(text, last - 1)) end = last;
  while (begin < end && (text[begin] == ' ' || text[begin] == '\n')) ++begin;
  return {begin, end};
}

}  // namespace

Result<PromptMap> PromptMap::Make(const Tokenizer* tokenizer,
                                  const std::vector<int32_t>& prompt,
                                  const Documents& documents) {
  PromptMap map;
  map.last_ = static_cast<int64_t>(prompt.size());
  if (tokenizer == nullptr) return map;
  StreamDetokenizer detokenizer(*tokenizer, /*skip_special=*/false);
  for (const int32_t token : prompt) {
    map.offsets_.push_back(map.decoded_.size());
    map.decoded_ += LS_TRY(detokenizer.Push(token));
  }
  map.decoded_ += detokenizer.Finish();
  map.offsets_.push_back(map.decoded_.size());
  // Templates may trim what they are given.
  constexpr const char* kSpace = " \t\r\n\f\v";
  const size_t lead = documents.text.find_first_not_of(kSpace);
  if (lead == std::string::npos) return map;
  const std::string text =
      documents.text.substr(lead, documents.text.find_last_not_of(kSpace) + 1 - lead);
  const size_t begin = map.decoded_.find(text);
  if (begin == std::string::npos) return map;
  map.documents_ = documents.parts;
  for (DocumentPart& part : map.documents_) {
    const size_t trimmed = part.begin < lead ? lead - part.begin : 0;
    part.begin = part.begin + trimmed - lead;  // from here on, bytes of the trimmed text
    part.end = std::min(part.end - lead, text.size());
    part.skipped += trimmed;
  }
  map.text_begin_ = begin;
  const auto at = [&](size_t byte) {
    return std::upper_bound(map.offsets_.begin(), map.offsets_.end(), byte) - map.offsets_.begin();
  };
  map.first_ = at(begin) - 1;
  map.last_ = std::min(map.last_, at(begin + text.size() - 1));
  return map;
}

Passage PromptMap::PassageOf(const ReadPart& part) const {
  Passage passage{.source = {},
                  .first_token = part.first,
                  .last_token = part.last,
                  .begin = {},
                  .end = {},
                  .text = {},
                  .weight = part.weight};
  if (offsets_.empty()) return passage;
  const size_t begin = offsets_[static_cast<size_t>(part.first)];
  const size_t end = offsets_[static_cast<size_t>(part.last)];
  passage.text = decoded_.substr(begin, end - begin);
  if (!text_begin_) return passage;
  // The document with most of it; a page may lie across the end of one.
  const DocumentPart* document = nullptr;
  size_t most = 0, first = 0, last = 0;
  for (const DocumentPart& candidate : documents_) {
    const size_t low = std::max(begin, *text_begin_ + candidate.begin);
    const size_t high = std::min(end, *text_begin_ + candidate.end);
    if (high <= low || high - low <= most) continue;
    document = &candidate;
    most = high - low;
    first = low;
    last = high;
  }
  if (document == nullptr) return passage;
  const size_t low = *text_begin_ + document->begin;
  std::tie(first, last) = Widened(decoded_, low, *text_begin_ + document->end, first, last);
  passage.source = document->source;
  passage.begin = first - low + document->skipped;
  passage.end = last - low + document->skipped;
  passage.text = decoded_.substr(first, last - first);
  return passage;
}

std::vector<Passage> PromptMap::Passages(const std::vector<ReadPart>& parts) const {
  std::vector<Passage> passages;
  for (const ReadPart& part : parts) passages.push_back(PassageOf(part));
  return passages;
}

Json ToJson(const Passage& passage) {
  const auto bytes = [](const std::optional<size_t>& at) {
    return at ? Json(static_cast<int64_t>(*at)) : Json();
  };
  return Json(Json::Object{{"document", passage.source ? Json(*passage.source) : Json()},
                           {"begin", bytes(passage.begin)},
                           {"end", bytes(passage.end)},
                           {"first_token", Json(passage.first_token)},
                           {"last_token", Json(passage.last_token)},
                           {"weight", Json(passage.weight)},
                           {"text", Json(passage.text)}});
}

std::string PassagesText(const std::vector<Passage>& passages) {
  if (passages.empty()) return "   read: nothing of the document stands out\n";
  std::string text;
  for (const Passage& passage : passages) {
    text += StrCat("   read: ", FormatFixed(100 * passage.weight, 0), "% in ",
                   passage.source ? *passage.source : std::string("the prompt"));
    if (passage.begin) {
      text += StrCat(", bytes ", FormatCount(static_cast<int64_t>(*passage.begin)), " to ",
                     FormatCount(static_cast<int64_t>(*passage.end)));
    } else {
      text += StrCat(", tokens ", FormatCount(passage.first_token), " to ",
                     FormatCount(passage.last_token));
    }
    text += passage.text.empty() ? "\n" : StrCat(":\n         ", OneLine(passage.text), "\n");
  }
  return text;
}

}  // namespace lserve
