#include "tokenizer/jinja/runtime.h"

#include <algorithm>

#include "base/strings.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/unicode.h"

namespace lserve::jinja {
const Value* Arguments::Find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : keywords) {
    if (key == name) return &value;
  }
  return nullptr;
}

Runtime::~Runtime() {
  for (const auto& space : namespaces_) space->members.clear();
}

Status Runtime::Step(size_t count) {
  steps_ += static_cast<int64_t>(count);
  if (steps_ <= limits_.max_steps) return {};
  return Error(StrCat("took more than ", limits_.max_steps, " steps"), "fewer",
               "simplify the template or shorten the messages");
}

Status Runtime::Work(size_t bytes) {
  work_bytes_ += bytes;
  if (work_bytes_ <= limits_.max_work_bytes) return {};
  return Error(StrCat("went through ", work_bytes_, " bytes of text in all"),
               StrCat("at most ", limits_.max_work_bytes),
               "simplify the template or shorten the messages");
}

Status Runtime::Charge(size_t bytes) {
  if (bytes > limits_.max_output_bytes) {
    return Error(StrCat("made a text of ", bytes, " bytes"),
                 StrCat("at most ", limits_.max_output_bytes),
                 "simplify the template or shorten the messages");
  }
  return Work(bytes);
}

Result<Value> Runtime::NewString(Str s) {
  LS_TRY(Charge(s.text.size()));
  LS_TRY(Work(s.user.size() * sizeof(ByteRange)));
  return MakeString(std::move(s));
}
Result<Value> Runtime::NewPlain(std::string text) {
  return NewString(Str{std::move(text), {}});
}
Result<Value> Runtime::NewList(List list) {
  LS_TRY(Step(list.size()));
  return WithinDepth(MakeList(std::move(list)));
}
Result<Value> Runtime::NewDict(Dict dict) {
  LS_TRY(Step(dict.size()));
  return WithinDepth(MakeDict(std::move(dict)));
}
Result<Value> Runtime::WithinDepth(Value value) const {
  if (value.depth <= kMaxValueDepth) return value;
  return Error(StrCat("nested lists and mappings ", value.depth, " levels deep"),
               StrCat("at most ", kMaxValueDepth), "simplify the template");
}
Value Runtime::NewNamespace(Dict members) {
  namespaces_.push_back(std::make_shared<Namespace>(Namespace{std::move(members)}));
  return {namespaces_.back()};
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
    for (const auto& member : value.dict()) {
      items.push_back(LS_TRY(NewString(member.first)));
    }
  } else if (value.is_string()) {
    const Str& s = value.str();
    for (size_t at = 0; at < s.text.size();) {
      const size_t end = at + DecodeAt(s.text, at).bytes;
      LS_TRY(Step());
      items.push_back(MakeString(s.Sub(at, end)));
      at = end;
    }
  } else {
    return Error(StrCat(TypeName(value), " can not be iterated"), "a list, a mapping or a string");
  }
  LS_TRY(Step(items.size()));
  return items;
}

Result<Value> Runtime::Member(const Value& value, std::string_view name, bool attribute) {
  if (value.is_undefined()) {
    return Error(StrCat("'", std::get<Undefined>(value.data).name, "' is undefined, so it has no '",
                        Shown(name), "'"),
                 "a mapping");
  }
  const bool method = IsMethod(value, name);
  const auto bound = [&]() -> Result<Value> {
    return WithinDepth(
        {std::make_shared<const Callable>(Callable{std::string(name), value, nullptr, {}}),
         value.depth + 1});
  };
  if (attribute && method) return bound();
  const Dict* members = value.is_dict()        ? &value.dict()
                        : value.is_namespace() ? &value.ns().members
                                               : nullptr;
  if (members != nullptr) {
    if (const Value* found = LS_TRY(FindMember(*members, name))) return *found;
  }
  if (method) return bound();
  return Value{Undefined{Shown(name)}};
}

Result<Value> Runtime::Item(const Value& value, const Value& key) {
  if (key.is_string()) return Member(value, key.str().text, /*attribute=*/false);
  if (value.is_undefined()) {
    return Error(StrCat("'", std::get<Undefined>(value.data).name, "' is undefined"),
                 "a list or mapping to take an item of");
  }
  if (key.is_integral() && (value.is_list() || value.is_string())) {
    if (value.is_string()) LS_TRY(Scan(value.str().text.size()));
    const size_t size = value.is_list() ? value.list().size() : CountCodePoints(value.str().text);
    int64_t index = key.integral();
    if (index < 0) index += static_cast<int64_t>(size);
    if (index < 0 || index >= static_cast<int64_t>(size)) return Value{Undefined{"item"}};
    if (value.is_list()) return value.list()[static_cast<size_t>(index)];
    const Str& s = value.str();
    size_t at = 0;
    for (int64_t i = 0; i < index; ++i) at += DecodeAt(s.text, at).bytes;
    return NewString(s.Sub(at, at + DecodeAt(s.text, at).bytes));
  }
  return Value{Undefined{"item"}};
}

