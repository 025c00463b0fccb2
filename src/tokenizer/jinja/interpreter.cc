#include "tokenizer/jinja/interpreter.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/strings.h"
#include "tokenizer/jinja/runtime.h"
#include "tokenizer/unicode.h"

namespace lserve::jinja {
namespace {

using ScopePointer = std::shared_ptr<Scope>;

enum class Flow : uint8_t { kNext, kBreak, kContinue };

class Interpreter {
 public:
  Interpreter(const ChatTemplateLimits& limits, std::optional<ChatDate> date)
      : runtime_(limits, date), scope_(std::make_shared<Scope>()) {}

  Result<RenderedPrompt> Run(const Template& source, const Dict& variables) {
    for (const auto& [name, value] : variables) LS_TRY(SetName(name.text, value));
    const ScopePointer global = scope_;
    scope_ = std::make_shared<Scope>(Scope{global, {}});
    Str out;
    LS_TRY(RunBody(source.body, out));
    return RenderedPrompt{std::move(out.text), std::move(out.user)};
  }

 private:
  // Counts what nests on the native stack while in scope.
  class Nesting {
   public:
    explicit Nesting(int& depth) : depth_(depth) { ++depth_; }
    ~Nesting() { --depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    int& depth_;
  };

  // Puts a fresh scope in place and takes it away again.
  class InScope {
   public:
    InScope(Interpreter& interpreter, ScopePointer parent)
        : interpreter_(interpreter), saved_(interpreter.scope_) {
      interpreter.scope_ = std::make_shared<Scope>(Scope{std::move(parent), {}});
    }
    ~InScope() { interpreter_.scope_ = std::move(saved_); }
    InScope(const InScope&) = delete;
    InScope& operator=(const InScope&) = delete;

   private:
    Interpreter& interpreter_;
    ScopePointer saved_;
  };

  // The parser bounds how deep one body nests; macros that call each other multiply that.
  Status CheckNesting() const {
    if (nesting_ <= kMaxNesting) return {};
    return runtime_.Error(StrCat("macros nest expressions deeper than ", kMaxNesting, " levels"),
                          "fewer", "simplify the template");
  }

  Status SetName(std::string_view name, Value value) {
    LS_TRY(runtime_.Step(scope_->names.size() / 8));
    for (auto& [known, slot] : scope_->names) {
      if (known == name) {
        slot = std::move(value);
        return {};
      }
    }
    scope_->names.emplace_back(name, std::move(value));
    return {};
  }

  Result<Value> GetName(const std::string& name) {
    for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->parent.get()) {
      LS_TRY(runtime_.Step(scope->names.size() / 8));
      for (const auto& [known, value] : scope->names) {
        if (known == name) return value;
      }
    }
    if (IsFunction(name)) {
      return Value{std::make_shared<const Callable>(Callable{name, {}, nullptr, {}})};
    }
    return Value{Undefined{name}};
  }

  Status Emit(Str& out, const Str& text) {
    LS_TRY(runtime_.Charge(text.text.size()));
    out.Append(text);
    if (out.text.size() <= runtime_.limits().max_output_bytes) return {};
    return runtime_.Error(
        StrCat("output of more than ", out.text.size() - text.text.size(), " bytes"),
        StrCat("at most ", runtime_.limits().max_output_bytes), "shorten the messages");
  }

