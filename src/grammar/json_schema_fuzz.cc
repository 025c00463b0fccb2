// Any JSON as a schema: compiled within the limits, or refused with a message of one line; what is
// compiled can be followed to a whole text by taking the first byte that leads on, and that text is
// JSON.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/json.h"
#include "grammar/grammar_matcher.h"
#include "grammar/json_schema.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const lserve::Result<lserve::Json> schema = lserve::ParseJson(text);
  if (!schema.ok()) return 0;
  lserve::GrammarBuilder builder({.max_states = 20'000, .max_rules = 1000, .max_depth = 40});
  lserve::JsonRules rules(&builder);
  lserve::SchemaCompiler compiler(schema.value(), "schema", &builder, &rules, {.max_nodes = 1000});
  const auto rule = compiler.Compile();
  if (!rule.ok()) {
    LS_CHECK(rule.status().message().find('\n') == std::string::npos) << rule.status().message();
    return 0;
  }
  const auto grammar = builder.Finish(rule.value());
  if (!grammar.ok()) return 0;
  lserve::GrammarMatcher matcher(grammar.value());
  if (matcher.exhausted()) return 0;
  // The bytes of the input choose where several lead on, so that the walk ends some day.
  std::string out;
  int state = matcher.start();
  constexpr size_t kMost = 2000;
  while (out.size() < kMost &&
         (matcher.CanContinue(state) && !(out.size() > 50 && matcher.Accepts(state)))) {
    matcher.Allow(100'000);
    const size_t first = static_cast<size_t>(data[out.size() % size]);
    int next = lserve::GrammarMatcher::kDead;
    for (size_t i = 0; i < 256 && next == lserve::GrammarMatcher::kDead; ++i) {
      const uint8_t byte = static_cast<uint8_t>(first + i);
      next = matcher.Next(state, byte);
      if (next != lserve::GrammarMatcher::kDead) out.push_back(static_cast<char>(byte));
    }
    if (matcher.exhausted()) return 0;
    LS_CHECK(next != lserve::GrammarMatcher::kDead) << "a dead end after " << out;
    state = next;
  }
  if (!matcher.Accepts(state)) return 0;
  const lserve::Result<lserve::Json> json = lserve::ParseJson(out);
  // Free objects may repeat a name, which our parser refuses.
  LS_CHECK(json.ok() || json.status().message().find("twice") != std::string::npos)
      << out << ": " << json.status().message();
  return 0;
}
