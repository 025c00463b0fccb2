#include "tokenizer/jinja/expr_parser.h"

#include <charconv>

#include "base/strings.h"

namespace lserve::jinja {
namespace {

// A chain such as a + b + c nests one level per link, without brackets to count. With kMaxLinks
// on the way down, no tree is higher than the nesting limit plus this.
constexpr int kMaxLinks = 400;
constexpr size_t kMaxArguments = 255;  // they are searched by name, one after another

}  // namespace

const Token& ExprParser::Peek(size_t ahead) const {
  return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
}
Token ExprParser::Next() {
  Token token = Peek();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}
bool ExprParser::IsOperator(std::string_view text, size_t ahead) const {
  return Peek(ahead).kind == TokenKind::kOperator && Peek(ahead).text == text;
}
bool ExprParser::IsName(std::string_view text, size_t ahead) const {
  return Peek(ahead).kind == TokenKind::kName && Peek(ahead).text == text;
}
bool ExprParser::SkipOperator(std::string_view text) {
  if (!IsOperator(text)) return false;
  Next();
  return true;
}
bool ExprParser::SkipName(std::string_view text) {
  if (!IsName(text)) return false;
  Next();
  return true;
}
Status ExprParser::ExpectOperator(std::string_view text) {
  if (SkipOperator(text)) return {};
  return Error(StrCat("'", text, "'"));
}
Result<std::string> ExprParser::ExpectName() {
  if (Peek().kind != TokenKind::kName) return Error("a name");
  return Next().text;
}
Status ExprParser::Expect(TokenKind kind, std::string_view what) {
  if (Peek().kind != kind) return Error(what);
  Next();
  return {};
}

Status ExprParser::Error(std::string_view expected) const {
  const Token& token = Peek();
  std::string found = "the end of the tag";
  if (token.kind == TokenKind::kEnd) found = "the end of the template";
  if (!token.text.empty()) found = StrCat("\"", token.text.substr(0, 40), "\"");
  return TemplateError(token.line, StrCat("found ", found), expected);
}

Status ExprParser::CheckArguments(size_t count) const {
  if (count < kMaxArguments) return {};
  return TemplateError(Peek().line, StrCat("more than ", kMaxArguments, " arguments"), "fewer",
                       "simplify the template");
}

Status ExprParser::CheckDepth() const {
  if (depth_ <= max_depth_) return {};
  return TemplateError(Peek().line, StrCat("nested deeper than ", max_depth_, " levels"), "fewer",
                       "simplify the template");
}

Status ExprParser::CountLink() {
  if (++links_ <= kMaxLinks) return {};
  return TemplateError(Peek().line, StrCat("expression with more than ", kMaxLinks, " operators"),
                       "fewer", "simplify the template");
}

ExprPointer ExprParser::Make(ExprKind kind) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = Peek().line;
  return expr;
}

Result<ExprPointer> ExprParser::ExpressionOrTuple(bool with_condition) {
  ExprPointer first = LS_TRY(Expression(with_condition));
  if (!IsOperator(",")) return first;
  ExprPointer tuple = Make(ExprKind::kList);
  tuple->kids.push_back(std::move(first));
  while (SkipOperator(",")) {
    if (Peek().kind == TokenKind::kTagEnd || Peek().kind == TokenKind::kPrintEnd ||
        IsOperator(")")) {
      break;
    }
    tuple->kids.push_back(LS_TRY(Expression(with_condition)));
  }
  return tuple;
}

Result<ExprPointer> ExprParser::Expression(bool with_condition) {
  const Nesting nesting(*this);
  LS_TRY(CheckDepth());
  const int links = links_;
  ExprPointer expr = LS_TRY(Or());
  while (with_condition && IsName("if")) {
    LS_TRY(CountLink());
    ExprPointer condition = Make(ExprKind::kCondition);
    Next();
    condition->kids.push_back(std::move(expr));
    condition->kids.push_back(LS_TRY(Or()));
    condition->kids.push_back(SkipName("else") ? LS_TRY(Expression()) : nullptr);
    expr = std::move(condition);
  }
  links_ = links;
  return expr;
}

