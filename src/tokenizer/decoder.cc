#include "tokenizer/decoder.h"

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/unicode.h"

namespace lserve {
namespace {

constexpr int kMaxDepth = 8;
constexpr int kMaxStrips = 16;
constexpr size_t kMaxReplacements = 16;

// "<0x41>", two hexadecimal digits.
std::optional<char> FallbackByte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const bool digit = c >= '0' && c <= '9';
    const bool upper = c >= 'A' && c <= 'F';
    const bool lower = c >= 'a' && c <= 'f';
    if (!digit && !upper && !lower) return std::nullopt;
    value = value * 16 + (digit ? c - '0' : (upper ? c - 'A' : c - 'a') + 10);
  }
  return static_cast<char>(value);
}

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t done = 0;
  for (size_t at; (at = text.find(from, done)) != std::string_view::npos; done = at + from.size()) {
    out.append(text.substr(done, at - done)).append(to);
  }
  return out.append(text.substr(done));
}

}  // namespace

Status Decoder::AddStrip(const Json& json, std::string_view where) {
  const std::string content = LS_TRY(StringField(json, where, "content"));
  const int64_t start = LS_TRY(IntField(json, where, "start", 0));
  const int64_t stop = LS_TRY(IntField(json, where, "stop", 0));
  if (start == 0 && stop == 0) return {};
  if (stop != 0) return Unsupported(StrCat(where, ".stop"), StrCat(stop), "0");
  if (!fused_ || strip_count_ != 0) {
    return Unsupported(where, "Strip before Fuse or twice", "one Strip after Fuse");
  }
  if (start < 0 || start > kMaxStrips || CountCodePoints(content) != 1) {
    return BadField(where, StrCat("\"", content, "\" times ", start),
                    StrCat("one character up to ", kMaxStrips, " times"));
  }
  strip_text_ = content;
  strip_count_ = static_cast<int>(start);
  return {};
}

Status Decoder::AddStep(const Json& json, std::string_view where, int depth) {
  const std::string type = LS_TRY(StringField(json, where, "type"));
  const bool per_token =
      type == "ByteLevel" || type == "Metaspace" || type == "Replace" || type == "ByteFallback";
  if (per_token && (fused_ || byte_level_)) {
    return Unsupported(where, StrCat(type, " after Fuse or ByteLevel"), "it before them");
  }
  if (type == "Sequence") {
    if (depth >= kMaxDepth) return BadField(where, "nested too deep", "at most 8 levels");
    const Json::Array* steps = LS_TRY(ArrayField(json, where, "decoders"));
    for (size_t i = 0; i < steps->size(); ++i) {
      LS_TRY(AddStep((*steps)[i], StrCat(where, ".decoders[", i, "]"), depth + 1));
    }
  } else if (type == "ByteLevel") {
    if (!replacements_.empty() || byte_fallback_) {
      return Unsupported(where, "ByteLevel after another step", "ByteLevel alone");
    }
    byte_level_ = true;
    fused_ = true;
  } else if (type == "Metaspace") {
    const std::string replacement = LS_TRY(StringField(json, where, "replacement"));
    if (CountCodePoints(replacement) != 1 || byte_fallback_) {
      return BadField(where, StrCat("\"", replacement, "\""), "one character, before ByteFallback");
    }
    const bool never = json.Find("prepend_scheme") != nullptr
                           ? LS_TRY(StringField(json, where, "prepend_scheme")) == "never"
                           : !LS_TRY(BoolField(json, where, "add_prefix_space", true));
    replacements_.emplace_back(replacement, " ");
    if (!never) first_token_drop_ = replacement;
  } else if (type == "Replace") {
    const Json* pattern = json.Find("pattern");
    const Json* text = pattern == nullptr ? nullptr : pattern->Find("String");
    if (text == nullptr || !text->is_string() || text->as_string().empty() || byte_fallback_ ||
        replacements_.size() >= kMaxReplacements) {
      return Unsupported(where, "Replace of this kind", "a String pattern, before ByteFallback");
    }
    replacements_.emplace_back(text->as_string(), LS_TRY(StringField(json, where, "content")));
  } else if (type == "ByteFallback") {
    byte_fallback_ = true;
  } else if (type == "Fuse") {
    fused_ = true;
  } else if (type == "Strip") {
    LS_TRY(AddStrip(json, where));
  } else {
    return Unsupported(where, type,
                       "Sequence, ByteLevel, Metaspace, Replace, ByteFallback, Fuse or Strip");
  }
  return {};
}

Result<Decoder> Decoder::FromJson(const Json& json) {
  if (json.is_null()) return Unsupported("decoder", "null", "a decoder");
  Decoder decoder;
  LS_TRY(decoder.AddStep(json, "decoder", 0));
  return decoder;
}

TokenText Decoder::TextOf(std::string_view token) const {
  if (byte_level_) {
    // A token outside the byte alphabet (an added one with a space, say) is itself.
    return {BytesOfAlphabet(token).value_or(std::string(token)), false};
  }
  std::string text(token);
  for (const auto& [from, to] : replacements_) text = ReplaceAll(text, from, to);
  if (byte_fallback_) {
    if (const std::optional<char> byte = FallbackByte(text)) return {std::string(1, *byte), true};
  }
  return {std::move(text), false};
}

TokenText Decoder::FirstTextOf(std::string_view token) const {
  if (first_token_drop_.empty()) return TextOf(token);
  return TextOf(ReplaceAll(token, first_token_drop_, ""));
}

void TextAssembler::Push(const TokenText& token, std::string& out) {
  at_start_ = false;
  if (decoder_->byte_level() || token.is_byte) {
    PushBytes(token.text, out);
    return;
  }
  FlushBytes(out);
  Emit(token.text, out);
}

void TextAssembler::PushBytes(std::string_view bytes, std::string& out) {
  bytes_.append(bytes);
  size_t at = 0;
  std::string text;
  while (at < bytes_.size()) {
    const Utf8Step step = NextUtf8(std::string_view(bytes_).substr(at));
    if (step.bytes == 0) break;
    if (step.valid) {
      text.append(bytes_, at, step.bytes);
    } else {
      Replace(step.bytes, text);
    }
    at += step.bytes;
  }
  bytes_.erase(0, at);
  Emit(text, out);
}

// Byte-level: one U+FFFD for the longest beginning of a character; byte fallback: one per byte.
void TextAssembler::Replace(size_t num_bytes, std::string& out) {
  const size_t count = decoder_->byte_level() ? 1 : num_bytes;
  for (size_t i = 0; i < count; ++i) out.append(kReplacementCharacter);
}

void TextAssembler::FlushBytes(std::string& out) {
  if (bytes_.empty()) return;
  std::string text;
  Replace(bytes_.size(), text);
  bytes_.clear();
  Emit(text, out);
}

void TextAssembler::Emit(std::string_view text, std::string& out) {
  while (strips_left_ > 0 && !text.empty()) {
    if (!text.starts_with(decoder_->strip_text())) {
      strips_left_ = 0;
      break;
    }
    text.remove_prefix(decoder_->strip_text().size());
    --strips_left_;
  }
  out.append(text);
}

void TextAssembler::Finish(std::string& out) {
  FlushBytes(out);
}

}  // namespace lserve
