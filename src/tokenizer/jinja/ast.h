// The syntax tree of a template. Used by the parser and the interpreter only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/jinja/value.h"

namespace lserve::jinja {

enum class ExprKind : uint8_t {
  kConstant,   // constant
  kName,       // name
  kList,       // kids
  kDict,       // kids: key, value, key, value, ...
  kAttribute,  // kids[0] . name
  kItem,       // kids[0] [ kids[1] ]
  kSlice,      // kids[0] [ kids[1] : kids[2] : kids[3] ], any of the three null
  kCall,       // kids[0] ( kids[1..], keywords )
  kFilter,  // kids[0] | name ( kids[1..], keywords ); kids[0] null: the text of a set or filter tag
  kTest,    // kids[0] is name ( kids[1..], keywords )
  kNot,
  kAnd,
  kOr,
  kCompare,  // kids[0] names[0] kids[1] names[1] kids[2] ...
  kBinary,   // kids[0] name kids[1], arithmetic
  kConcat,   // kids joined by ~
  kNegate,
  kPlus,
  kCondition,  // kids[0] if kids[1] else kids[2], the last null without else
};

struct Expr;
using ExprPointer = std::unique_ptr<Expr>;

struct Expr {
  ExprKind kind = ExprKind::kConstant;
  int line = 1;
  std::string name;
  Value constant;
  std::vector<ExprPointer> kids;
  std::vector<std::string> names;
  std::vector<std::pair<std::string, ExprPointer>> keywords;
};

enum class StmtKind : uint8_t {
  kText,        // text
  kPrint,       // exprs[0]
  kIf,          // exprs[i] guards bodies[i]; one more body: else
  kFor,         // names in exprs[0] if exprs[1] (may be null): bodies[0] else bodies[1]
  kSet,         // names = exprs[0]; names of two parts: "ns.member"
  kSetBody,     // names[0] = text of bodies[0], through the filters of exprs[0] (may be null)
  kMacro,       // text: name; names: parameters; exprs: defaults, null without; bodies[0]
  kCallBody,    // exprs[0]: the call; names, bodies[0]: what caller() runs
  kFilterBody,  // exprs[0]: the filters; bodies[0]
  kScope,       // bodies[0] with its own variables (generation)
  kBreak,
  kContinue,
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;

struct Stmt {
  StmtKind kind = StmtKind::kText;
  int line = 1;
  std::string text;
  std::vector<std::string> names;
  std::vector<ExprPointer> exprs;
  std::vector<Body> bodies;
};

struct Template {
  Body body;
};

}  // namespace lserve::jinja
