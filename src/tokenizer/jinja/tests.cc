// Tests: what may follow `is`.
#include "base/strings.h"
#include "tokenizer/jinja/runtime.h"
#include "tokenizer/json_fields.h"

namespace lserve::jinja {
namespace {

Result<bool> SameAs(Runtime& runtime, const Value& a, const Value& b) {
  if (a.data.index() != b.data.index()) return false;
  return runtime.Equal(a, b);
}

Result<bool> Compare(
    Runtime& runtime, std::string_view name, const Value& a, const Value& b, bool* known) {
  *known = true;
  if (name == "eq" || name == "equalto") return runtime.Equal(a, b);
  if (name == "ne") return !LS_TRY(runtime.Equal(a, b));
  if (name == "sameas") return SameAs(runtime, a, b);
  if (name == "in") return runtime.Contains(b, a);
  if (name == "lt" || name == "lessthan") return LS_TRY(runtime.Order(a, b)) < 0;
  if (name == "le") return LS_TRY(runtime.Order(a, b)) <= 0;
  if (name == "gt" || name == "greaterthan") return LS_TRY(runtime.Order(a, b)) > 0;
  if (name == "ge") return LS_TRY(runtime.Order(a, b)) >= 0;
  if (name == "divisibleby") {
    const int64_t n = LS_TRY(runtime.Integer(b, "divisor"));
    if (n == 0) return runtime.Error("division by zero", "a divisor other than 0");
    return n == -1 || LS_TRY(runtime.Integer(a, "dividend")) % n == 0;
  }
  *known = false;
  return false;
}

}  // namespace

Result<bool> ApplyTest(Runtime& runtime,
                       std::string_view name,
                       const Value& input,
                       const Arguments& arguments) {
  if (name == "defined") return !input.is_undefined();
  if (name == "undefined") return input.is_undefined();
  if (name == "none") return input.is_none();
  if (name == "string") return input.is_string();
  if (name == "mapping") return input.is_dict();
  if (name == "boolean") return input.is_bool();
  if (name == "integer") return input.is_int();
  if (name == "float") return input.is_float();
  if (name == "number") return input.is_number();
  if (name == "true") return input.is_bool() && input.integral() == 1;
  if (name == "false") return input.is_bool() && input.integral() == 0;
  if (name == "callable") return input.is_callable();
  if (name == "iterable" || name == "sequence") {
    return input.is_string() || input.is_list() || input.is_dict() || input.is_undefined();
  }
  if (name == "odd" || name == "even") {
    const bool odd = LS_TRY(runtime.Integer(input, "input")) % 2 != 0;
    return odd == (name == "odd");
  }
  if (name == "lower" || name == "upper") {
    const Str text = LS_TRY(runtime.Text(input));
    const Case wanted = name == "lower" ? Case::kLower : Case::kUpper;
    const Case other = name == "lower" ? Case::kUpper : Case::kLower;
    // Python: some letter has a case, and none has the other one.
    return LS_TRY(ChangeCase(runtime, text, wanted)).text == text.text &&
           LS_TRY(ChangeCase(runtime, text, other)).text != text.text;
  }
  const Value* other = arguments.Find(0, "other");
  bool known = false;
  if (other != nullptr) {
    const bool result = LS_TRY(Compare(runtime, name, input, *other, &known));
    if (known) return result;
  }
  return runtime.Error(StrCat("test '", Shown(name), "' with ", arguments.positional.size(),
                              " arguments is not implemented"),
                       "a test of Jinja2 that this engine knows", "write the template without it");
}

}  // namespace lserve::jinja
