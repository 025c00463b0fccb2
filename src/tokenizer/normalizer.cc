#include "tokenizer/normalizer.h"

#include <optional>
#include <utility>

#include "tokenizer/added_tokens.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/split_regex.h"
#include "tokenizer/unicode.h"

namespace lserve {
namespace {

constexpr int kMaxDepth = 8;
constexpr size_t kMaxSteps = 64;
// Replacing may lengthen the text; a chain of replacements must not do so without end.
constexpr size_t kMaxGrownBytes = size_t{1} << 30;

// Where the marks go is not tracked: if anything changed, all of it counts as the user's.
void SetText(std::string changed, MarkedText& text) {
  if (changed == text.text) return;
  text.text = std::move(changed);
  if (!text.user.empty()) text.user.assign(1, {0, text.text.size()});
}

class UnicodeStep : public NormalizerStep {
 public:
  explicit UnicodeStep(NormalForm form) : form_(form) {}
  Status Apply(MarkedText& text) const override {
    SetText(Normalize(text.text, form_), text);
    return {};
  }

 private:
  NormalForm form_;
};

class PrependStep : public NormalizerStep {
 public:
  explicit PrependStep(std::string prefix) : prefix_(std::move(prefix)) {}
  Status Apply(MarkedText& text) const override {
    if (text.text.empty()) return {};
    text.text.insert(0, prefix_);
    for (ByteRange& range : text.user) {
      range.begin += prefix_.size();
      range.end += prefix_.size();
    }
    return {};
  }

 private:
  std::string prefix_;
};

// Builds a text out of copied and replaced stretches and carries the marks along. Stretches come
// in order, so both lists of ranges are walked once.
class MarkedBuilder {
 public:
  explicit MarkedBuilder(const MarkedText& from) : from_(from) {}

  void Copy(size_t begin, size_t end) {
    for (; next_ < from_.user.size() && from_.user[next_].begin < end; ++next_) {
      const ByteRange& range = from_.user[next_];
      if (range.end > begin) {
        const size_t first = std::max(range.begin, begin);
        const size_t last = std::min(range.end, end);
        Mark(out_.text.size() + first - begin, out_.text.size() + last - begin);
      }
      if (range.end > end) break;  // it goes on in the next stretch
    }
    out_.text.append(from_.text, begin, end - begin);
  }

  void Replace(size_t begin, size_t end, std::string_view with) {
    if (Touches(from_.user, begin, end)) Mark(out_.text.size(), out_.text.size() + with.size());
    out_.text.append(with);
  }

  MarkedText Take() { return std::move(out_); }
  size_t size() const { return out_.text.size(); }

 private:
  void Mark(size_t begin, size_t end) {
    if (begin == end) return;
    if (!out_.user.empty() && out_.user.back().end == begin) {
      out_.user.back().end = end;
    } else {
      out_.user.push_back({begin, end});
    }
  }

  const MarkedText& from_;
  MarkedText out_;
  size_t next_ = 0;
};

Status CheckGrowth(size_t bytes) {
  if (bytes <= kMaxGrownBytes) return {};
  return Status(Code::kInvalidArgument,
                StrCat("normalized text has ", bytes, " bytes or more; expected at most ",
                       kMaxGrownBytes, "; shorten the text"));
}

class ReplaceLiteralStep : public NormalizerStep {
 public:
  ReplaceLiteralStep(std::string from, std::string to)
      : from_(std::move(from)), to_(std::move(to)) {}
  Status Apply(MarkedText& text) const override {
    MarkedBuilder builder(text);
    size_t done = 0;
    for (size_t at; (at = text.text.find(from_, done)) != std::string::npos;) {
      builder.Copy(done, at);
      done = at + from_.size();
      builder.Replace(at, done, to_);
      LS_TRY(CheckGrowth(builder.size()));
    }
    builder.Copy(done, text.text.size());
    text = builder.Take();
    return {};
  }

 private:
  std::string from_;
  std::string to_;
};

class ReplaceRegexStep : public NormalizerStep {
 public:
  ReplaceRegexStep(SplitRegex from, std::string to) : from_(std::move(from)), to_(std::move(to)) {}
  Status Apply(MarkedText& text) const override {
    MarkedBuilder builder(text);
    size_t done = 0;
    while (done < text.text.size()) {
      const std::optional<ByteRange> match = LS_TRY(from_.Find(text.text, done));
      if (!match.has_value()) break;
      builder.Copy(done, match->begin);
      builder.Replace(match->begin, match->end, to_);
      done = match->end;
      LS_TRY(CheckGrowth(builder.size()));
    }
    builder.Copy(done, text.text.size());
    text = builder.Take();
    return {};
  }

