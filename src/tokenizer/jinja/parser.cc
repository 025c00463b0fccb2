#include "tokenizer/jinja/parser.h"

#include "base/strings.h"
#include "tokenizer/jinja/expr_parser.h"

namespace lserve::jinja {
namespace {

using StmtPointer = std::unique_ptr<Stmt>;

class Parser {
 public:
  Parser(std::vector<Token> tokens, int max_depth) : in_(std::move(tokens), max_depth) {}

  Result<Template> Run() {
    Template out;
    out.body = LS_TRY(ParseBody({}));
    return out;
  }

 private:
  // Statements up to a tag named in `ends`, which is left with its name next; an empty list: up
  // to the end of the template.
  Result<Body> ParseBody(std::initializer_list<std::string_view> ends) {
    const ExprParser::Nesting nesting(in_);
    LS_TRY(in_.CheckDepth());
    Body body;
    while (in_.Peek().kind != TokenKind::kEnd) {
      if (in_.Peek().kind == TokenKind::kText) {
        StmtPointer text = Make(StmtKind::kText);
        text->text = in_.Next().text;
        body.push_back(std::move(text));
      } else if (in_.Peek().kind == TokenKind::kPrintBegin) {
        in_.Next();
        StmtPointer print = Make(StmtKind::kPrint);
        print->exprs.push_back(LS_TRY(in_.ExpressionOrTuple()));
        LS_TRY(in_.Expect(TokenKind::kPrintEnd, "}}"));
        body.push_back(std::move(print));
      } else {
        LS_TRY(in_.Expect(TokenKind::kTagBegin, "a tag"));
        for (const std::string_view end : ends) {
          if (in_.IsName(end)) return body;
        }
        body.push_back(LS_TRY(ParseTag()));
      }
    }
    if (ends.size() > 0) return in_.Error(StrCat("{% ", *(ends.end() - 1), " %}"));
    return body;
  }

  // A body and its end tag.
  Result<Body> ParseBodyTo(std::string_view end) {
    LS_TRY(EndTag());
    Body body = LS_TRY(ParseBody({end}));
    in_.Next();
    LS_TRY(EndTag());
    return body;
  }

  StmtPointer Make(StmtKind kind) const {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = in_.Peek().line;
    return stmt;
  }

  Status EndTag() { return in_.Expect(TokenKind::kTagEnd, "%}"); }

  Result<StmtPointer> ParseTag() {
    const std::string name = LS_TRY(in_.ExpectName());
    if (name == "if") return ParseIf();
    if (name == "for") return ParseFor();
    if (name == "set") return ParseSet();
    if (name == "macro") return ParseMacro();
    if (name == "call") return ParseCall();
    if (name == "filter") {
      StmtPointer stmt = Make(StmtKind::kFilterBody);
      stmt->exprs.push_back(LS_TRY(in_.FiltersOfTag(false)));
      stmt->bodies.push_back(LS_TRY(ParseBodyTo("endfilter")));
      return stmt;
    }
    if (name == "generation") {
      StmtPointer stmt = Make(StmtKind::kScope);
      stmt->bodies.push_back(LS_TRY(ParseBodyTo("endgeneration")));
      return stmt;
    }
    if (name == "break" || name == "continue") {
      StmtPointer stmt = Make(name == "break" ? StmtKind::kBreak : StmtKind::kContinue);
      if (loop_depth_ == 0) {
        return TemplateError(in_.Peek().line, StrCat("{% ", name, " %} outside a loop"),
                             "a loop around it");
      }
      LS_TRY(EndTag());
      return stmt;
    }
    return TemplateError(in_.Peek().line, StrCat("tag {% ", name, " %} is not implemented here"),
                         "if, for, set, macro, call, filter, generation, break or continue",
                         "write the template without it");
  }

  Result<StmtPointer> ParseIf() {
    StmtPointer stmt = Make(StmtKind::kIf);
    while (true) {
      stmt->exprs.push_back(LS_TRY(in_.ExpressionOrTuple()));
      LS_TRY(EndTag());
      stmt->bodies.push_back(LS_TRY(ParseBody({"elif", "else", "endif"})));
      const std::string next = in_.Next().text;
      if (next == "elif") continue;
      if (next == "else") stmt->bodies.push_back(LS_TRY(ParseBodyTo("endif")));
      if (next == "endif") LS_TRY(EndTag());
      return stmt;
    }
  }

