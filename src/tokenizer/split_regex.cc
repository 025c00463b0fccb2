#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/split_regex.h"

#include <pcre2.h>

#include <array>

#include "base/check.h"
#include "base/strings.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/unicode.h"

namespace lserve {
namespace {

constexpr size_t kMaxPatternBytes = 8192;
constexpr uint32_t kMatchLimit = 50'000'000;     // steps of one match; 1 MB of one class needs 1 M
constexpr uint32_t kDepthLimit = 10'000'000;     // saved backtracking points
constexpr uint32_t kHeapLimitKib = 1024 * 1024;  // for those points
constexpr uint32_t kMaxParenthesesDepth = 50;

// PCRE2's \s with UCP holds U+180E too, which lost its White_Space property in Unicode 6.3.
constexpr std::string_view kSpaceMembers =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";

// Reads a pattern and writes what PCRE2 gets.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> Run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        LS_TRY(Escape(/*in_class=*/false));
      } else if (c == '[') {
        LS_TRY(Class());
      } else if (c == '(') {
        LS_TRY(Group());
      } else if (c == '{') {
        LS_TRY(Interval());
      } else if (c == '^' || c == '$') {
        // Line anchors in one engine, text anchors in the other.
        return Refuse(StrCat("the anchor ", c));
      } else {
        Copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  Status Refuse(std::string_view construct) const {
    return OneLineError(
        Code::kUnsupported,
        StrCat("split pattern uses ", construct, " at byte ", at_, " of \"", in_,
               "\"; expected classes, groups, look-around and quantifiers; use another "
               "tokenizer.json"));
  }
  char Peek(size_t ahead) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  bool StartsWith(std::string_view prefix) const {
    return in_.substr(at_).substr(0, prefix.size()) == prefix;
  }
  void Copy(size_t count) {
    out_.append(in_.substr(at_, count));
    at_ += count;
  }

  Status Escape(bool in_class) {
    const char c = Peek(1);
    if (c == 's' || c == 'S') {
      if (in_class && c == 'S') return Refuse("\\S inside a class");
      if (in_class) {
        out_.append(kSpaceMembers);
      } else {
        out_.append(c == 's' ? "[" : "[^").append(kSpaceMembers).append("]");
      }
      at_ += 2;
      return {};
    }
    if (c == 'p' || c == 'P') return Property();
    const bool punctuation =
        c > ' ' && c < 0x7f &&
        !((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'));
    if (c == 'r' || c == 'n' || c == 't' || c == 'd' || c == 'D' || punctuation) {
      Copy(2);
      return {};
    }
    return Refuse(StrCat("the escape \\", std::string_view(&c, c == '\0' ? 0 : 1)));
  }

  Status Property() {
    const size_t close = in_.find('}', at_);
    if (Peek(2) != '{' || close == std::string_view::npos) return Refuse("\\p without {name}");
    const std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    // General categories only: scripts and other properties depend on the engine's tables.
    constexpr std::string_view kMajor = "LMNPSZC";
    const bool known = (name.size() == 1 || name.size() == 2) &&
                       kMajor.find(name[0]) != std::string_view::npos &&
                       (name.size() == 1 || (name[1] >= 'a' && name[1] <= 'z'));
    if (!known) return Refuse(StrCat("the property {", name, "}"));
    Copy(close + 1 - at_);
    return {};
  }

  Status Class() {
    Copy(Peek(1) == '^' ? 2 : 1);
    bool first = true;
    while (true) {
      const char c = Peek(0);
      if (at_ >= in_.size()) return Refuse("a class without ]");
      if (c == ']' && !first) break;
      if (c == ']' || c == '[') return Refuse("a bracket inside a class");
      if (StartsWith("&&")) return Refuse("the class operator &&");
      if (c == '\\') {
        LS_TRY(Escape(/*in_class=*/true));
      } else {
        Copy(1);
      }
      first = false;
    }
    Copy(1);
    return {};
  }

  Status Group() {
    if (Peek(1) != '?') {
      if (Peek(1) == '*') return Refuse("the verb (*");
      Copy(1);
      return {};
    }
    for (const std::string_view known : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (StartsWith(known)) {
        Copy(known.size());
        return {};
      }
    }
    return Refuse("an unknown group (?");
  }

  Status Interval() {
    const size_t close = in_.find('}', at_);
    const std::string_view body =
        close == std::string_view::npos ? std::string_view() : in_.substr(at_ + 1, close - at_ - 1);
    const bool plain = !body.empty() && body[0] >= '0' && body[0] <= '9' &&
                       body.find_first_not_of("0123456789,") == std::string_view::npos;
    if (!plain) return Refuse("a brace that is no {n,m}");
    Copy(close + 1 - at_);
    // One engine reads {n,m}+ as possessive, the other as a repeated repeat.
    if (Peek(0) == '+') return Refuse("{n,m}+");
    return {};
  }

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
};

std::string Pcre2Message(int code) {
  std::array<unsigned char, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

struct CompileContextDeleter {
  void operator()(pcre2_compile_context* c) const { pcre2_compile_context_free(c); }
};
struct MatchContextDeleter {
  void operator()(pcre2_match_context* c) const { pcre2_match_context_free(c); }
};
struct MatchDataDeleter {
  void operator()(pcre2_match_data* d) const { pcre2_match_data_free(d); }
};

}  // namespace

Result<SplitRegex> SplitRegex::Compile(std::string_view pattern) {
  if (pattern.empty() || pattern.size() > kMaxPatternBytes ||
      FindInvalidUtf8(pattern) < pattern.size()) {
    return OneLineError(Code::kCorruptModel,
                        StrCat("split pattern has ", pattern.size(), " bytes; expected 1 to ",
                               kMaxPatternBytes, " bytes of UTF-8; check tokenizer.json"));
  }
  const std::string translated = LS_TRY(Translator(pattern).Run());
  const std::unique_ptr<pcre2_compile_context, CompileContextDeleter> context(
      pcre2_compile_context_create(nullptr));
  LS_CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);  // `.` stops at \n alone
  pcre2_set_parens_nest_limit(context.get(), kMaxParenthesesDepth);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, context.get());
  if (code == nullptr) {
    return OneLineError(Code::kCorruptModel,
                        StrCat("split pattern \"", pattern, "\" is no regular expression: ",
                               Pcre2Message(error), "; check tokenizer.json"));
  }
  SplitRegex regex;
  regex.code_ = std::shared_ptr<const void>(
      code, [](const void* c) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(c))); });
  regex.pattern_ = pattern;
  return regex;
}

Result<std::optional<ByteRange>> SplitRegex::Find(std::string_view text, size_t from) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_context, MatchContextDeleter> context(
      pcre2_match_context_create(nullptr));
  const std::unique_ptr<pcre2_match_data, MatchDataDeleter> data(
      pcre2_match_data_create_from_pattern(code, nullptr));
  LS_CHECK(context != nullptr && data != nullptr);
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_depth_limit(context.get(), kDepthLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);
  const int count = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, data.get(), context.get());
  if (count == PCRE2_ERROR_NOMATCH) return std::optional<ByteRange>();
  if (count < 0) {
    return OneLineError(Code::kInvalidArgument,
                        StrCat("split pattern \"", pattern_, "\" gave up at byte ", from, ": ",
                               Pcre2Message(count), "; shorten the text"));
  }
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
  return std::optional<ByteRange>(ByteRange{bounds[0], bounds[1]});
}

}  // namespace lserve
