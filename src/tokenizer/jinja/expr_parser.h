// The expression half of the parser; parser.cc has the tags.
#pragma once

#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "tokenizer/jinja/ast.h"
#include "tokenizer/jinja/lexer.h"

namespace lserve::jinja {

class ExprParser {
 public:
  ExprParser(std::vector<Token> tokens, int max_depth)
      : tokens_(std::move(tokens)), max_depth_(max_depth) {}

  // An expression, with or without `a if b else c` on top.
  Result<ExprPointer> Expression(bool with_condition = true);
  // "a, b" makes a list.
  Result<ExprPointer> ExpressionOrTuple(bool with_condition = true);
  Result<ExprPointer> Postfix(ExprPointer expr);
  // The filters of a set or filter tag: `name(...) | name | ...`, with or without a first bar.
  Result<ExprPointer> FiltersOfTag(bool first_has_bar);
  Result<ExprPointer> Primary();

  const Token& Peek(size_t ahead = 0) const;
  Token Next();
  bool IsOperator(std::string_view text, size_t ahead = 0) const;
  bool IsName(std::string_view text, size_t ahead = 0) const;
  bool SkipOperator(std::string_view text);
  bool SkipName(std::string_view text);
  Status ExpectOperator(std::string_view text);
  Result<std::string> ExpectName();
  Status Expect(TokenKind kind, std::string_view what);
  // The next token is not what was expected.
  Status Error(std::string_view expected) const;
  // Fails if a call or macro already has `count` arguments and may have no more.
  Status CheckArguments(size_t count) const;

  // Counts nesting while in scope: the tree is walked and freed by recursion.
  class Nesting {
   public:
    explicit Nesting(ExprParser& parser) : parser_(parser) { ++parser_.depth_; }
    ~Nesting() { --parser_.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    ExprParser& parser_;
  };
  Status CheckDepth() const;

 private:
  Result<ExprPointer> Or();
  Result<ExprPointer> And();
  Result<ExprPointer> Not();
  Result<ExprPointer> Compare();
  Result<ExprPointer> Sum();
  Result<ExprPointer> Concat();
  Result<ExprPointer> Product();
  Result<ExprPointer> Power();
  Result<ExprPointer> Unary(bool with_filter);
  Result<ExprPointer> WithFilters(ExprPointer expr);
  Result<ExprPointer> Test(ExprPointer expr);
  Result<ExprPointer> Subscript(ExprPointer expr);
  Status Arguments(Expr& call);
  Result<ExprPointer> Bracketed();
  ExprPointer Make(ExprKind kind) const;
  Result<ExprPointer> Number();
  Result<ExprPointer> Filters(ExprPointer expr, bool first_has_bar);
  // Left-associative chains become deep trees too: counts one more level until the expression ends.
  Status CountLink();

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int links_ = 0;
  int max_depth_;
};

}  // namespace lserve::jinja
