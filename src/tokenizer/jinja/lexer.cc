#include "tokenizer/jinja/lexer.h"

#include <algorithm>
#include <array>

#include "base/strings.h"
#include "tokenizer/unicode.h"

namespace lserve::jinja {
namespace {

constexpr size_t kMaxTokens = size_t{1} << 20;
constexpr size_t kMaxNameBytes = 256;  // names are compared and copied at every use

bool IsSpace(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}
bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}
bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

// One kind of line end; one line end at the very end of the template is dropped.
std::string NormalizeLines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)), in_(source_) {}

  Result<std::vector<Token>> Run() {
    while (at_ < in_.size()) {
      const size_t open = FindOpen(at_);
      if (open == std::string_view::npos) {
        AddText(in_.substr(at_));
        break;
      }
      const char kind = in_[open + 1];
      const char sign = open + 2 < in_.size() ? in_[open + 2] : '\0';
      AddText(TrimBefore(in_.substr(at_, open - at_), kind, sign));
      CountLines(at_, open);
      at_ = open + (sign == '-' || sign == '+' ? 3 : 2);
      line_starting_ = false;
      if (kind == '#') {
        LS_TRY(Comment());
      } else if (kind == '%' && IsRaw()) {
        LS_TRY(Raw());
      } else {
        LS_TRY(Tag(kind));
      }
      if (tokens_.size() > kMaxTokens) return TooManyTokens();
    }
    Add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  Status TooManyTokens() const {
    return TemplateError(line_, StrCat("more than ", kMaxTokens, " tokens"), "fewer",
                         "simplify the template");
  }

  size_t FindOpen(size_t from) const {
    for (size_t i = from; i + 1 < in_.size(); ++i) {
      if (in_[i] == '{' && (in_[i + 1] == '%' || in_[i + 1] == '{' || in_[i + 1] == '#')) return i;
    }
    return std::string_view::npos;
  }

  void Add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  void AddText(std::string_view text) {
    if (!text.empty()) Add(TokenKind::kText, std::string(text));
  }
  void CountLines(size_t begin, size_t end) {
    line_ += static_cast<int>(std::count(in_.begin() + static_cast<ptrdiff_t>(begin),
                                         in_.begin() + static_cast<ptrdiff_t>(end), '\n'));
  }

  // `{%-` eats all white space before it; a tag or comment alone on its line eats its indentation.
  std::string_view TrimBefore(std::string_view text, char kind, char sign) const {
    if (sign == '-') {
      while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
      return text;
    }
    if (sign == '+' || kind == '{') return text;
    const size_t newline = text.rfind('\n');
    const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
    if (line_begin == 0 && !line_starting_) return text;
    const std::string_view indentation = text.substr(line_begin);
    if (std::all_of(indentation.begin(), indentation.end(), IsSpace)) {
      return text.substr(0, line_begin);
    }
    return text;
  }

  // After a closing mark: `-` eats white space, otherwise a tag or comment eats one line end.
  void TrimAfter(bool minus, bool eats_newline) {
    const size_t begin = at_;
    if (minus) {
      while (at_ < in_.size() && IsSpace(in_[at_])) ++at_;
    } else if (eats_newline && at_ < in_.size() && in_[at_] == '\n') {
      ++at_;
    }
    CountLines(begin, at_);
    line_starting_ = at_ > begin && in_[at_ - 1] == '\n';
  }

  Status Comment() {
    const size_t close = in_.find("#}", at_);
    if (close == std::string_view::npos)
      return TemplateError(line_, "comment without #}", "#} behind {#");
    const char sign = close > at_ ? in_[close - 1] : '\0';
    CountLines(at_, close);
    at_ = close + 2;
    TrimAfter(sign == '-', sign != '+');
    return {};
  }

  // Whether the tag that starts at at_ is {% raw %}; `end` is behind its end.
  bool MatchWordTag(size_t at, std::string_view word, size_t* end, bool* minus) const {
    while (at < in_.size() && IsSpace(in_[at])) ++at;
    if (in_.substr(at, word.size()) != word) return false;
    at += word.size();
    while (at < in_.size() && IsSpace(in_[at])) ++at;
    *minus = at < in_.size() && in_[at] == '-';
    if (at < in_.size() && (in_[at] == '-' || in_[at] == '+')) ++at;
    *end = at + 2;
    return in_.substr(at, 2) == "%}";
  }

  bool IsRaw() const {
    size_t end = 0;
    bool minus = false;
    return MatchWordTag(at_, "raw", &end, &minus);
  }

  Status Raw() {
    size_t end = 0;
    bool minus = false;
    MatchWordTag(at_, "raw", &end, &minus);
    CountLines(at_, end);
    at_ = end;
    TrimAfter(minus, true);
    for (size_t open = in_.find("{%", at_); open != std::string_view::npos;
         open = in_.find("{%", open + 2)) {
      const char sign = open + 2 < in_.size() ? in_[open + 2] : '\0';
      const size_t word = open + (sign == '-' || sign == '+' ? 3 : 2);
      if (!MatchWordTag(word, "endraw", &end, &minus)) continue;
      AddText(TrimBefore(in_.substr(at_, open - at_), '%', sign));
      CountLines(at_, end);
      at_ = end;
      TrimAfter(minus, true);
      return {};
    }
    return TemplateError(line_, "raw without endraw", "{% endraw %}");
  }

  Status Tag(char kind) {
    const bool print = kind == '{';
    const std::string_view close = print ? "}}" : "%}";
    Add(print ? TokenKind::kPrintBegin : TokenKind::kTagBegin, "");
    std::vector<char> open_brackets;
    while (true) {
      while (at_ < in_.size() && IsSpace(in_[at_])) {
        if (in_[at_] == '\n') ++line_;
        ++at_;
      }
      if (at_ >= in_.size())
        return TemplateError(line_, StrCat("tag without ", close), StrCat(close, " at its end"));
      const char sign = in_[at_];
      const bool signed_close =
          (sign == '-' || (sign == '+' && !print)) && in_.substr(at_ + 1, 2) == close;
      // Inside brackets "}}" closes two mappings, not the tag.
      if (open_brackets.empty() && (signed_close || in_.substr(at_, 2) == close)) {
        at_ += signed_close ? 3 : 2;
        Add(print ? TokenKind::kPrintEnd : TokenKind::kTagEnd, "");
        TrimAfter(signed_close && sign == '-', !print && !(signed_close && sign == '+'));
        return {};
      }
      LS_TRY(Inner(open_brackets));
      if (tokens_.size() > kMaxTokens) return TooManyTokens();
    }
  }

  Status Inner(std::vector<char>& open_brackets) {
    const char c = in_[at_];
    if (IsNameStart(c)) {
      size_t end = at_;
      while (end < in_.size() && (IsNameStart(in_[end]) || IsDigit(in_[end]))) ++end;
      if (end - at_ > kMaxNameBytes) {
        return TemplateError(line_, StrCat("name of ", end - at_, " bytes"),
                             StrCat("at most ", kMaxNameBytes));
      }
      Add(TokenKind::kName, std::string(in_.substr(at_, end - at_)));
      at_ = end;
      return {};
    }
    if (IsDigit(c)) return Number();
    if (c == '"' || c == '\'') return String(c);
    constexpr std::array<std::string_view, 6> kTwo = {"==", "!=", "<=", ">=", "//", "**"};
    for (const std::string_view two : kTwo) {
      if (in_.substr(at_, 2) == two) {
        Add(TokenKind::kOperator, std::string(two));
        at_ += 2;
        return {};
      }
    }
    if (std::string_view("+-*/%~<>=()[]{}.,:|").find(c) == std::string_view::npos) {
      const size_t size = DecodeAt(in_, at_).bytes;
      return TemplateError(line_, StrCat("unexpected character '", in_.substr(at_, size), "'"),
                           "a name, number, string or operator of Jinja2");
    }
    if (c == '(' || c == '[' || c == '{') open_brackets.push_back(c);
    if (c == ')' || c == ']' || c == '}') {
      const char wanted = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (open_brackets.empty() || open_brackets.back() != wanted) {
        return TemplateError(line_, StrCat("unbalanced '", c, "'"),
                             StrCat("a '", wanted, "' before it"));
      }
      open_brackets.pop_back();
    }
    Add(TokenKind::kOperator, std::string(1, c));
    ++at_;
    return {};
  }

  Status Number() {
    size_t end = at_;
    const auto digits = [&] {
      while (end < in_.size() && (IsDigit(in_[end]) || in_[end] == '_')) ++end;
    };
    digits();
    bool is_float = false;
    if (end + 1 < in_.size() && in_[end] == '.' && IsDigit(in_[end + 1])) {
      is_float = true;
      ++end;
      digits();
    }
    if (end < in_.size() && (in_[end] == 'e' || in_[end] == 'E')) {
      const size_t sign = end + 1 < in_.size() && (in_[end + 1] == '+' || in_[end + 1] == '-');
      if (end + 1 + sign < in_.size() && IsDigit(in_[end + 1 + sign])) {
        is_float = true;
        end += 1 + sign;
        digits();
      }
    }
    std::string text(in_.substr(at_, end - at_));
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    Add(is_float ? TokenKind::kFloat : TokenKind::kInt, std::move(text));
    at_ = end;
    return {};
  }

  Status String(char quote) {
    std::string text;
    const int line = line_;
    size_t i = at_ + 1;
    for (; i < in_.size() && in_[i] != quote; ++i) {
      if (in_[i] == '\n') ++line_;
      if (in_[i] != '\\') {
        text.push_back(in_[i]);
      } else {
        LS_TRY(EscapeSequence(i, text));
      }
    }
    if (i >= in_.size()) {
      return TemplateError(line, "string without its closing quote", StrCat("a ", quote));
    }
    at_ = i + 1;
    tokens_.push_back({TokenKind::kString, std::move(text), line});
    return {};
  }

  // Python's escapes; `i` is on the backslash and ends on the last character.
  Status EscapeSequence(size_t& i, std::string& text) {
    if (i + 1 >= in_.size()) {
      return TemplateError(line_, "string without its closing quote ends in a backslash",
                           "an escape and a quote");
    }
    const char c = in_[++i];
    constexpr std::string_view kFrom = "abfnrtv\\'\"";
    constexpr std::string_view kTo = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t known = kFrom.find(c); known != std::string_view::npos) {
      text.push_back(kTo[known]);
      return {};
    }
    if (c == '\n') {
      ++line_;
      return {};  // a line that goes on
    }
    const size_t num_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (num_digits == 0) {
      if (IsDigit(c) || c == 'N') {
        return TemplateError(line_, StrCat("escape \\", c, " in a string is not implemented"),
                             "\\x, \\u, \\U or one letter");
      }
      text.append({'\\', c});
      return {};
    }
    uint32_t value = 0;
    for (size_t k = 0; k < num_digits; ++k) {
      const char digit = i + 1 < in_.size() ? in_[++i] : '\0';
      const size_t hex =
          std::string_view("0123456789abcdef")
              .find(static_cast<char>(digit >= 'A' && digit <= 'F' ? digit + 32 : digit));
      if (hex == std::string_view::npos) {
        return TemplateError(line_, StrCat("escape \\", c, " in a string is broken"),
                             StrCat(num_digits, " hexadecimal digits"));
      }
      value = (value << 4) | static_cast<uint32_t>(hex);
    }
    if (value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) {
      return TemplateError(line_, StrCat("escape of character number ", value, " in a string"),
                           "a Unicode character");
    }
    AppendUtf8(value, text);
    return {};
  }

  std::string source_;
  std::string_view in_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

Status TemplateError(int line,
                     std::string_view what,
                     std::string_view expected,
                     std::string_view advice) {
  // What a template or message says may hold anything: it stays one line of reasonable length.
  constexpr size_t kMaxWhatBytes = 300;
  std::string shown;
  for (size_t i = 0; i < what.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(what[i]);
    if (shown.size() >= kMaxWhatBytes && (c & 0xc0) != 0x80) {
      shown += "...";
      break;
    }
    shown.push_back(c < 0x20 || c == 0x7f ? ' ' : what[i]);
  }
  return Status(Code::kInvalidArgument,
                StrCat("line ", line, ": ", shown, "; expected ", expected, "; ", advice));
}

Result<std::vector<Token>> Tokenize(std::string_view source) {
  return Lexer(NormalizeLines(source)).Run();
}

}  // namespace lserve::jinja
