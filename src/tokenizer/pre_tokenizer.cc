#include "tokenizer/pre_tokenizer.h"

#include <optional>
#include <utility>

#include "tokenizer/json_fields.h"
#include "tokenizer/known_splits.h"
#include "tokenizer/split_regex.h"
#include "tokenizer/unicode.h"

namespace lserve {
namespace {

constexpr int kMaxDepth = 8;
constexpr size_t kMaxSteps = 64;

enum class Behavior : uint8_t {
  kIsolated,
  kRemoved,
  kMergedWithPrevious,
  kMergedWithNext,
  kContiguous
};

struct Span {
  size_t begin = 0;
  size_t end = 0;
  bool is_match = false;
};

Result<Behavior> ParseBehavior(const Json& json, std::string_view where) {
  const std::string name = LS_TRY(StringField(json, where, "behavior"));
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return Unsupported(StrCat(where, ".behavior"), name,
                     "Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous");
}

// Joins matches with their neighbours as `behavior` says; `spans` covers the piece without gaps.
std::vector<Span> Join(const std::vector<Span>& spans, Behavior behavior) {
  std::vector<Span> joined;
  bool previous_match = false;
  const auto add = [&](const Span& span, bool merge) {
    if (merge && !joined.empty()) {
      joined.back().begin = std::min(joined.back().begin, span.begin);
      joined.back().end = std::max(joined.back().end, span.end);
    } else {
      joined.push_back(span);
    }
    previous_match = span.is_match;
  };
  switch (behavior) {
    case Behavior::kIsolated:
      return spans;
    case Behavior::kRemoved:
      for (const Span& span : spans) {
        if (!span.is_match) joined.push_back(span);
      }
      return joined;
    case Behavior::kContiguous:
      for (const Span& span : spans) add(span, span.is_match == previous_match);
      return joined;
    case Behavior::kMergedWithPrevious:
      for (const Span& span : spans) add(span, span.is_match && !previous_match);
      return joined;
    case Behavior::kMergedWithNext:
      for (size_t i = spans.size(); i-- > 0;) add(spans[i], spans[i].is_match && !previous_match);
      return std::vector<Span>(joined.rbegin(), joined.rend());
  }
  return joined;
}

// Cuts every piece by `find(piece, spans)`, which appends spans that cover the piece.
template <class Find>
Status CutPieces(SplitText& pieces, Behavior behavior, bool invert, const Find& find) {
  SplitText out;
  out.at_start = pieces.at_start;
  std::vector<Span> spans;
  for (size_t i = 0; i < pieces.num_pieces(); ++i) {
    const std::string_view piece = pieces.piece(i);
    spans.clear();
    LS_TRY(find(piece, spans));
    if (invert) {
      for (Span& span : spans) span.is_match = !span.is_match;
    }
    if (i == 0 && behavior == Behavior::kRemoved && !spans.empty() && spans[0].is_match) {
      out.at_start = false;
    }
    for (const Span& span : Join(spans, behavior)) {
      if (span.begin == span.end) continue;
      out.text.append(piece.substr(span.begin, span.end - span.begin));
      out.ends.push_back(out.text.size());
    }
  }
  pieces = std::move(out);
  return {};
}

// Appends the gap before `match` and the match.
void AddMatch(ByteRange match, std::vector<Span>& spans) {
  const size_t previous = spans.empty() ? 0 : spans.back().end;
  if (previous < match.begin) spans.push_back({previous, match.begin, false});
  spans.push_back({match.begin, match.end, true});
}

void AddRest(size_t size, std::vector<Span>& spans) {
  const size_t previous = spans.empty() ? 0 : spans.back().end;
  if (previous < size) spans.push_back({previous, size, false});
}

void FindLiteral(std::string_view piece, std::string_view literal, std::vector<Span>& spans) {
  for (size_t at = 0; (at = piece.find(literal, at)) != std::string_view::npos;) {
    AddMatch({at, at + literal.size()}, spans);
    at += literal.size();
  }
  AddRest(piece.size(), spans);
}

// The known patterns match everywhere and are only ever used to isolate: just new ends.
void CutKnown(KnownSplit split, SplitText& pieces) {
  std::vector<size_t> ends;
  ends.reserve(pieces.text.size() / 4);
  size_t begin = 0;
  for (const size_t end : pieces.ends) {
    const std::string_view piece = std::string_view(pieces.text).substr(begin, end - begin);
    for (size_t at = 0; at < piece.size();) {
      at = EndOfKnownSplit(split, piece, at);
      ends.push_back(begin + at);
    }
    begin = end;
  }
  pieces.ends = std::move(ends);
}

class KnownSplitStep : public SplitStep {
 public:
  explicit KnownSplitStep(KnownSplit split) : split_(split) {}
  Status Apply(SplitText& pieces) const override {
    CutKnown(split_, pieces);
    return {};
  }