Result<ExprPointer> ExprParser::Or() {
  ExprPointer left = LS_TRY(And());
  while (IsName("or")) {
    LS_TRY(CountLink());
    ExprPointer expr = Make(ExprKind::kOr);
    Next();
    expr->kids.push_back(std::move(left));
    expr->kids.push_back(LS_TRY(And()));
    left = std::move(expr);
  }
  return left;
}

Result<ExprPointer> ExprParser::And() {
  ExprPointer left = LS_TRY(Not());
  while (IsName("and")) {
    LS_TRY(CountLink());
    ExprPointer expr = Make(ExprKind::kAnd);
    Next();
    expr->kids.push_back(std::move(left));
    expr->kids.push_back(LS_TRY(Not()));
    left = std::move(expr);
  }
  return left;
}

Result<ExprPointer> ExprParser::Not() {
  if (!IsName("not")) return Compare();
  const Nesting nesting(*this);
  LS_TRY(CheckDepth());
  ExprPointer expr = Make(ExprKind::kNot);
  Next();
  expr->kids.push_back(LS_TRY(Not()));
  return expr;
}

Result<ExprPointer> ExprParser::Compare() {
  ExprPointer first = LS_TRY(Sum());
  ExprPointer expr;
  while (true) {
    std::string name;
    for (const std::string_view op : {"==", "!=", "<", "<=", ">", ">="}) {
      if (IsOperator(op)) name = op;
    }
    if (IsName("in")) name = "in";
    if (IsName("not") && IsName("in", 1)) {
      Next();
      name = "not in";
    }
    if (name.empty()) break;
    if (expr == nullptr) {
      expr = Make(ExprKind::kCompare);
      expr->kids.push_back(std::move(first));
    }
    Next();
    expr->names.push_back(std::move(name));
    expr->kids.push_back(LS_TRY(Sum()));
  }
  return expr == nullptr ? std::move(first) : std::move(expr);
}

Result<ExprPointer> ExprParser::Sum() {
  ExprPointer left = LS_TRY(Concat());
  while (IsOperator("+") || IsOperator("-")) {
    LS_TRY(CountLink());
    ExprPointer expr = Make(ExprKind::kBinary);
    expr->name = Next().text;
    expr->kids.push_back(std::move(left));
    expr->kids.push_back(LS_TRY(Concat()));
    left = std::move(expr);
  }
  return left;
}

Result<ExprPointer> ExprParser::Concat() {
  ExprPointer first = LS_TRY(Product());
  if (!IsOperator("~")) return first;
  ExprPointer expr = Make(ExprKind::kConcat);
  expr->kids.push_back(std::move(first));
  while (SkipOperator("~")) expr->kids.push_back(LS_TRY(Product()));
  return expr;
}

Result<ExprPointer> ExprParser::Product() {
  ExprPointer left = LS_TRY(Power());
  while (IsOperator("*") || IsOperator("/") || IsOperator("//") || IsOperator("%")) {
    LS_TRY(CountLink());
    ExprPointer expr = Make(ExprKind::kBinary);
    expr->name = Next().text;
    expr->kids.push_back(std::move(left));
    expr->kids.push_back(LS_TRY(Power()));
    left = std::move(expr);
  }
  return left;
}

Result<ExprPointer> ExprParser::Power() {
  ExprPointer left = LS_TRY(Unary(true));
  while (IsOperator("**")) {
    LS_TRY(CountLink());
    ExprPointer expr = Make(ExprKind::kBinary);
    expr->name = Next().text;
    expr->kids.push_back(std::move(left));
    expr->kids.push_back(LS_TRY(Unary(true)));
    left = std::move(expr);
  }
  return left;
}

Result<ExprPointer> ExprParser::Unary(bool with_filter) {
  const Nesting nesting(*this);
  LS_TRY(CheckDepth());
  ExprPointer expr;
  if (IsOperator("-") || IsOperator("+")) {
    expr = Make(IsOperator("-") ? ExprKind::kNegate : ExprKind::kPlus);
    Next();
    expr->kids.push_back(LS_TRY(Unary(false)));
  } else {
    expr = LS_TRY(Primary());
  }
  expr = LS_TRY(Postfix(std::move(expr)));
  return with_filter ? WithFilters(std::move(expr)) : Result<ExprPointer>(std::move(expr));
}

