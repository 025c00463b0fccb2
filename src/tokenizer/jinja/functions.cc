// Global functions of templates.
#include <array>

#include "base/strings.h"
#include "tokenizer/jinja/runtime.h"
#include "tokenizer/json_fields.h"

namespace lserve::jinja {
namespace {

constexpr std::string_view kFunctions[] = {"raise_exception", "strftime_now", "range", "namespace",
                                           "dict"};
constexpr int64_t kMaxRange = 100'000;  // as Jinja's sandbox
constexpr size_t kMaxDateFormatBytes = 1000;

// Days since 1970-01-01 of a date in the proleptic Gregorian calendar; years begin in March, so
// that the leap day is the last.
int64_t DaysFromCivil(const ChatDate& date) {
  const int64_t year = date.month <= 2 ? date.year - 1 : date.year;
  const int64_t era = (year >= 0 ? year : year - 399) / 400;
  const int64_t year_of_era = year - era * 400;
  const int64_t month = (date.month + 9) % 12;
  const int64_t day_of_year = (153 * month + 2) / 5 + date.day - 1;
  return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year -
         719468;
}

std::string Padded(int64_t value, size_t width) {
  std::string digits = StrCat(value);
  while (digits.size() < width) digits.insert(digits.begin(), '0');
  return digits;
}

constexpr std::array<std::string_view, 12> kMonths = {
    "January", "February", "March",     "April",   "May",      "June",
    "July",    "August",   "September", "October", "November", "December"};
constexpr std::array<std::string_view, 7> kDays = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                                   "Thursday", "Friday", "Saturday"};

// One directive of strftime in the C locale, or nothing if it is unknown.
std::optional<std::string> FormatDate(const ChatDate& date, char directive, bool unpadded) {
  const size_t two = unpadded ? 0 : 2;
  const size_t weekday = static_cast<size_t>(((DaysFromCivil(date) + 4) % 7 + 7) % 7);
  const std::string_view month = kMonths[static_cast<size_t>(date.month - 1)];
  switch (directive) {
    case 'Y':
      return Padded(date.year, unpadded ? 0 : 4);
    case 'y':
      return Padded(date.year % 100, two);
    case 'm':
      return Padded(date.month, two);
    case 'd':
      return Padded(date.day, two);
    case 'H':
      return Padded(date.hour, two);
    case 'I':
      return Padded((date.hour + 11) % 12 + 1, two);
    case 'M':
      return Padded(date.minute, two);
    case 'S':
      return Padded(date.second, two);
    case 'p':
      return date.hour < 12 ? "AM" : "PM";
    case 'j':
      return Padded(DaysFromCivil(date) - DaysFromCivil({date.year, 1, 1, 0, 0, 0}) + 1,
                    unpadded ? 0 : 3);
    case 'B':
      return std::string(month);
    case 'b':
      return std::string(month.substr(0, 3));
    case 'A':
      return std::string(kDays[weekday]);
    case 'a':
      return std::string(kDays[weekday].substr(0, 3));
    case 'F':
      return StrCat(Padded(date.year, 4), "-", Padded(date.month, 2), "-", Padded(date.day, 2));
    case 'T':
      return StrCat(Padded(date.hour, 2), ":", Padded(date.minute, 2), ":", Padded(date.second, 2));
    case '%':
      return "%";
    default:
      return std::nullopt;
  }
}

Result<Value> StrftimeNow(Runtime& runtime, const Arguments& arguments) {
  const Value* format = arguments.Find(0, "format");
  if (format == nullptr || !format->is_string()) {
    return runtime.Error(
        StrCat("strftime_now of ", format == nullptr ? "nothing" : TypeName(*format)),
        "a format such as '%Y-%m-%d'");
  }
  if (!runtime.date().has_value()) {
    return runtime.Error("the template asks for the date and none was given",
                         "a date with the messages", "pin one");
  }
  const std::string& in = format->str().text;
  if (in.size() > kMaxDateFormatBytes) {
    return runtime.Error(StrCat("strftime_now with a format of ", in.size(), " bytes"),
                         StrCat("at most ", kMaxDateFormatBytes));
  }
  std::string out;
  for (size_t i = 0; i < in.size(); ++i) {
    if (in[i] != '%') {
      out.push_back(in[i]);
      continue;
    }
    const bool unpadded = i + 1 < in.size() && in[i + 1] == '-';
    i += unpadded ? 2 : 1;
    const auto text = i < in.size() ? FormatDate(*runtime.date(), in[i], unpadded) : std::nullopt;
    if (!text.has_value()) {
      return runtime.Error(StrCat("strftime_now with the format '", Shown(in), "'"),
                           "the directives %Y %y %m %d %H %I %M %S %p %j %B %b %A %a %F %T %%");
    }
    out += *text;
  }
  return runtime.NewPlain(std::move(out));
}

Result<Value> Range(Runtime& runtime, const Arguments& arguments) {
  const size_t count = arguments.positional.size();
  if (count == 0 || count > 3) {
    return runtime.Error(StrCat("range with ", count, " arguments"), "one to three integers");
  }
  std::array<int64_t, 3> bounds{};
  for (size_t i = 0; i < count; ++i) {
    bounds[i] = LS_TRY(runtime.Integer(arguments.positional[i], "range bound"));
  }
  const int64_t begin = count == 1 ? 0 : bounds[0];
  const int64_t end = count == 1 ? bounds[0] : bounds[1];
  const int64_t step = count == 3 ? bounds[2] : 1;
  if (step == 0) return runtime.Error("range step is 0", "another integer");
  List list;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (static_cast<int64_t>(list.size()) >= kMaxRange) {
      return runtime.Error(StrCat("range of more than ", kMaxRange, " values"),
                           StrCat("at most ", kMaxRange));
    }
    list.push_back(MakeInt(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return runtime.NewList(std::move(list));
}

Result<Dict> Members(Runtime& runtime, const Arguments& arguments) {
  Dict members;
  if (arguments.positional.size() > 1 ||
      (!arguments.positional.empty() && !arguments.positional[0].is_dict())) {
    return runtime.Error(StrCat("namespace or dict of ", arguments.positional.size(),
                                " arguments, the first ", TypeName(arguments.positional[0])),
                         "one mapping or keywords");
  }
  if (!arguments.positional.empty()) {
    const Dict& given = arguments.positional[0].dict();
    LS_TRY(runtime.Step(given.size()));
    for (const auto& member : given) {
      LS_TRY(runtime.Charge(member.first.text.size()));
      members.push_back(member);
    }
  }
  for (const auto& [name, value] : arguments.keywords) {
    LS_TRY(runtime.SetMember(members, Str{name, {}}, value));
  }
  return members;
}

}  // namespace

bool IsFunction(std::string_view name) {
  for (const std::string_view known : kFunctions) {
    if (known == name) return true;
  }
  return false;
}

Result<Value> CallFunction(Runtime& runtime, std::string_view name, const Arguments& arguments) {
  if (name == "strftime_now") return StrftimeNow(runtime, arguments);
  if (name == "range") return Range(runtime, arguments);
  if (name == "namespace") {
    return runtime.NewNamespace(LS_TRY(Members(runtime, arguments)));
  }
  if (name == "dict") return runtime.NewDict(LS_TRY(Members(runtime, arguments)));
  const Value* message = arguments.Find(0, "message");
  const Str text = message == nullptr ? Str{} : LS_TRY(runtime.Text(*message));
  return runtime.Error(StrCat("the template refuses these messages: ", text.text),
                       "messages that it accepts", "correct the messages");
}

}  // namespace lserve::jinja