 private:
  KnownSplit split_;
};

class RegexStep : public SplitStep {
 public:
  RegexStep(SplitRegex regex, Behavior behavior, bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}
  Status Apply(SplitText& pieces) const override {
    return CutPieces(pieces, behavior_, invert_,
                     [this](std::string_view piece, std::vector<Span>& spans) -> Status {
                       for (size_t at = 0; at < piece.size();) {
                         const std::optional<ByteRange> match = LS_TRY(regex_.Find(piece, at));
                         if (!match.has_value()) break;
                         AddMatch(*match, spans);
                         at = match->end;
                       }
                       AddRest(piece.size(), spans);
                       return {};
                     });
  }

 private:
  SplitRegex regex_;
  Behavior behavior_;
  bool invert_;
};

class LiteralStep : public SplitStep {
 public:
  LiteralStep(std::string literal, Behavior behavior, bool invert)
      : literal_(std::move(literal)), behavior_(behavior), invert_(invert) {}
  Status Apply(SplitText& pieces) const override {
    return CutPieces(pieces, behavior_, invert_,
                     [this](std::string_view piece, std::vector<Span>& spans) -> Status {
                       FindLiteral(piece, literal_, spans);
                       return {};
                     });
  }

 private:
  std::string literal_;
  Behavior behavior_;
  bool invert_;
};

class DigitsStep : public SplitStep {
 public:
  explicit DigitsStep(bool individual)
      : behavior_(individual ? Behavior::kIsolated : Behavior::kContiguous) {}
  Status Apply(SplitText& pieces) const override {
    return CutPieces(pieces, behavior_, /*invert=*/false,
                     [](std::string_view piece, std::vector<Span>& spans) -> Status {
                       for (size_t at = 0; at < piece.size();) {
                         const CodePoint c = DecodeAt(piece, at);
                         if (IsNumber(c.value)) AddMatch({at, at + c.bytes}, spans);
                         at += c.bytes;
                       }
                       AddRest(piece.size(), spans);
                       return {};
                     });
  }

 private:
  Behavior behavior_;
};

class PrefixSpaceStep : public SplitStep {
 public:
  Status Apply(SplitText& pieces) const override {
    SplitText out;
    out.at_start = pieces.at_start;
    for (size_t i = 0; i < pieces.num_pieces(); ++i) {
      const std::string_view piece = pieces.piece(i);
      if (piece[0] != ' ') out.text.push_back(' ');
      out.text.append(piece);
      out.ends.push_back(out.text.size());
    }
    pieces = std::move(out);
    return {};
  }
};

enum class PrependScheme : uint8_t { kAlways, kFirst, kNever };

class MetaspaceStep : public SplitStep {
 public:
  MetaspaceStep(std::string replacement, PrependScheme scheme, bool split)
      : replacement_(std::move(replacement)), scheme_(scheme), split_(split) {}

  Status Apply(SplitText& pieces) const override {
    SplitText out;
    out.at_start = pieces.at_start;
    for (size_t i = 0; i < pieces.num_pieces(); ++i) {
      const std::string_view piece = pieces.piece(i);
      const bool wanted = scheme_ == PrependScheme::kAlways ||
                          (scheme_ == PrependScheme::kFirst && i == 0 && pieces.at_start);
      if (wanted && piece[0] != ' ' && !piece.starts_with(replacement_)) out.text += replacement_;
      for (const char c : piece) {
        if (c == ' ') {
          out.text += replacement_;
        } else {
          out.text.push_back(c);
        }
      }
      out.ends.push_back(out.text.size());
    }
    pieces = std::move(out);
    if (!split_) return {};
    return CutPieces(pieces, Behavior::kMergedWithNext, /*invert=*/false,
                     [this](std::string_view piece, std::vector<Span>& spans) -> Status {
                       FindLiteral(piece, replacement_, spans);
                       return {};
                     });
  }