Result<ExprPointer> ExprParser::Number() {
  ExprPointer expr = Make(ExprKind::kConstant);
  const Token token = Next();
  const char* begin = token.text.data();
  const char* end = begin + token.text.size();
  std::from_chars_result result{};
  if (token.kind == TokenKind::kInt) {
    int64_t value = 0;
    result = std::from_chars(begin, end, value);
    expr->constant = MakeInt(value);
  } else {
    double value = 0;
    result = std::from_chars(begin, end, value);
    expr->constant = {value};
  }
  if (result.ec != std::errc() || result.ptr != end) {
    return TemplateError(
        token.line, StrCat("number ", token.text.substr(0, 40), " is out of range"), "64 bits");
  }
  return expr;
}

Result<ExprPointer> ExprParser::Primary() {
  const Token& token = Peek();
  if (token.kind == TokenKind::kInt || token.kind == TokenKind::kFloat) return Number();
  if (token.kind == TokenKind::kString) {
    ExprPointer expr = Make(ExprKind::kConstant);
    std::string text = Next().text;
    while (Peek().kind == TokenKind::kString) text += Next().text;  // 'a' 'b'
    expr->constant = MakePlain(std::move(text));
    return expr;
  }
  if (token.kind == TokenKind::kName) {
    ExprPointer expr = Make(ExprKind::kConstant);
    const std::string name = Next().text;
    if (name == "true" || name == "True") {
      expr->constant = MakeBool(true);
    } else if (name == "false" || name == "False") {
      expr->constant = MakeBool(false);
    } else if (name == "none" || name == "None") {
      expr->constant = {None{}};
    } else {
      expr->kind = ExprKind::kName;
      expr->name = name;
    }
    return expr;
  }
  if (token.kind == TokenKind::kOperator) return Bracketed();
  return Error("an expression");
}

Result<ExprPointer> ExprParser::Bracketed() {
  if (SkipOperator("(")) {
    if (IsOperator(")")) {
      ExprPointer empty = Make(ExprKind::kList);
      Next();
      return empty;
    }
    ExprPointer expr = LS_TRY(ExpressionOrTuple());
    LS_TRY(ExpectOperator(")"));
    return expr;
  }
  if (IsOperator("[")) {
    ExprPointer expr = Make(ExprKind::kList);
    Next();
    while (!IsOperator("]")) {
      expr->kids.push_back(LS_TRY(Expression()));
      if (!SkipOperator(",")) break;
    }
    LS_TRY(ExpectOperator("]"));
    return expr;
  }
  if (IsOperator("{")) {
    ExprPointer expr = Make(ExprKind::kDict);
    Next();
    while (!IsOperator("}")) {
      expr->kids.push_back(LS_TRY(Expression()));
      LS_TRY(ExpectOperator(":"));
      expr->kids.push_back(LS_TRY(Expression()));
      if (!SkipOperator(",")) break;
    }
    LS_TRY(ExpectOperator("}"));
    return expr;
  }
  return Error("an expression");
}

Result<ExprPointer> ExprParser::Postfix(ExprPointer expr) {
  while (IsOperator(".") || IsOperator("[") || IsOperator("(")) {
    LS_TRY(CountLink());
    if (IsOperator(".")) {
      ExprPointer outer = Make(ExprKind::kAttribute);
      Next();
      if (Peek().kind == TokenKind::kInt) {
        outer->kind = ExprKind::kItem;
        outer->kids.push_back(std::move(expr));
        outer->kids.push_back(LS_TRY(Number()));
      } else {
        outer->name = LS_TRY(ExpectName());
        outer->kids.push_back(std::move(expr));
      }
      expr = std::move(outer);
    } else if (IsOperator("[")) {
      expr = LS_TRY(Subscript(std::move(expr)));
    } else {
      ExprPointer call = Make(ExprKind::kCall);
      call->kids.push_back(std::move(expr));
      LS_TRY(Arguments(*call));
      expr = std::move(call);
    }
  }
  return expr;
}

