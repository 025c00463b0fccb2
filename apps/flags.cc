#include "apps/flags.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <limits>
#include <numeric>

#include "apps/quantities.h"
#include "base/strings.h"
#include "loader/json_fields.h"
#include "lserve/version.h"

namespace lserve {
namespace {

std::string FirstName(const std::string& names) {
  return names.substr(0, names.find(','));
}

std::string Bracketed(const std::string& unit, const std::string& value) {
  return value.empty() ? unit : StrCat(unit, " [", value, "]");
}

std::string Joined(const std::vector<std::string>& parts, std::string_view separator) {
  std::string out;
  for (const std::string& part : parts) {
    if (!out.empty()) out += separator;
    out += part;
  }
  return out;
}

// Levenshtein's distance.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

void FlagSet::Fail(const Status& status) {
  if (status_.ok()) status_ = status;
}

void FlagSet::Add(const std::string& names,
                  const std::string& unit_and_default,
                  const std::string& help,
                  Setter set,
                  std::function<Json()> show) {
  const std::string name = FirstName(names);
  CLI::Option* option = app_.add_option_function<std::string>(
      names,
      [this, set = std::move(set)](const std::string& text) {
        const Status status = set(text);
        if (!status.ok()) Fail(status);
      },
      help);
  // As with most programs, the last of several equal flags holds: wrappers append to a line.
  option->option_text(unit_and_default)
      ->group(group_)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  for (const std::string& long_name : option->get_lnames()) all_names_.push_back("--" + long_name);
  if (show) shown_.emplace_back(name.substr(name.find_first_not_of('-')), std::move(show));
}

void FlagSet::Text(const std::string& names,
                   std::string& field,
                   const std::string& unit,
                   const std::string& help) {
  Add(
      names, Bracketed(unit, field), help,
      [&field](const std::string& text) {
        field = text;
        return Status();
      },
      [&field] { return Json(field); });
}

void FlagSet::Text(const std::string& names,
                   std::optional<std::string>& field,
                   const std::string& unit,
                   const std::string& help) {
  Add(
      names, unit, help,
      [&field](const std::string& text) {
        field = text;
        return Status();
      },
      [&field] { return field ? Json(*field) : Json(); });
}

void FlagSet::AddList(const std::string& names,
                      const std::string& unit,
                      const std::string& help,
                      Setter set,
                      std::function<Json()> show) {
  const std::string name = FirstName(names);
  CLI::Option* option = app_.add_option_function<std::vector<std::string>>(
      names,
      [this, set = std::move(set)](const std::vector<std::string>& texts) {
        for (const std::string& text : texts) {
          if (const Status status = set(text); !status.ok()) return Fail(status);
        }
      },
      help);
  option->option_text(unit + " ...")
      ->group(group_)
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);
  for (const std::string& long_name : option->get_lnames()) {
    all_names_.push_back("--" + long_name);
    list_names_.push_back("--" + long_name);
  }
  shown_.emplace_back(name.substr(2), std::move(show));
}

void FlagSet::TextOrBare(const std::string& names,
                         std::optional<std::string>& field,
                         const std::string& bare,
                         const std::string& unit,
                         const std::string& help) {
  Add(
      names, StrCat("[", unit, "]"), help,
      [&field, bare](const std::string& text) {
        field = text.empty() ? bare : text;
        return Status();
      },
      [&field] { return field ? Json(*field) : Json(); });
  app_.get_option(FirstName(names))->expected(0, 1);
}

void FlagSet::Texts(const std::string& names,
                    std::vector<std::string>& field,
                    const std::string& unit,
                    const std::string& help) {
  AddList(
      names, unit, help,
      [&field](const std::string& text) {
        field.push_back(text);
        return Status();
      },
      [&field] { return Json(Json::Array(field.begin(), field.end())); });
}

void FlagSet::Integers(const std::string& names,
                       std::vector<int32_t>& field,
                       const std::string& unit,
                       const std::string& help) {
  AddList(
      names, unit, help,
      [&field, name = FirstName(names)](const std::string& text) {
        field.push_back(static_cast<int32_t>(LS_TRY(ParseInteger(text, 0, INT32_MAX, name))));
        return Status();
      },
      [&field] {
        Json::Array values;
        for (const int32_t value : field) values.push_back(Json(int64_t{value}));
        return Json(std::move(values));
      });
}

std::vector<std::string> FlagSet::OneValueEach(const std::vector<std::string>& arguments) const {
  std::vector<std::string> out;
  std::string open;  // the list option that takes further values
  size_t values = 0;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--") {
      out.insert(out.end(), arguments.begin() + static_cast<int64_t>(i), arguments.end());
      break;
    }
    const bool is_list =
        std::find(list_names_.begin(), list_names_.end(), argument) != list_names_.end();
    if (is_list) {
      open = argument;
      values = 0;
    } else if (argument.size() > 1 && argument[0] == '-' && values > 0) {
      open.clear();
    }
    if (!is_list && !open.empty() && ++values > 1) out.push_back(open);
    out.push_back(argument);
  }
  return out;
}