Result<bool> Runtime::Contains(const Value& haystack, const Value& needle) {
  if (haystack.is_undefined()) return false;
  if (haystack.is_string()) {
    if (!needle.is_string()) {
      return Error(StrCat(TypeName(needle), " on the left of 'in' and a string on its right"),
                   "a string on both sides");
    }
    LS_TRY(Scan(haystack.str().text.size() + needle.str().text.size()));
    return FindText(haystack.str().text, needle.str().text) != std::string::npos;
  }
  if (haystack.is_dict()) {
    return needle.is_string() && LS_TRY(FindMember(haystack.dict(), needle.str().text)) != nullptr;
  }
  if (!haystack.is_list()) {
    return Error(StrCat(TypeName(haystack), " on the right of 'in'"),
                 "a list, a mapping or a string");
  }
  for (const Value& item : haystack.list()) {
    if (LS_TRY(Equal(item, needle))) return true;
  }
  return false;
}

Result<size_t> Runtime::PlaceOf(const Dict& dict, std::string_view key) {
  LS_TRY(Step(1 + dict.size() / 8));
  for (size_t i = 0; i < dict.size(); ++i) {
    const std::string& name = dict[i].first.text;
    if (name.size() != key.size()) continue;
    LS_TRY(Work(key.size()));
    if (name == key) return i;
  }
  return dict.size();
}

Result<const Value*> Runtime::FindMember(const Dict& dict, std::string_view key) {
  const size_t place = LS_TRY(PlaceOf(dict, key));
  return place < dict.size() ? &dict[place].second : nullptr;
}

Status Runtime::SetMember(Dict& dict, const Str& key, Value value) {
  const size_t place = LS_TRY(PlaceOf(dict, key.text));
  if (place < dict.size()) {
    dict[place].second = std::move(value);
    return {};
  }
  LS_TRY(Charge(key.text.size()));
  dict.emplace_back(key, std::move(value));
  return {};
}

// Every pair of values is a step: lists that share their parts are trees of any size.
Result<bool> Runtime::Equal(const Value& a, const Value& b) {
  LS_TRY(Step());
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.integral() == b.integral();
    return a.number() == b.number();
  }
  if (a.data.index() != b.data.index()) return false;
  if (a.is_string()) {
    if (a.str().text.size() != b.str().text.size()) return false;
    LS_TRY(Work(a.str().text.size()));
    return a.str().text == b.str().text;
  }
  if (a.is_list()) {
    if (a.list().size() != b.list().size()) return false;
    for (size_t i = 0; i < a.list().size(); ++i) {
      if (!LS_TRY(Equal(a.list()[i], b.list()[i]))) return false;
    }
    return true;
  }
  if (a.is_dict()) return EqualDicts(a.dict(), b.dict());
  if (a.is_namespace()) return &a.ns() == &b.ns();
  if (a.is_callable()) return &a.callable() == &b.callable();
  return true;  // none, undefined
}

Result<bool> Runtime::EqualDicts(const Dict& a, const Dict& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [key, value] : a) {
    const Value* other = LS_TRY(FindMember(b, key.text));
    if (other == nullptr || !LS_TRY(Equal(value, *other))) return false;
  }
  return true;
}

Result<int> Runtime::Order(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) {
      return a.integral() < b.integral() ? -1 : a.integral() > b.integral() ? 1 : 0;
    }
    return a.number() < b.number() ? -1 : a.number() > b.number() ? 1 : 0;
  }
  if (a.is_string() && b.is_string()) {
    LS_TRY(Work(std::min(a.str().text.size(), b.str().text.size())));
    // Order of UTF-8 bytes is order of code points.
    const int order = a.str().text.compare(b.str().text);
    return order < 0 ? -1 : order > 0 ? 1 : 0;
  }
  return Error(StrCat("can not order ", TypeName(a), " and ", TypeName(b)),
               "two numbers or two strings");
}

Result<int64_t> Runtime::Integer(const Value& value, std::string_view what) {
  if (value.is_integral()) return value.integral();
  return Error(StrCat(what, " is ", TypeName(value)), "an integer");
}

}  // namespace lserve::jinja