  Result<StmtPointer> ParseFor() {
    StmtPointer stmt = Make(StmtKind::kFor);
    stmt->names = LS_TRY(ParseTargets());
    if (!in_.SkipName("in")) return in_.Error("'in'");
    stmt->exprs.push_back(LS_TRY(in_.ExpressionOrTuple(/*with_condition=*/false)));
    stmt->exprs.push_back(in_.SkipName("if") ? LS_TRY(in_.Expression()) : nullptr);
    if (in_.IsName("recursive")) {
      return TemplateError(in_.Peek().line, "recursive loops are not implemented",
                           "a loop without 'recursive'", "write the template without it");
    }
    LS_TRY(EndTag());
    ++loop_depth_;
    stmt->bodies.push_back(LS_TRY(ParseBody({"else", "endfor"})));
    --loop_depth_;
    if (in_.Next().text == "else") {
      stmt->bodies.push_back(LS_TRY(ParseBodyTo("endfor")));
    } else {
      LS_TRY(EndTag());
    }
    return stmt;
  }

  // "a", "a, b" or "(a, b)".
  Result<std::vector<std::string>> ParseTargets() {
    std::vector<std::string> names;
    const bool bracket = in_.SkipOperator("(");
    do {
      names.push_back(LS_TRY(in_.ExpectName()));
    } while (in_.SkipOperator(","));
    if (bracket) LS_TRY(in_.ExpectOperator(")"));
    return names;
  }

  Result<StmtPointer> ParseSet() {
    StmtPointer stmt = Make(StmtKind::kSet);
    if (in_.IsOperator(".", 1)) {
      std::string name = LS_TRY(in_.ExpectName());
      in_.Next();
      stmt->names.push_back(StrCat(name, ".", LS_TRY(in_.ExpectName())));
    } else {
      stmt->names = LS_TRY(ParseTargets());
    }
    if (in_.SkipOperator("=")) {
      stmt->exprs.push_back(LS_TRY(in_.ExpressionOrTuple()));
      LS_TRY(EndTag());
      return stmt;
    }
    if (stmt->names.size() != 1) return in_.Error("'='");
    stmt->kind = StmtKind::kSetBody;
    stmt->exprs.push_back(in_.IsOperator("|") ? LS_TRY(in_.FiltersOfTag(true)) : nullptr);
    stmt->bodies.push_back(LS_TRY(ParseBodyTo("endset")));
    return stmt;
  }

  Status ParseParameters(Stmt& stmt) {
    LS_TRY(in_.ExpectOperator("("));
    while (!in_.IsOperator(")")) {
      LS_TRY(in_.CheckArguments(stmt.names.size()));
      stmt.names.push_back(LS_TRY(in_.ExpectName()));
      stmt.exprs.push_back(in_.SkipOperator("=") ? LS_TRY(in_.Expression()) : nullptr);
      if (!in_.SkipOperator(",")) break;
    }
    return in_.ExpectOperator(")");
  }

  // The body of a macro is no part of the loop around it.
  Result<Body> ParseFunctionBody(std::string_view end) {
    const int loop_depth = loop_depth_;
    loop_depth_ = 0;
    Body body = LS_TRY(ParseBodyTo(end));
    loop_depth_ = loop_depth;
    return body;
  }

  Result<StmtPointer> ParseMacro() {
    StmtPointer stmt = Make(StmtKind::kMacro);
    stmt->text = LS_TRY(in_.ExpectName());
    LS_TRY(ParseParameters(*stmt));
    stmt->bodies.push_back(LS_TRY(ParseFunctionBody("endmacro")));
    return stmt;
  }

  // exprs[0] is the call, the defaults of the parameters follow it.
  Result<StmtPointer> ParseCall() {
    StmtPointer stmt = Make(StmtKind::kCallBody);
    stmt->exprs.push_back(nullptr);
    if (in_.IsOperator("(")) LS_TRY(ParseParameters(*stmt));
    stmt->exprs[0] = LS_TRY(in_.Expression());
    if (stmt->exprs[0]->kind != ExprKind::kCall) return in_.Error("a call before it");
    stmt->bodies.push_back(LS_TRY(ParseFunctionBody("endcall")));
    return stmt;
  }

  ExprParser in_;
  int loop_depth_ = 0;
};

}  // namespace

Result<Template> Parse(std::string_view source, int max_depth) {
  std::vector<Token> tokens = LS_TRY(Tokenize(source));
  return Parser(std::move(tokens), max_depth).Run();
}

}  // namespace lserve::jinja
