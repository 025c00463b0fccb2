#include "tokenizer/jinja/runtime.h"

#include <algorithm>

#include "base/strings.h"
#include "tokenizer/unicode.h"

namespace lserve::jinja {

const Value* Arguments::Find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : keywords) {
    if (key == name) return &value;
  }
  return nullptr;
}

Status Runtime::Step(size_t count) {
  steps_ += static_cast<int64_t>(count);
  if (steps_ <= limits_.max_steps) return {};
  return Error(StrCat("more than ", limits_.max_steps, " steps; simplify the template"));
}

Status Runtime::Charge(size_t bytes) {
  if (bytes > limits_.max_output_bytes) {
    return Error(StrCat("a text of ", bytes, " bytes; expected at most ", limits_.max_output_bytes,
                        "; shorten the messages"));
  }
  work_bytes_ += bytes;
  if (work_bytes_ <= limits_.max_work_bytes) return {};
  return Error(StrCat("built texts of ", work_bytes_, " bytes in all; expected at most ",
                      limits_.max_work_bytes, "; shorten the messages"));
}

Result<Value> Runtime::NewString(Str s) {
  LS_TRY(Charge(s.text.size()));
  return MakeString(std::move(s));
}
Result<Value> Runtime::NewPlain(std::string text) {
  return NewString(Str{std::move(text), {}});
}
Result<Value> Runtime::NewList(List list) {
  LS_TRY(Step(list.size()));
  return MakeList(std::move(list));
}

Result<Str> Runtime::Text(const Value& value) {
  Str text = ToText(value, limits_.max_output_bytes);
  LS_TRY(Charge(text.text.size()));
  return text;
}

Result<List> Runtime::Items(const Value& value) {
  List items;
  if (value.is_undefined()) return items;
  if (value.is_list()) {
    items = value.list();
  } else if (value.is_dict()) {
    for (const auto& member : value.dict()) items.push_back(MakeString(member.first));
  } else if (value.is_string()) {
    const Str& s = value.str();
    for (size_t at = 0; at < s.text.size();) {
      const size_t end = at + DecodeAt(s.text, at).bytes;
      LS_TRY(Step());
      items.push_back(MakeString(s.Sub(at, end)));
      at = end;
    }
  } else {
    return Error(StrCat(TypeName(value), " can not be iterated; expected a list or mapping"));
  }
  LS_TRY(Step(items.size()));
  return items;
}

Result<Value> Runtime::Member(const Value& value, std::string_view name, bool attribute) {
  if (value.is_undefined()) {
    return Error(StrCat("'", std::get<Undefined>(value.data).name, "' is undefined, so it has no '",
                        name, "'"));
  }
  const bool method = IsMethod(value, name);
  const auto bound = [&]() -> Value {
    return {std::make_shared<const Callable>(Callable{std::string(name), value, nullptr, {}})};
  };
  if (attribute && method) return bound();
  const Dict* members = value.is_dict()        ? &value.dict()
                        : value.is_namespace() ? &value.ns().members
                                               : nullptr;
  if (members != nullptr) {
    LS_TRY(Step(members->size() / 8));
    if (const Value* found = FindKey(*members, name)) return *found;
  }
  if (method) return bound();
  return Value{Undefined{std::string(name)}};
}

Result<Value> Runtime::Item(const Value& value, const Value& key) {
  if (key.is_string()) return Member(value, key.str().text, /*attribute=*/false);
  if (value.is_undefined()) {
    return Error(StrCat("'", std::get<Undefined>(value.data).name, "' is undefined"));
  }
  if (key.is_integral() && (value.is_list() || value.is_string())) {
    const size_t size = value.is_list() ? value.list().size() : CountCodePoints(value.str().text);
    int64_t index = key.integral();
    if (index < 0) index += static_cast<int64_t>(size);
    if (index < 0 || index >= static_cast<int64_t>(size)) return Value{Undefined{"item"}};
    if (value.is_list()) return value.list()[static_cast<size_t>(index)];
    const Str& s = value.str();
    size_t at = 0;
    LS_TRY(Charge(s.text.size()));
    for (int64_t i = 0; i < index; ++i) at += DecodeAt(s.text, at).bytes;
    return NewString(s.Sub(at, at + DecodeAt(s.text, at).bytes));
  }
  return Value{Undefined{"item"}};
}

Result<bool> Runtime::Contains(const Value& haystack, const Value& needle) {
  if (haystack.is_undefined()) return false;
  if (haystack.is_string()) {
    if (!needle.is_string()) return Error("'in' a string; expected a string on its left");
    LS_TRY(Charge(haystack.str().text.size()));
    return haystack.str().text.find(needle.str().text) != std::string::npos;
  }
  if (haystack.is_dict()) {
    LS_TRY(Step(haystack.dict().size()));
    return needle.is_string() && FindKey(haystack.dict(), needle.str().text) != nullptr;
  }
  if (!haystack.is_list()) return Error(StrCat("'in' ", TypeName(haystack), "; expected a list"));
  LS_TRY(Step(haystack.list().size()));
  return std::any_of(haystack.list().begin(), haystack.list().end(),
                     [&](const Value& item) { return Equal(item, needle); });
}

Result<int> Runtime::Order(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) {
      return a.integral() < b.integral() ? -1 : a.integral() > b.integral() ? 1 : 0;
    }
    return a.number() < b.number() ? -1 : a.number() > b.number() ? 1 : 0;
  }
  if (a.is_string() && b.is_string()) {
    // Order of UTF-8 bytes is order of code points.
    const int order = a.str().text.compare(b.str().text);
    return order < 0 ? -1 : order > 0 ? 1 : 0;
  }
  return Error(StrCat("can not order ", TypeName(a), " and ", TypeName(b)));
}

Result<int64_t> Runtime::Integer(const Value& value, std::string_view what) {
  if (value.is_integral()) return value.integral();
  return Error(StrCat(what, " is ", TypeName(value), "; expected an integer"));
}

}  // namespace lserve::jinja