 private:
  SplitRegex from_;
  std::string to_;
};

class StripStep : public NormalizerStep {
 public:
  StripStep(bool left, bool right) : left_(left), right_(right) {}
  Status Apply(MarkedText& text) const override {
    size_t begin = 0;
    size_t end = text.text.size();
    while (left_ && begin < end) {
      const CodePoint c = DecodeAt(text.text, begin);
      if (!IsWhiteSpace(c.value)) break;
      begin += c.bytes;
    }
    while (right_ && end > begin) {
      const CodePoint c = DecodeBefore(text.text, end);
      if (!IsWhiteSpace(c.value)) break;
      end -= c.bytes;
    }
    MarkedBuilder builder(text);
    builder.Copy(begin, end);
    text = builder.Take();
    return {};
  }

 private:
  bool left_;
  bool right_;
};

using StepPointer = std::shared_ptr<const NormalizerStep>;

Result<StepPointer> ParseReplace(const Json& json, std::string_view where) {
  const std::string to = LS_TRY(StringField(json, where, "content"));
  const Json* pattern = json.Find("pattern");
  if (pattern == nullptr || !pattern->is_object() || pattern->as_object().size() != 1 ||
      !pattern->as_object()[0].second.is_string() ||
      pattern->as_object()[0].second.as_string().empty()) {
    return BadField(StrCat(where, ".pattern"), "something else",
                    "{\"Regex\": \"...\"} or {\"String\": \"...\"}");
  }
  const auto& [kind, text] = pattern->as_object()[0];
  if (kind == "String") {
    return StepPointer(std::make_shared<ReplaceLiteralStep>(text.as_string(), to));
  }
  if (kind != "Regex") return Unsupported(StrCat(where, ".pattern"), kind, "Regex or String");
  SplitRegex regex = LS_TRY(SplitRegex::Compile(text.as_string()));
  return StepPointer(std::make_shared<ReplaceRegexStep>(std::move(regex), to));
}

std::optional<NormalForm> FindForm(std::string_view type) {
  if (type == "NFC") return NormalForm::kNfc;
  if (type == "NFD") return NormalForm::kNfd;
  if (type == "NFKC") return NormalForm::kNfkc;
  if (type == "NFKD") return NormalForm::kNfkd;
  return std::nullopt;
}

}  // namespace

Status Normalizer::AddStep(const Json& json, std::string_view where, int depth) {
  if (depth > kMaxDepth || steps_.size() >= kMaxSteps) {
    return BadField(where, "nested too deep or too long", "at most 8 levels and 64 steps");
  }
  const std::string type = LS_TRY(StringField(json, where, "type"));
  if (const std::optional<NormalForm> form = FindForm(type)) {
    steps_.push_back(std::make_shared<UnicodeStep>(*form));
  } else if (type == "Sequence") {
    const Json::Array* steps = LS_TRY(ArrayField(json, where, "normalizers"));
    for (size_t i = 0; i < steps->size(); ++i) {
      LS_TRY(AddStep((*steps)[i], StrCat(where, ".normalizers[", i, "]"), depth + 1));
    }
  } else if (type == "Prepend") {
    steps_.push_back(std::make_shared<PrependStep>(LS_TRY(StringField(json, where, "prepend"))));
  } else if (type == "Replace") {
    steps_.push_back(LS_TRY(ParseReplace(json, where)));
  } else if (type == "Strip") {
    const bool left = LS_TRY(BoolField(json, where, "strip_left", true));
    const bool right = LS_TRY(BoolField(json, where, "strip_right", true));
    steps_.push_back(std::make_shared<StripStep>(left, right));
  } else {
    return Unsupported(where, type, "Sequence, NFC, NFD, NFKC, NFKD, Prepend, Replace or Strip");
  }
  return {};
}

Result<Normalizer> Normalizer::FromJson(const Json& json) {
  Normalizer normalizer;
  if (!json.is_null()) LS_TRY(normalizer.AddStep(json, "normalizer", 0));
  return normalizer;
}

Status Normalizer::Run(MarkedText& text) const {
  for (const auto& step : steps_) LS_TRY(step->Apply(text));
  return {};
}

}  // namespace lserve