Result<ExprPointer> ExprParser::Subscript(ExprPointer expr) {
  ExprPointer outer = Make(ExprKind::kItem);
  Next();
  outer->kids.push_back(std::move(expr));
  if (!IsOperator(":")) outer->kids.push_back(LS_TRY(Expression()));
  if (!IsOperator(":")) {
    LS_TRY(ExpectOperator("]"));
    return outer;
  }
  outer->kind = ExprKind::kSlice;
  if (outer->kids.size() == 1) outer->kids.push_back(nullptr);
  while (SkipOperator(":")) {
    const bool empty = IsOperator(":") || IsOperator("]");
    outer->kids.push_back(empty ? nullptr : LS_TRY(Expression()));
  }
  if (outer->kids.size() > 4) {
    return TemplateError(Peek().line, "slice of more than three parts", "start:end:step");
  }
  outer->kids.resize(4);
  LS_TRY(ExpectOperator("]"));
  return outer;
}

Status ExprParser::Arguments(Expr& call) {
  LS_TRY(ExpectOperator("("));
  while (!IsOperator(")")) {
    if (IsOperator("*") || IsOperator("**")) {
      return TemplateError(Peek().line, "unpacked arguments are not implemented",
                           "arguments one by one");
    }
    LS_TRY(CheckArguments(call.kids.size() + call.keywords.size()));
    if (Peek().kind == TokenKind::kName && IsOperator("=", 1)) {
      std::string name = Next().text;
      Next();
      call.keywords.emplace_back(std::move(name), LS_TRY(Expression()));
    } else {
      if (!call.keywords.empty()) return Error("a keyword argument");
      call.kids.push_back(LS_TRY(Expression()));
    }
    if (!SkipOperator(",")) break;
  }
  return ExpectOperator(")");
}

Result<ExprPointer> ExprParser::FiltersOfTag(bool first_has_bar) {
  const int links = links_;
  ExprPointer filters = LS_TRY(Filters(nullptr, first_has_bar));
  links_ = links;
  return filters;
}

Result<ExprPointer> ExprParser::Filters(ExprPointer expr, bool first_has_bar) {
  bool bar = first_has_bar;
  while (!bar || IsOperator("|")) {
    LS_TRY(CountLink());
    ExprPointer filter = Make(ExprKind::kFilter);
    if (bar) Next();
    bar = true;
    filter->name = LS_TRY(ExpectName());
    filter->kids.push_back(std::move(expr));
    if (IsOperator("(")) LS_TRY(Arguments(*filter));
    expr = std::move(filter);
  }
  return expr;
}

Result<ExprPointer> ExprParser::WithFilters(ExprPointer expr) {
  while (IsOperator("|") || IsName("is") || IsOperator("(")) {
    LS_TRY(CountLink());
    if (IsOperator("|")) {
      expr = LS_TRY(Filters(std::move(expr), true));
    } else if (IsName("is")) {
      expr = LS_TRY(Test(std::move(expr)));
    } else {
      ExprPointer call = Make(ExprKind::kCall);
      call->kids.push_back(std::move(expr));
      LS_TRY(Arguments(*call));
      expr = std::move(call);
    }
  }
  return expr;
}

Result<ExprPointer> ExprParser::Test(ExprPointer expr) {
  ExprPointer test = Make(ExprKind::kTest);
  Next();
  const bool negated = SkipName("not");
  test->name = LS_TRY(ExpectName());
  test->kids.push_back(std::move(expr));
  const TokenKind kind = Peek().kind;
  const bool starts_argument = kind == TokenKind::kName || kind == TokenKind::kString ||
                               kind == TokenKind::kInt || kind == TokenKind::kFloat ||
                               IsOperator("[") || IsOperator("{");
  if (IsOperator("(")) {
    LS_TRY(Arguments(*test));
  } else if (starts_argument && !IsName("else") && !IsName("or") && !IsName("and") &&
             !IsName("if") && !IsName("is")) {
    ExprPointer argument = LS_TRY(Primary());
    test->kids.push_back(LS_TRY(Postfix(std::move(argument))));
  }
  if (!negated) return test;
  ExprPointer outer = Make(ExprKind::kNot);
  outer->kids.push_back(std::move(test));
  return outer;
}

}  // namespace lserve::jinja
