// SchemaCompiler: a JSON Schema as rules of a grammar whose texts are JSON that satisfies it. It
// knows a part of draft 2020-12; a keyword outside it is refused by name, never left out, unless it
// is an annotation that restricts nothing. Members come in the order of "properties". Used by the
// server for response formats and for the arguments of tools.
#pragma once

#include <cstddef>
#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "grammar/grammar.h"
#include "grammar/json_rules.h"

namespace lserve {

struct SchemaLimits {
  size_t max_nodes = 10'000;    // schemas, counted where they are used
  int64_t max_length = 10'000;  // of minLength, maxLength, minItems, maxItems
};

class SchemaCompiler {
 public:
  // `where` begins messages ("response_format.json_schema.schema"). `root`, which references point
  // into, must outlive this.
  SchemaCompiler(const Json& root,
                 std::string where,
                 GrammarBuilder* builder,
                 JsonRules* rules,
                 const SchemaLimits& limits = {});

  // The rule of the whole schema. Error: what is not supported or contradictory, with its place.
  Result<Grammar::RuleId> Compile();

 private:
  using StateId = Grammar::StateId;
  using RuleId = Grammar::RuleId;
  // A schema, where it stands, and the two states to connect.
  struct Task {
    const Json* schema = nullptr;
    std::string path;
    StateId from = 0;
    StateId to = 0;
  };
  struct Bounds {
    int64_t least = 0;
    int64_t most = -1;  // -1: none
  };

  RuleId RuleFor(const Json& schema, const std::string& path);
  Status Add(const Task& task);
  Status AddType(const Task& task, const std::string& type);
  Status AddReference(const Task& task, const Json& reference);
  Status AddConstants(const Task& task, const Json::Array& values);
  Status AddAlternatives(const Task& task, const std::string& keyword);
  Status CheckExclusive(const Task& task, const Json::Array& branches) const;
  Status AddObject(const Task& task);
  Status AddArray(const Task& task);
  Status AddString(const Task& task);
  Status AddNumber(const Task& task, bool whole);

  Status CheckKeywords(const Task& task) const;
  // Only `keyword`, annotations and `also` may stand in this schema.
  Status CheckAlone(const Task& task, std::string_view keyword, std::string_view also = "") const;
  Result<std::vector<std::string>> Types(const Task& task) const;
  Result<Bounds> ReadBounds(const Task& task, const char* least, const char* most) const;
  Status Wrong(const std::string& path, std::string_view what, std::string_view expected) const;

  const Json& root_;
  const std::string where_;
  GrammarBuilder& builder_;
  JsonRules& rules_;
  const SchemaLimits limits_;
  std::unordered_map<const Json*, RuleId> known_;
  std::deque<Task> open_;  // rules whose schemas are still to be read
  size_t num_nodes_ = 0;
};

}  // namespace lserve