 private:
  std::string replacement_;
  PrependScheme scheme_;
  bool split_;
};

using StepPointer = std::shared_ptr<const SplitStep>;

Result<StepPointer> ParseSplit(const Json& json, std::string_view where) {
  const Behavior behavior = LS_TRY(ParseBehavior(json, where));
  const bool invert = LS_TRY(BoolField(json, where, "invert", false));
  const Json* pattern = json.Find("pattern");
  if (pattern == nullptr || !pattern->is_object() || pattern->as_object().size() != 1 ||
      !pattern->as_object()[0].second.is_string()) {
    return BadField(StrCat(where, ".pattern"), "something else",
                    "{\"Regex\": \"...\"} or {\"String\": \"...\"}");
  }
  const auto& [kind, text] = pattern->as_object()[0];
  if (text.as_string().empty()) return BadField(StrCat(where, ".pattern"), "empty", "a pattern");
  if (kind == "String") {
    return StepPointer(std::make_shared<LiteralStep>(text.as_string(), behavior, invert));
  }
  if (kind != "Regex") return Unsupported(StrCat(where, ".pattern"), kind, "Regex or String");
  const std::optional<KnownSplit> known = FindKnownSplit(text.as_string());
  if (known.has_value() && behavior == Behavior::kIsolated) {
    return StepPointer(std::make_shared<KnownSplitStep>(*known));
  }
  SplitRegex regex = LS_TRY(SplitRegex::Compile(text.as_string()));
  return StepPointer(std::make_shared<RegexStep>(std::move(regex), behavior, invert));
}

Result<StepPointer> ParseMetaspace(const Json& json, std::string_view where) {
  const std::string replacement = LS_TRY(StringField(json, where, "replacement"));
  if (CountCodePoints(replacement) != 1) {
    return BadField(StrCat(where, ".replacement"), StrCat("\"", replacement, "\""),
                    "one character");
  }
  PrependScheme scheme = PrependScheme::kAlways;
  if (json.Find("prepend_scheme") != nullptr) {
    const std::string name = LS_TRY(StringField(json, where, "prepend_scheme"));
    if (name == "first") {
      scheme = PrependScheme::kFirst;
    } else if (name == "never") {
      scheme = PrependScheme::kNever;
    } else if (name != "always") {
      return Unsupported(StrCat(where, ".prepend_scheme"), name, "always, first or never");
    }
  } else if (!LS_TRY(BoolField(json, where, "add_prefix_space", true))) {
    scheme = PrependScheme::kNever;
  }
  const bool split = LS_TRY(BoolField(json, where, "split", true));
  return StepPointer(std::make_shared<MetaspaceStep>(replacement, scheme, split));
}

}  // namespace

Status PreTokenizer::AddStep(const Json& json, std::string_view where, int depth) {
  if (depth > kMaxDepth || steps_.size() >= kMaxSteps) {
    return BadField(where, "nested too deep or too long", "at most 8 levels and 64 steps");
  }
  const std::string type = LS_TRY(StringField(json, where, "type"));
  if (byte_level_) return Unsupported(where, StrCat(type, " after ByteLevel"), "ByteLevel last");
  if (type == "Sequence") {
    const Json::Array* steps = LS_TRY(ArrayField(json, where, "pretokenizers"));
    for (size_t i = 0; i < steps->size(); ++i) {
      LS_TRY(AddStep((*steps)[i], StrCat(where, ".pretokenizers[", i, "]"), depth + 1));
    }
  } else if (type == "Split") {
    steps_.push_back(LS_TRY(ParseSplit(json, where)));
  } else if (type == "Digits") {
    const bool individual = LS_TRY(BoolField(json, where, "individual_digits", false));
    steps_.push_back(std::make_shared<DigitsStep>(individual));
  } else if (type == "Metaspace") {
    steps_.push_back(LS_TRY(ParseMetaspace(json, where)));
  } else if (type == "ByteLevel") {
    if (LS_TRY(BoolField(json, where, "add_prefix_space", true))) {
      steps_.push_back(std::make_shared<PrefixSpaceStep>());
    }
    if (LS_TRY(BoolField(json, where, "use_regex", true))) {
      steps_.push_back(std::make_shared<KnownSplitStep>(KnownSplit::kGpt2));
    }
    byte_level_ = true;
  } else {
    return Unsupported(where, type, "Sequence, Split, Digits, Metaspace or ByteLevel");
  }
  return {};
}

Result<PreTokenizer> PreTokenizer::FromJson(const Json& json) {
  PreTokenizer pre_tokenizer;
  if (!json.is_null()) LS_TRY(pre_tokenizer.AddStep(json, "pre_tokenizer", 0));
  return pre_tokenizer;
}

Result<SplitText> PreTokenizer::Run(std::string text, bool at_start) const {
  SplitText pieces;
  pieces.text = std::move(text);
  pieces.at_start = at_start;
  if (pieces.text.empty()) return pieces;
  pieces.ends.push_back(pieces.text.size());
  for (const auto& step : steps_) LS_TRY(step->Apply(pieces));
  return pieces;
}

}  // namespace lserve