void FlagSet::Switch(const std::string& names, bool& field, const std::string& help) {
  const std::string name = FirstName(names);
  CLI::Option* option = app_.add_flag(names, field, help)->group(group_);
  for (const std::string& long_name : option->get_lnames()) all_names_.push_back("--" + long_name);
  shown_.emplace_back(name.substr(2), [&field] { return Json(field); });
}

void FlagSet::Checked(const std::string& names,
                      std::string& field,
                      std::function<bool(std::string_view)> accepts,
                      const std::string& expected,
                      const std::string& help) {
  Add(
      names, Bracketed(expected, field), help,
      [&field, accepts = std::move(accepts), expected,
       name = FirstName(names)](const std::string& text) {
        if (!accepts(text)) {
          return Status(Code::kInvalidArgument,
                        StrCat(name, ": got ", Quoted(text), ", expected ", expected));
        }
        field = text;
        return Status();
      },
      [&field] { return Json(field); });
}

void FlagSet::Choice(const std::string& names,
                     std::string& field,
                     const std::vector<std::string>& choices,
                     const std::string& help) {
  Checked(
      names, field,
      [choices](std::string_view text) {
        return std::find(choices.begin(), choices.end(), text) != choices.end();
      },
      Joined(choices, "|"), help);
}

void FlagSet::Integer(const std::string& names,
                      int& field,
                      int64_t min,
                      const std::string& unit,
                      const std::string& help) {
  Add(
      names, Bracketed(unit, StrCat(field)), help,
      [&field, min, name = FirstName(names)](const std::string& text) {
        field = static_cast<int>(LS_TRY(ParseSize(text, min, INT32_MAX, name)));
        return Status();
      },
      [&field] { return Json(field); });
}

void FlagSet::Integer(const std::string& names,
                      std::optional<int64_t>& field,
                      int64_t min,
                      const std::string& unit,
                      const std::string& help) {
  Add(
      names, unit, help,
      [&field, min, name = FirstName(names)](const std::string& text) {
        field = LS_TRY(ParseSize(text, min, INT64_MAX, name));
        return Status();
      },
      [&field] { return field ? Json(*field) : Json(); });
}

void FlagSet::Size(const std::string& names,
                   int64_t& field,
                   int64_t min,
                   const std::vector<std::string>& zero_names,
                   const std::string& unit,
                   const std::string& help) {
  const std::string shown_default =
      field == 0 && !zero_names.empty() ? zero_names[0] : StrCat(field);
  Add(
      names, Bracketed(unit, shown_default), help,
      [&field, min, zero_names, name = FirstName(names)](const std::string& text) {
        if (std::find(zero_names.begin(), zero_names.end(), text) != zero_names.end()) {
          field = 0;
          return Status();
        }
        field = LS_TRY(ParseSize(text, min, INT64_MAX, name));
        return Status();
      },
      [&field] { return Json(field); });
}

void FlagSet::Number(const std::string& names,
                     std::optional<double>& field,
                     double min,
                     double max,
                     const std::string& help) {
  Add(
      names, "NUMBER", help,
      [&field, min, max, name = FirstName(names)](const std::string& text) {
        field = LS_TRY(ParseNumber(text, min, max, name));
        return Status();
      },
      [&field] { return field ? Json(*field) : Json(); });
}

void FlagSet::Number(const std::string& names,
                     double& field,
                     double min,
                     double max,
                     const std::string& unit,
                     const std::string& help) {
  Add(
      names, Bracketed(unit, StrCat(field)), help,
      [&field, min, max, name = FirstName(names)](const std::string& text) {
        field = LS_TRY(ParseNumber(text, min, max, name));
        return Status();
      },
      [&field] { return Json(field); });
}

void FlagSet::Refused(const std::string& names, bool has_value, const std::string& why) {
  Add(
      names, has_value ? "VALUE" : "", StrCat("not implemented in this version: ", why),
      [name = FirstName(names), has_value, why](const std::string& text) {
        if (has_value && (text == "0" || text == "off")) return Status();
        return Status(Code::kUnsupported, StrCat(name, " is not implemented in lserve ", kVersion,
                                                 ": ", why, "; leave it out"));
      },
      nullptr);
  if (!has_value) app_.get_option(FirstName(names))->expected(0, 1);
}

void FlagSet::NoEffect(const std::string& names, const std::string& unit, const std::string& why) {
  Add(
      names, unit, StrCat("accepted, without effect: ", why),
      [this, name = FirstName(names), why](const std::string&) {
        notes_.push_back(StrCat(name, " has no effect: ", why));
        return Status();
      },
      nullptr);
}

Json FlagSet::Effective() const {
  Json::Object object;
  for (const auto& [name, show] : shown_) object.emplace_back(name, show());
  return Json(std::move(object));
}

std::vector<std::string> FlagSet::NamesOf(const std::string& flag) const {
  std::vector<std::string> names;
  const CLI::Option* option = app_.get_option_no_throw(flag);
  if (option == nullptr) return names;
  for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  return names;
}

std::string FlagSet::Closest(std::string_view flag) const {
  std::string best;
  size_t best_distance = flag.size() / 3 + 1;  // a typo, not another word
  for (const std::string& name : all_names_) {
    const size_t distance = EditDistance(flag, name);
    if (distance < best_distance) {
      best = name;
      best_distance = distance;
    }
  }
  return best;
}

}  // namespace lserve
