// FlagSet: declares each option of a command once; parsing, the default and unit in --help, and
// --print-config all follow from that declaration. A thin layer over CLI11, whose values are all
// text here, so that every message has its four parts. Used by the commands.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace CLI {
class App;
}

namespace lserve {

// `names` is a list as CLI11 takes it, "--threads,-t"; the first is the one in messages. The fields
// must outlive the FlagSet.
class FlagSet {
 public:
  explicit FlagSet(CLI::App& app) : app_(app) {}
  FlagSet(const FlagSet&) = delete;
  FlagSet& operator=(const FlagSet&) = delete;

  // The heading in --help under which the flags after it stand.
  void Group(std::string title) { group_ = std::move(title); }

  void Text(const std::string& names,
            std::string& field,
            const std::string& unit,
            const std::string& help);
  void Text(const std::string& names,
            std::optional<std::string>& field,
            const std::string& unit,
            const std::string& help);
  // The same, but the flag may stand alone, which means `bare`.
  void TextOrBare(const std::string& names,
                  std::optional<std::string>& field,
                  const std::string& bare,
                  const std::string& unit,
                  const std::string& help);
  // May be repeated, and may take several values at once (see OneValueEach).
  void Texts(const std::string& names,
             std::vector<std::string>& field,
             const std::string& unit,
             const std::string& help);
  // Repeatable whole numbers.
  void Integers(const std::string& names,
                std::vector<int32_t>& field,
                const std::string& unit,
                const std::string& help);
  void Switch(const std::string& names, bool& field, const std::string& help);
  // A value that `accepts` turns down gets an error that says `expected`.
  void Checked(const std::string& names,
               std::string& field,
               std::function<bool(std::string_view)> accepts,
               const std::string& expected,
               const std::string& help);
  // One of `choices`.
  void Choice(const std::string& names,
              std::string& field,
              const std::vector<std::string>& choices,
              const std::string& help);
  void Integer(const std::string& names,
               int& field,
               int64_t min,
               const std::string& unit,
               const std::string& help);
  void Integer(const std::string& names,
               std::optional<int64_t>& field,
               int64_t min,
               const std::string& unit,
               const std::string& help);
  // Sizes such as 128k. `zero_names`: spellings of 0 ("auto").
  void Size(const std::string& names,
            int64_t& field,
            int64_t min,
            const std::vector<std::string>& zero_names,
            const std::string& unit,
            const std::string& help);
  void Number(const std::string& names,
              std::optional<double>& field,
              double min,
              double max,
              const std::string& help);

  // A number with a default in `field`.
  void Number(const std::string& names,
              double& field,
              double min,
              double max,
              const std::string& unit,
              const std::string& help);

  // A known name that this version does not implement: an error that says why and what instead.
  // With a value, `off` and 0 ask for nothing and pass.
  void Refused(const std::string& names, bool has_value, const std::string& why);
  // A name that other programs have and that changes nothing here: a note says so.
  void NoEffect(const std::string& names, const std::string& unit, const std::string& why);

  // After parsing: the first problem, in the order of the command line's meaning.
  const Status& status() const { return status_; }
  const std::vector<std::string>& notes() const { return notes_; }
  // What is in effect, by the flags' first names without dashes.
  Json Effective() const;
  // The same command line with the values of Texts and Integers options told apart: `--stop a b` is
  // `--stop a --stop b`. CLI11's own lists would unpack a value such as "[INST]".
  std::vector<std::string> OneValueEach(const std::vector<std::string>& arguments) const;
  // All names of the option that has the name `flag`, with their dashes; empty if none has.
  std::vector<std::string> NamesOf(const std::string& flag) const;
  // The known name that is closest to `flag`, or "".
  std::string Closest(std::string_view flag) const;

 private:
  using Setter = std::function<Status(const std::string&)>;
  // A repeatable option: `set` gets every value, in order.
  void AddList(const std::string& names,
               const std::string& unit,
               const std::string& help,
               Setter set,
               std::function<Json()> show);
  // What all kinds come down to.
  void Add(const std::string& names,
           const std::string& unit_and_default,
           const std::string& help,
           Setter set,
           std::function<Json()> show);
  void Fail(const Status& status);

  CLI::App& app_;
  std::string group_ = "Options";
  Status status_;
  std::vector<std::string> notes_;
  std::vector<std::pair<std::string, std::function<Json()>>> shown_;
  std::vector<std::string> all_names_;
  std::vector<std::string> list_names_;  // long names of Texts and Integers options
};

}  // namespace lserve