  Result<Flow> RunBody(const Body& body, Str& out) {
    const Nesting nesting(nesting_);
    LS_TRY(CheckNesting());
    for (const auto& stmt : body) {
      runtime_.set_line(stmt->line);
      LS_TRY(runtime_.Step());
      const Flow flow = LS_TRY(RunStmt(*stmt, out));
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  Result<Flow> RunStmt(const Stmt& stmt, Str& out) {
    switch (stmt.kind) {
      case StmtKind::kText:
        LS_TRY(Emit(out, Str{stmt.text, {}}));
        return Flow::kNext;
      case StmtKind::kPrint: {
        const Value value = LS_TRY(Eval(*stmt.exprs[0]));
        if (value.is_string()) {
          LS_TRY(Emit(out, value.str()));
        } else {
          const Str text = LS_TRY(runtime_.Text(value));
          LS_TRY(Emit(out, text));
        }
        return Flow::kNext;
      }
      case StmtKind::kIf:
        for (size_t i = 0; i < stmt.exprs.size(); ++i) {
          if (IsTrue(LS_TRY(Eval(*stmt.exprs[i])))) return RunBody(stmt.bodies[i], out);
        }
        if (stmt.bodies.size() > stmt.exprs.size()) return RunBody(stmt.bodies.back(), out);
        return Flow::kNext;
      case StmtKind::kFor:
        return RunFor(stmt, out);
      case StmtKind::kSet:
        LS_TRY(RunSet(stmt));
        return Flow::kNext;
      case StmtKind::kSetBody:
        LS_TRY(RunSetBody(stmt));
        return Flow::kNext;
      case StmtKind::kMacro:
        LS_TRY(SetName(stmt.text, MakeMacro(stmt, stmt.text)));
        return Flow::kNext;
      case StmtKind::kCallBody: {
        const Value caller = MakeMacro(stmt, "caller");
        const Value result = LS_TRY(EvalCall(*stmt.exprs[0], &caller));
        const Str text = LS_TRY(runtime_.Text(result));
        LS_TRY(Emit(out, text));
        return Flow::kNext;
      }
      case StmtKind::kFilterBody: {
        const Value filtered = LS_TRY(RunFiltered(stmt));
        const Str text = LS_TRY(runtime_.Text(filtered));
        LS_TRY(Emit(out, text));
        return Flow::kNext;
      }
      case StmtKind::kScope: {
        const InScope scope(*this, scope_);
        return RunBody(stmt.bodies[0], out);
      }
      case StmtKind::kBreak:
        return Flow::kBreak;
      case StmtKind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  Value MakeMacro(const Stmt& stmt, const std::string& name) {
    return {std::make_shared<const Callable>(Callable{name, {}, &stmt, scope_})};
  }

  Status Assign(const std::vector<std::string>& names, const Value& value) {
    if (names.size() == 1) {
      return SetName(names[0], value);
    }
    const List items = LS_TRY(runtime_.Items(value));
    if (items.size() != names.size()) {
      return runtime_.Error(
          StrCat("unpacks ", items.size(), " values into ", names.size(), " names"),
          "as many names as values");
    }
    for (size_t i = 0; i < names.size(); ++i) LS_TRY(SetName(names[i], items[i]));
    return {};
  }

  Status RunSet(const Stmt& stmt) {
    const Value value = LS_TRY(Eval(*stmt.exprs[0]));
    if (stmt.names.size() == 1 && stmt.names[0].find('.') != std::string::npos) {
      return SetMember(stmt.names[0], value);
    }
    return Assign(stmt.names, value);
  }

  Status SetMember(const std::string& target, const Value& value) {
    const size_t dot = target.find('.');
    const Value object = LS_TRY(GetName(target.substr(0, dot)));
    if (!object.is_namespace()) {
      return runtime_.Error(StrCat("can not set ", target, " of ", TypeName(object)),
                            "a namespace");
    }
    return runtime_.SetMember(object.ns().members, Str{target.substr(dot + 1), {}}, value);
  }

  Result<Value> RunFiltered(const Stmt& stmt) {
    Str text;
    {
      const InScope scope(*this, scope_);
      LS_TRY(RunBody(stmt.bodies[0], text));
    }
    Value value = MakeString(std::move(text));
    if (stmt.exprs[0] == nullptr) return value;
    return EvalFilter(*stmt.exprs[0], &value);
  }

  Status RunSetBody(const Stmt& stmt) {
    const Value value = LS_TRY(RunFiltered(stmt));
    if (stmt.names[0].find('.') != std::string::npos) return SetMember(stmt.names[0], value);
    return SetName(stmt.names[0], value);
  }

  // The items that pass the loop's condition.
  Result<List> LoopItems(const Stmt& stmt) {
    const Value value = LS_TRY(Eval(*stmt.exprs[0]));
    List all = LS_TRY(runtime_.Items(value));
    if (stmt.exprs[1] == nullptr) return all;
    List items;
    for (const Value& item : all) {
      const InScope scope(*this, scope_);
      LS_TRY(Assign(stmt.names, item));
      if (IsTrue(LS_TRY(Eval(*stmt.exprs[1])))) items.push_back(item);
    }
    return items;
  }

  Result<Value> LoopVariable(const List& items, size_t i) {
    const int64_t size = static_cast<int64_t>(items.size());
    const int64_t index = static_cast<int64_t>(i);
    Dict loop;
    const auto add = [&](const char* name, Value value) {
      loop.emplace_back(Str{name, {}}, std::move(value));
    };
    add("index", MakeInt(index + 1));
    add("index0", MakeInt(index));
    add("revindex", MakeInt(size - index));
    add("revindex0", MakeInt(size - index - 1));
    add("first", MakeBool(i == 0));
    add("last", MakeBool(i + 1 == items.size()));
    add("length", MakeInt(size));
    add("depth", MakeInt(1));
    add("depth0", MakeInt(0));
    add("previtem", i > 0 ? items[i - 1] : Value{Undefined{"previtem"}});
    add("nextitem", i + 1 < items.size() ? items[i + 1] : Value{Undefined{"nextitem"}});
    add("cycle",
        {std::make_shared<const Callable>(Callable{"loop.cycle", MakeInt(index), nullptr, {}})});
    return runtime_.NewDict(std::move(loop));
  }

  Result<Flow> RunFor(const Stmt& stmt, Str& out) {
    const List items = LS_TRY(LoopItems(stmt));
    if (items.empty() && stmt.bodies.size() > 1) {
      const InScope scope(*this, scope_);
      return RunBody(stmt.bodies[1], out);
    }
    for (size_t i = 0; i < items.size(); ++i) {
      LS_TRY(runtime_.Step());
      const InScope scope(*this, scope_);
      LS_TRY(SetName("loop", LS_TRY(LoopVariable(items, i))));
      LS_TRY(Assign(stmt.names, items[i]));
      if (LS_TRY(RunBody(stmt.bodies[0], out)) == Flow::kBreak) break;
    }
    return Flow::kNext;
  }

  // ---- expressions ----

  Result<Value> Eval(const Expr& expr) {
    const Nesting nesting(nesting_);
    LS_TRY(CheckNesting());
    LS_TRY(runtime_.Step());
    runtime_.set_line(expr.line);
    switch (expr.kind) {
      case ExprKind::kConstant:
        return expr.constant;
      case ExprKind::kName:
        return GetName(expr.name);
      case ExprKind::kList: {
        List list;
        for (const auto& kid : expr.kids) list.push_back(LS_TRY(Eval(*kid)));
        return runtime_.NewList(std::move(list));
      }
      case ExprKind::kDict:
        return EvalDict(expr);
      case ExprKind::kAttribute: {
        const Value object = LS_TRY(Eval(*expr.kids[0]));
        return runtime_.Member(object, expr.name, /*attribute=*/true);
      }
      case ExprKind::kItem: {
        const Value object = LS_TRY(Eval(*expr.kids[0]));
        return runtime_.Item(object, LS_TRY(Eval(*expr.kids[1])));
      }
      case ExprKind::kSlice:
        return EvalSlice(expr);
      case ExprKind::kCall:
        return EvalCall(expr, nullptr);
      case ExprKind::kFilter:
        return EvalFilter(expr, nullptr);
      case ExprKind::kTest: {
        const Value input = LS_TRY(Eval(*expr.kids[0]));
        const Arguments arguments = LS_TRY(EvalArguments(expr));
        return MakeBool(LS_TRY(ApplyTest(runtime_, expr.name, input, arguments)));
      }
      case ExprKind::kNot:
        return MakeBool(!IsTrue(LS_TRY(Eval(*expr.kids[0]))));
      case ExprKind::kAnd:
      case ExprKind::kOr: {
        const Value left = LS_TRY(Eval(*expr.kids[0]));
        const bool done = IsTrue(left) == (expr.kind == ExprKind::kOr);
        return done ? left : LS_TRY(Eval(*expr.kids[1]));
      }
      case ExprKind::kCompare:
        return EvalCompare(expr);
      case ExprKind::kBinary:
        return EvalBinary(expr);
      case ExprKind::kConcat:
        return EvalConcat(expr);
      case ExprKind::kNegate:
      case ExprKind::kPlus:
        return EvalSign(expr);
      case ExprKind::kCondition: {
        const bool yes = IsTrue(LS_TRY(Eval(*expr.kids[1])));
        if (yes) return Eval(*expr.kids[0]);
        if (expr.kids[2] == nullptr) return Value{Undefined{"the inline if without else"}};
        return Eval(*expr.kids[2]);
      }
    }
    return Value{};
  }

  Result<Value> EvalDict(const Expr& expr) {
    Dict dict;
    for (size_t i = 0; i < expr.kids.size(); i += 2) {
      const Value key = LS_TRY(Eval(*expr.kids[i]));
      if (!key.is_string()) {
        return runtime_.Error(StrCat("mapping key is ", TypeName(key)), "a string");
      }
      LS_TRY(runtime_.SetMember(dict, key.str(), LS_TRY(Eval(*expr.kids[i + 1]))));
    }
    return runtime_.NewDict(std::move(dict));
  }

  Result<Arguments> EvalArguments(const Expr& expr) {
    Arguments arguments;
    for (size_t i = 1; i < expr.kids.size(); ++i) {
      arguments.positional.push_back(LS_TRY(Eval(*expr.kids[i])));
    }
    for (const auto& [name, kid] : expr.keywords) {
      arguments.keywords.emplace_back(name, LS_TRY(Eval(*kid)));
    }
    runtime_.set_line(expr.line);
    return arguments;
  }

  // `tag_text`: what the innermost filter of a set or filter tag gets.
  Result<Value> EvalFilter(const Expr& expr, const Value* tag_text) {
    const Nesting nesting(nesting_);
    LS_TRY(CheckNesting());
    LS_TRY(runtime_.Step());
    Value input;
    if (expr.kids[0] == nullptr) {
      LS_CHECK(tag_text != nullptr) << "a filter without input outside of a filter tag";
      input = *tag_text;
    } else if (tag_text != nullptr && expr.kids[0]->kind == ExprKind::kFilter) {
      input = LS_TRY(EvalFilter(*expr.kids[0], tag_text));
    } else {
      input = LS_TRY(Eval(*expr.kids[0]));
    }
    const Arguments arguments = LS_TRY(EvalArguments(expr));
    return ApplyFilter(runtime_, expr.name, input, arguments);
  }

  Result<Value> EvalCall(const Expr& expr, const Value* caller) {
    const Value callee = LS_TRY(Eval(*expr.kids[0]));
    const Arguments arguments = LS_TRY(EvalArguments(expr));
    if (!callee.is_callable()) {
      const std::string name =
          callee.is_undefined() ? std::get<Undefined>(callee.data).name : TypeName(callee);
      return runtime_.Error(StrCat("'", name, "' is no function this engine knows"),
                            "a macro, a method or range, namespace, dict, raise_exception or "
                            "strftime_now",
                            "write the template without it");
    }
    const Callable& function = callee.callable();
    if (function.macro != nullptr) return CallMacro(function, arguments, caller);
    if (function.name == "loop.cycle") {
      if (arguments.positional.empty()) {
        return runtime_.Error("loop.cycle without values", "at least one");
      }
      const size_t index = static_cast<size_t>(function.self.integral());
      return arguments.positional[index % arguments.positional.size()];
    }
    if (!function.self.is_undefined()) {
      return CallMethod(runtime_, function.self, function.name, arguments);
    }
    return CallFunction(runtime_, function.name, arguments);
  }

  Result<Value> CallMacro(const Callable& function,
                          const Arguments& arguments,
                          const Value* caller) {
    const Nesting nesting(macro_depth_);
    if (macro_depth_ > kMaxMacroDepth) {
      return runtime_.Error(
          StrCat("macros call each other deeper than ", kMaxMacroDepth, " levels"), "fewer",
          "simplify the template");
    }
    const Stmt& macro = *function.macro;
    // The call tag keeps its call in exprs[0], before the defaults.
    const size_t first_default = macro.kind == StmtKind::kCallBody ? 1 : 0;
    if (arguments.positional.size() > macro.names.size()) {
      return runtime_.Error(StrCat("macro '", function.name, "' takes ", macro.names.size(),
                                   " arguments and is called with ", arguments.positional.size()),
                            "as many as it takes");
    }
    for (const auto& [name, value] : arguments.keywords) {
      if (std::find(macro.names.begin(), macro.names.end(), name) == macro.names.end()) {
        return runtime_.Error(StrCat("macro '", function.name, "' has no argument '", name, "'"),
                              "one that it has");
      }
    }
    ScopePointer defined_in = function.scope.lock();
    if (defined_in == nullptr) {
      return runtime_.Error(StrCat("macro '", function.name, "' has outlived its loop"),
                            "a call where it was defined");
    }
    const InScope scope(*this, std::move(defined_in));
    for (size_t i = 0; i < macro.names.size(); ++i) {
      const Expr* otherwise = macro.exprs[first_default + i].get();
      if (const Value* given = arguments.Find(i, macro.names[i])) {
        LS_TRY(SetName(macro.names[i], *given));
      } else if (otherwise != nullptr) {
        LS_TRY(SetName(macro.names[i], LS_TRY(Eval(*otherwise))));
      } else {
        LS_TRY(SetName(macro.names[i], Value{Undefined{macro.names[i]}}));
      }
    }
    if (caller != nullptr) LS_TRY(SetName("caller", *caller));
    Str out;
    LS_TRY(RunBody(macro.bodies[0], out));
    return MakeString(std::move(out));
  }

  // One end of a slice, as Python clips it.
  Result<int64_t> SliceEnd(const Expr* expr, int64_t otherwise, int64_t size, bool backward) {
    if (expr == nullptr) return otherwise;
    const Value value = LS_TRY(Eval(*expr));
    if (value.is_none()) return otherwise;
    int64_t index = LS_TRY(runtime_.Integer(value, "slice bound"));
    if (index < 0) index = index < -size ? -1 - size : index + size;
    return std::clamp<int64_t>(index, backward ? -1 : 0, backward ? size - 1 : size);
  }

  Result<Value> EvalSlice(const Expr& expr) {
    const Value object = LS_TRY(Eval(*expr.kids[0]));
    if (!object.is_list() && !object.is_string()) {
      return runtime_.Error(StrCat("slice of ", TypeName(object)), "a list or string");
    }
    int64_t step = 1;
    if (expr.kids[3] != nullptr) {
      const Value value = LS_TRY(Eval(*expr.kids[3]));
      if (!value.is_none()) step = LS_TRY(runtime_.Integer(value, "slice step"));
    }
    if (step == 0) return runtime_.Error("slice step is 0", "another integer");
    std::vector<size_t> offsets;  // strings: where each character starts, and the end
    if (object.is_string()) {
      const std::string& text = object.str().text;
      LS_TRY(runtime_.Scan(text.size()));
      for (size_t at = 0; at < text.size(); at += DecodeAt(text, at).bytes) offsets.push_back(at);
      offsets.push_back(text.size());
    }
    const int64_t size =
        static_cast<int64_t>(object.is_list() ? object.list().size() : offsets.size() - 1);
    const bool backward = step < 0;
    const int64_t begin =
        LS_TRY(SliceEnd(expr.kids[1].get(), backward ? size - 1 : 0, size, backward));
    const int64_t end = LS_TRY(SliceEnd(expr.kids[2].get(), backward ? -1 : size, size, backward));
    if (object.is_string() && step == 1) {
      const Str& s = object.str();
      return runtime_.NewString(begin < end ? s.Sub(offsets[static_cast<size_t>(begin)],
                                                    offsets[static_cast<size_t>(end)])
                                            : Str{});
    }
    List list;
    Str text;
    step = std::clamp<int64_t>(step, -size - 1, size + 1);
    for (int64_t i = begin; backward ? i > end : i < end; i += step) {
      LS_TRY(runtime_.Step());
      const size_t index = static_cast<size_t>(i);
      if (object.is_list()) {
        list.push_back(object.list()[index]);
      } else {
        text.Append(object.str().Sub(offsets[index], offsets[index + 1]));
      }
    }
    return object.is_list() ? runtime_.NewList(std::move(list))
                            : runtime_.NewString(std::move(text));
  }

  Result<Value> EvalCompare(const Expr& expr) {
    Value left = LS_TRY(Eval(*expr.kids[0]));
    for (size_t i = 0; i < expr.names.size(); ++i) {
      Value right = LS_TRY(Eval(*expr.kids[i + 1]));
      runtime_.set_line(expr.line);
      if (!LS_TRY(CompareOnce(left, expr.names[i], right))) return MakeBool(false);
      left = std::move(right);
    }
    return MakeBool(true);
  }

  Result<bool> CompareOnce(const Value& left, std::string_view op, const Value& right) {
    if (op == "==") return runtime_.Equal(left, right);
    if (op == "!=") return !LS_TRY(runtime_.Equal(left, right));
    if (op == "in") return runtime_.Contains(right, left);
    if (op == "not in") return !LS_TRY(runtime_.Contains(right, left));
    const int order = LS_TRY(runtime_.Order(left, right));
    if (op == "<") return order < 0;
    if (op == "<=") return order <= 0;
    if (op == ">") return order > 0;
    return order >= 0;
  }

  Result<Value> EvalConcat(const Expr& expr) {
    Str out;
    for (const auto& kid : expr.kids) {
      const Value value = LS_TRY(Eval(*kid));
      out.Append(LS_TRY(runtime_.Text(value)));
    }
    return runtime_.NewString(std::move(out));
  }

  Result<Value> EvalSign(const Expr& expr) {
    const Value value = LS_TRY(Eval(*expr.kids[0]));
    if (!value.is_number()) {
      return runtime_.Error(StrCat("sign before ", TypeName(value)), "a number");
    }
    const bool negate = expr.kind == ExprKind::kNegate;
    if (value.is_float()) return Value{negate ? -value.number() : value.number()};
    if (!negate) return MakeInt(value.integral());
    int64_t result = 0;
    if (__builtin_sub_overflow(int64_t{0}, value.integral(), &result)) return Overflow();
    return MakeInt(result);
  }

  Status Overflow() const {
    return runtime_.Error("integer beyond 64 bits", "a smaller one, or a float");
  }

  Result<Value> EvalBinary(const Expr& expr) {
    const Value left = LS_TRY(Eval(*expr.kids[0]));
    const Value right = LS_TRY(Eval(*expr.kids[1]));
    runtime_.set_line(expr.line);
    const std::string_view op = expr.name;
    if (op == "+" && left.is_string() && right.is_string()) {
      LS_TRY(runtime_.Charge(left.str().text.size() + right.str().text.size()));
      Str text = left.str();
      text.Append(right.str());
      LS_TRY(runtime_.Work(text.user.size() * sizeof(ByteRange)));
      return MakeString(std::move(text));
    }
    if (op == "+" && left.is_list() && right.is_list()) {
      LS_TRY(runtime_.Step(left.list().size() + right.list().size()));
      List list = left.list();
      list.insert(list.end(), right.list().begin(), right.list().end());
      return runtime_.NewList(std::move(list));
    }
    if (op == "*" && left.is_string() && right.is_integral()) return Repeat(left, right);
    if (op == "*" && right.is_string() && left.is_integral()) return Repeat(right, left);
    if (left.is_integral() && right.is_integral()) {
      return IntegerBinary(left.integral(), op, right.integral());
    }
    if (left.is_number() && right.is_number()) {
      return FloatBinary(left.number(), op, right.number());
    }
    const auto describe = [](const Value& value) -> std::string {
      if (!value.is_undefined()) return TypeName(value);
      return StrCat("'", std::get<Undefined>(value.data).name, "', which is undefined");
    };
    return runtime_.Error(StrCat("can not do ", describe(left), " ", op, " ", describe(right)),
                          "numbers, or two strings or lists to add");
  }

  Result<Value> Repeat(const Value& text, const Value& times) {
    const int64_t count = std::max<int64_t>(0, times.integral());
    const size_t size = text.str().text.size();
    const size_t limit = runtime_.limits().max_output_bytes;
    if (size > 0 && static_cast<size_t>(count) > limit / size) {
      return runtime_.Error(StrCat("a text of ", size, " bytes repeated ", count, " times"),
                            StrCat("at most ", limit, " bytes"), "simplify the template");
    }
    Str out;
    if (size > 0) {
      for (int64_t i = 0; i < count; ++i) out.Append(text.str());
    }
    return runtime_.NewString(std::move(out));
  }

  Result<Value> IntegerBinary(int64_t a, std::string_view op, int64_t b) {
    int64_t result = 0;
    if (op == "+") {
      if (__builtin_add_overflow(a, b, &result)) return Overflow();
    } else if (op == "-") {
      if (__builtin_sub_overflow(a, b, &result)) return Overflow();
    } else if (op == "*") {
      if (__builtin_mul_overflow(a, b, &result)) return Overflow();
    } else if (op == "**") {
      if (b < 0) return FloatBinary(static_cast<double>(a), op, static_cast<double>(b));
      result = 1;
      if (b > 64 && a != 0 && a != 1 && a != -1) return Overflow();
      for (int64_t i = 0; i < (b > 64 ? 64 + b % 2 : b); ++i) {
        if (__builtin_mul_overflow(result, a, &result)) return Overflow();
      }
    } else {
      if (b == 0) return DivisionByZero();
      if (op == "/") return Value{static_cast<double>(a) / static_cast<double>(b)};
      if (b == -1) return op == "%" ? Result<Value>(MakeInt(0)) : IntegerBinary(0, "-", a);
      // Python rounds the quotient down, so that the rest has the divisor's sign.
      const bool down = a % b != 0 && (a < 0) != (b < 0);
      result = op == "//" ? a / b - (down ? 1 : 0) : a % b + (down ? b : 0);
    }
    return MakeInt(result);
  }

  Result<Value> FloatBinary(double a, std::string_view op, double b) {
    if (op == "+") return Value{a + b};
    if (op == "-") return Value{a - b};
    if (op == "*") return Value{a * b};
    if (op == "**") return Value{std::pow(a, b)};
    if (b == 0.0) return DivisionByZero();
    if (op == "/") return Value{a / b};
    if (op == "//") return Value{std::floor(a / b)};
    return Value{a - b * std::floor(a / b)};
  }

  Status DivisionByZero() const {
    return runtime_.Error("division by zero", "a divisor other than 0");
  }

  static constexpr int kMaxMacroDepth = 50;
  // More than one template's deepest expression (kMaxLinks and the parser's brackets). Of a
  // thread's 8 MB of stack, 1000 levels took less than 0.5 MB in a release build, but all of it
  // with the address sanitizer.
  static constexpr int kMaxNesting = 500;

  Runtime runtime_;
  ScopePointer scope_;
  int macro_depth_ = 0;
  int nesting_ = 0;
};

}  // namespace

Result<RenderedPrompt> Run(const Template& source,
                           const Dict& variables,
                           const ChatTemplateLimits& limits,
                           std::optional<ChatDate> date) {
  return Interpreter(limits, date).Run(source, variables);
}

}  // namespace lserve::jinja
