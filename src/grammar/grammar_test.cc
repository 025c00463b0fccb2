// Schemas, patterns and masks: which texts they let through, what is refused, and that an answer
// drawn at random under a mask is always whole JSON.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/json.h"
#include "base/rng.h"
#include "base/strings.h"
#include "grammar/grammar_matcher.h"
#include "grammar/json_schema.h"
#include "grammar/token_masker.h"

namespace lserve {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

Result<std::shared_ptr<const Grammar>> CompileSchema(const Json& schema,
                                                     const GrammarLimits& limits = {}) {
  GrammarBuilder builder(limits);
  JsonRules rules(&builder);
  const Grammar::RuleId rule = LS_TRY(SchemaCompiler(schema, "schema", &builder, &rules).Compile());
  return builder.Finish(rule);
}

std::shared_ptr<const Grammar> Compiled(const std::string& text) {
  const auto grammar = CompileSchema(ParseJson(text).value());
  EXPECT_TRUE(grammar.ok()) << grammar.status().message();
  return grammar.ok() ? grammar.value() : nullptr;
}

bool Matches(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  if (grammar == nullptr) return false;
  GrammarMatcher matcher(grammar);
  int state = matcher.start();
  matcher.Allow(1'000'000);
  for (const char c : text) {
    state = matcher.Next(state, static_cast<uint8_t>(c));
    if (state == GrammarMatcher::kDead) return false;
  }
  return matcher.Accepts(state);
}

void ExpectTexts(const std::string& schema,
                 const std::vector<std::string>& good,
                 const std::vector<std::string>& bad) {
  const auto grammar = Compiled(schema);
  for (const std::string& text : good) EXPECT_TRUE(Matches(grammar, text)) << schema << " " << text;
  for (const std::string& text : bad) EXPECT_FALSE(Matches(grammar, text)) << schema << " " << text;
}

std::string ErrorOf(const std::string& schema) {
  const auto grammar = CompileSchema(ParseJson(schema).value());
  return grammar.ok() ? "" : grammar.status().message();
}

TEST(SchemaTest, AnyValue) {
  ExpectTexts("true",
              {"null", "true", "-0.5e-3", "0", "\"\"", R"("a\n\u00e9\ud83d\ude00")", "[]", "{}",
               R"([1, {"a": [null,2]}])", "\"\xc3\xa9\xf0\x9f\x98\x80\""},
              {"", "nul", "01", "1.", "- 1", "\"\n\"", R"("\ud83d")", R"("\x")", "[1,]", "[ 1]",
               "{\"a\":1,}", "\"\xff\"", "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "1  ", "[1,  2]"});
}

TEST(SchemaTest, Objects) {
  ExpectTexts(
      R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"},
          "c":{"type":"boolean"}},"required":["b"],"additionalProperties":false})",
      {R"({"b":"x"})", R"({"a": 1, "b": "x"})", R"({"b":"x","c":true})",
       R"({"a":1,"b":"","c":false})"},
      {"{}", R"({"a":1})", R"({"b":"x","a":1})", R"({"b":"x","d":1})", R"({"b":1})",
       R"({,"b":"x"})"});
  // Members that are not named come only where the schema says so, and never repeat a named one.
  ExpectTexts(
      R"({"properties":{"ab":{"type":"null"},"\u00e9":{}},"additionalProperties":{"type":"integer"}})",
      {"{}", R"({"ab":null})", R"({"ab":null,"a":1})", R"({"abc":2,"b":3})", R"({"":1})"},
      {R"({"ab":1})", R"({"a":"x"})", R"({"x":1,"ab":null})", R"({"\u0061b":1})"});
  ExpectTexts(R"({"type":"object"})", {R"({"a":{"b":[]}})", "{}"}, {"[]"});
  ExpectTexts(R"({"type":"object","properties":{"a":{}}})", {"{}", R"({"a":1})"}, {R"({"b":1})"});
}

TEST(SchemaTest, ArraysAndStrings) {
  ExpectTexts(R"({"type":"array","items":{"type":"null"},"minItems":1,"maxItems":2})",
              {"[null]", "[null, null]"}, {"[]", "[null,null,null]", "[1]"});
  ExpectTexts(R"({"type":"array","items":{"type":"null"},"minItems":2})",
              {"[null,null]", "[null,null,null,null]"}, {"[]", "[null]"});
  ExpectTexts(R"({"type":"array","items":true,"maxItems":0})", {"[]"}, {"[1]"});
  ExpectTexts(R"({"type":"string","minLength":1,"maxLength":2})",
              {"\"a\"", "\"\xc3\xa9\xc3\xa9\"", R"("\u00e9b")"}, {"\"\"", "\"abc\""});
  ExpectTexts(R"({"type":"string","minLength":2})", {"\"ab\"", "\"abcdef\""}, {"\"a\""});
}

TEST(SchemaTest, NumbersInRanges) {
  for (const auto& [low, high] : std::vector<std::pair<int, int>>{
           {0, 0}, {-3, 12}, {7, 123}, {-250, -19}, {99, 1001}, {-1, 0}, {10, 10}}) {
    const auto whole =
        Compiled(StrCat(R"({"type":"integer","minimum":)", low, R"(,"maximum":)", high, "}"));
    const auto any =
        Compiled(StrCat(R"({"type":"number","minimum":)", low, R"(,"maximum":)", high, "}"));
    for (int i = -1100; i <= 1100; ++i) {
      EXPECT_EQ(Matches(whole, StrCat(i)), i >= low && i <= high) << i << " " << low << " " << high;
      EXPECT_EQ(Matches(any, StrCat(i)), i >= low && i <= high) << i;
      const double value = i < 0 ? i - 0.5 : i + 0.5;
      EXPECT_EQ(Matches(any, StrCat(i, ".5")), value >= low && value <= high)
          << value << " " << low << " " << high;
    }
  }
  ExpectTexts(R"({"type":"integer","minimum":-9007199254740991,"maximum":9007199254740991})",
              {"9007199254740991", "-9007199254740991", "0"}, {"9007199254740992", "1.0", "00"});
  ExpectTexts(R"({"type":"integer","exclusiveMinimum":2,"maximum":4.5})", {"3", "4"}, {"2", "5"});
  ExpectTexts(R"({"type":"number","minimum":0})", {"0", "0.25", "17"}, {"-1", "-0.5"});
}

TEST(SchemaTest, ConstantsAndAlternatives) {
  ExpectTexts(R"({"enum":["a\"b",1,null,{"x":[1]}]})", {R"("a\"b")", "1", "null", R"({"x":[1]})"},
              {"\"a\"", "2"});
  ExpectTexts(R"({"type":"string","enum":["a",1]})", {"\"a\""}, {"1"});
  ExpectTexts(R"({"anyOf":[{"type":"integer"},{"type":"null"}]})", {"5", "null"}, {"\"5\""});
  ExpectTexts(R"({"type":["string","null"],"maxLength":1})", {"\"a\"", "null"}, {"\"ab\""});
  ExpectTexts(R"({"oneOf":[{"type":"object","properties":{"k":{"const":"a"}},"required":["k"]},
                           {"type":"object","properties":{"k":{"const":"b"},"n":{"type":"integer"}},"required":["k","n"]}]})",
              {R"({"k":"a"})", R"({"k":"b","n":1})"}, {R"({"k":"b"})", R"({"k":"c"})"});
  ExpectTexts(R"({"allOf":[{"type":"boolean"}]})", {"true"}, {"null"});
}

TEST(SchemaTest, ReferencesMayRecurse) {
  const std::string list =
      R"({"$defs":{"n":{"anyOf":[{"type":"null"},{"type":"object","properties":{"next":{"$ref":"#/$defs/n"}},"required":["next"]}]}},"$ref":"#/$defs/n"})";
  ExpectTexts(list, {"null", R"({"next":null})", R"({"next": {"next":null}})"},
              {R"({"next":})", "{}"});
  // A text may not begin what it could not finish within the depth.
  GrammarLimits shallow;
  shallow.max_depth = 6;
  const Json schema = ParseJson(list).value();
  const auto grammar = CompileSchema(schema, shallow);
  ASSERT_TRUE(grammar.ok());
  EXPECT_TRUE(Matches(grammar.value(), R"({"next":{"next":null}})"));
  EXPECT_FALSE(Matches(grammar.value(), R"({"next":{"next":{"next":{"next":{"next":null}}}}})"));
  ExpectTexts(
      R"({"type":"object","properties":{"c":{"type":"array","items":{"$ref":"#"}}},"required":["c"]})",
      {R"({"c":[]})", R"({"c":[{"c":[]}, {"c":[]}]})"}, {"{}"});
}

TEST(SchemaTest, Patterns) {
  const auto pattern = [](const std::string& text) {
    return StrCat(R"({"type":"string","pattern":)", WriteJson(Json(text)), "}");
  };
  ExpectTexts(pattern("^a[b-d]{2,3}$"), {"\"abb\"", "\"abcd\""},
              {"\"ab\"", "\"abbbb\"", "\"abe\""});
  ExpectTexts(pattern("b+"), {"\"abbc\"", "\"b\""}, {"\"a\"", "\"\""});
  ExpectTexts(pattern("^(?:x|yz)*$|^\\d\\.\\w?$"), {"\"\"", "\"xyzx\"", "\"1.a\"", "\"1.\""},
              {"\"y\"", "\"11\""});
  ExpectTexts(pattern("^[^a-z\"]\\S$"), {"\"A\xc3\xa9\"", R"("\\B")"}, {"\"aB\"", "\"A \""});
  ExpectTexts(pattern("^\\u00e9[\\\\\\]-]$"),
              {"\"\xc3\xa9-\"", "\"\xc3\xa9]\"", "\"\xc3\xa9\\\\\""}, {"\"e-\""});
  for (const char* bad : {"(", "a)", "[a", "*a", "a**", "a{3,2}", "a{5000}", "\\"})
    EXPECT_THAT(ErrorOf(pattern(bad)), HasSubstr("schema.pattern")) << bad;
  for (const char* unsupported : {"a(?=b)", "(a)\\1", "\\bx", "(?<n>a)", "a^b", "\\p{L}"})
    EXPECT_THAT(ErrorOf(pattern(unsupported)), HasSubstr("expected letters, classes"))
        << unsupported;
}

TEST(SchemaTest, Formats) {
  const auto format = [](const std::string& name) {
    return StrCat(R"({"type":"string","format":")", name, "\"}");
  };
  ExpectTexts(format("date"), {"\"2026-01-31\"", "\"2024-02-29\"", "\"2000-02-29\""},
              {"\"2026-02-29\"", "\"1900-02-29\"", "\"2026-04-31\"", "\"2026-13-01\""});
  ExpectTexts(format("date-time"), {"\"2026-01-31T23:59:59Z\"", "\"2026-01-31T00:00:00.5+01:00\""},
              {"\"2026-01-31\"", "\"2026-01-31T24:00:00Z\""});
  ExpectTexts(format("uuid"), {"\"01234567-89ab-cdef-0123-456789abcdef\""}, {"\"0123\""});
  ExpectTexts(format("email"), {"\"a.b@example.org\""}, {"\"a@b\"", "\"@b.de\""});
  ExpectTexts(format("ipv4"), {"\"127.0.0.1\"", "\"255.255.255.255\""},
              {"\"256.0.0.1\"", "\"1.2.3\""});
  EXPECT_THAT(ErrorOf(format("hostname")), HasSubstr("\"hostname\", which is not supported"));
}

TEST(SchemaTest, WhatIsNotSupportedIsRefusedByName) {
  EXPECT_THAT(ErrorOf(R"({"type":"object","properties":{"a":{"not":{}}}})"),
              HasSubstr("schema.properties.a has the keyword \"not\", which is not supported"));
  for (const char* keyword : {"patternProperties", "uniqueItems", "if", "multipleOf", "prefixItems",
                              "minProperties", "contains", "x-mine", "nullable"}) {
    EXPECT_THAT(ErrorOf(StrCat("{\"", keyword, "\":true}")), HasSubstr(keyword));
  }
  EXPECT_THAT(ErrorOf(R"({"enum":["a"],"minLength":1})"), HasSubstr("minLength beside enum"));
  EXPECT_THAT(ErrorOf(R"({"oneOf":[{"type":"string"},{"type":"string"}]})"),
              HasSubstr("may both fit"));
  EXPECT_THAT(ErrorOf(R"({"allOf":[{},{}]})"), HasSubstr("merge them"));
  EXPECT_THAT(ErrorOf(R"({"type":"number","minimum":0.5})"), HasSubstr("a whole number"));
  EXPECT_THAT(ErrorOf(R"({"type":"int"})"), HasSubstr("\"int\", expected object"));
  EXPECT_THAT(ErrorOf(R"({"$ref":"http://x"})"), HasSubstr("schema.$ref is"));
  EXPECT_THAT(ErrorOf(R"({"$ref":"#/$defs/x"})"), HasSubstr("not there"));
  EXPECT_THAT(ErrorOf("[]"), HasSubstr("schema is an array"));
  // No finite text: it demands itself, or what is forbidden.
  EXPECT_THAT(ErrorOf(R"({"$ref":"#"})"), HasSubstr("no finite text"));
  EXPECT_THAT(ErrorOf(R"({"properties":{"a":{"$ref":"#"}},"required":["a"]})"),
              HasSubstr("no finite text"));
  EXPECT_THAT(ErrorOf(R"({"properties":{"a":false},"required":["a"]})"),
              HasSubstr("no finite text"));
}

TEST(SchemaTest, LimitsHold) {
  EXPECT_THAT(ErrorOf(R"({"type":"string","maxLength":100000})"), HasSubstr("from 0 to 10000"));
  EXPECT_THAT(ErrorOf(R"({"type":"string","pattern":"((a{1000}){1000}){1000}"})"),
              HasSubstr("more than 100000 states"));
  std::string big = "{\"anyOf\":[";
  for (int i = 0; i < 10001; ++i) big += "{\"type\":\"null\"},";
  EXPECT_THAT(ErrorOf(big + "{}]}"), HasSubstr("more than 10000 schemas"));
  // Each of the two may begin with either: more readings than can be followed.
  const Json schema = ParseJson(R"({"$ref":"#/$defs/a","$defs":{
      "a":{"anyOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/b"},{"type":"null"}]},
      "b":{"anyOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/b"},{"type":"null"}]}}})")
                          .value();
  const auto grammar = CompileSchema(schema);
  ASSERT_TRUE(grammar.ok());
  EXPECT_TRUE(GrammarMatcher(grammar.value()).exhausted());
}

class MaskTest : public testing::Test {
 protected:
  static std::shared_ptr<const TokenTrie> Trie() {
    static const auto trie = [] {
      const auto tokenizer = Tokenizer::Load(StrCat(LS_SOURCE_DIR, "/models/needle"));
      return std::make_shared<const TokenTrie>(*tokenizer.value());
    }();
    return trie;
  }
  static constexpr int32_t kEnd = 4084;
  // What may come next, of so many tokens.
  static std::vector<int32_t> Allowed(TokenConstraint& constraint, size_t num_tokens) {
    std::vector<uint64_t> words((num_tokens + 63) / 64, ~uint64_t{0});
    const Status status = constraint.Mask(words);
    EXPECT_TRUE(status.ok()) << status.message();
    std::vector<int32_t> allowed;
    for (size_t id = 0; id < num_tokens; ++id) {
      if (((words[id / 64] >> (id % 64)) & 1) != 0) allowed.push_back(static_cast<int32_t>(id));
    }
    return allowed;
  }
  // An answer of random tokens under the mask, or at most `most` tokens of one.
  static std::string Draw(const std::shared_ptr<TokenMasker>& masker,
                          uint64_t seed,
                          int most,
                          bool* whole) {
    GrammarConstraint constraint(masker);
    Rng rng(seed);
    std::string text;
    *whole = false;
    for (int i = 0; i < most && !*whole; ++i) {
      const std::vector<int32_t> allowed = Allowed(constraint, 4096 + 100);
      if (allowed.empty()) break;
      // Short tokens first, or a string would never end.
      const auto shortest = std::find_if(allowed.begin(), allowed.end(), [&](int32_t id) {
        return id == kEnd || Trie()->TextOf(id) == "\"";
      });
      const bool end_it = shortest != allowed.end() && rng.NextDouble() < 0.3;
      const int32_t token = end_it ? *shortest
                                   : allowed[static_cast<size_t>(
                                         rng.NextDouble() * static_cast<double>(allowed.size()))];
      if (token == kEnd) {
        *whole = true;
        break;
      }
      EXPECT_TRUE(constraint.Accept(token).ok());
      text += Trie()->TextOf(token);
      *whole = constraint.complete();
    }
    return text;
  }
};

TEST_F(MaskTest, RandomAnswersAreJsonOfTheSchema) {
  const auto grammar = Compiled(
      R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0,"maximum":130},
          "tags":{"type":"array","items":{"enum":["red","green"]},"maxItems":3},"more":{}},
          "required":["name","age","tags"],"additionalProperties":false})");
  const auto masker = std::make_shared<TokenMasker>(grammar, Trie(), std::vector<int32_t>{kEnd});
  ASSERT_TRUE(masker->Warm().ok());
  int finished = 0;
  for (uint64_t seed = 0; seed < 30; ++seed) {
    bool whole = false;
    const std::string text = Draw(masker, seed, 200, &whole);
    if (!whole) continue;
    ++finished;
    const Result<Json> json = ParseJson(text);
    ASSERT_TRUE(json.ok()) << text << " " << json.status().message();
    ASSERT_NE(json.value().Find("age"), nullptr) << text;
    EXPECT_TRUE(json.value().Find("age")->is_int());
    EXPECT_LE(json.value().Find("age")->as_int(), 130);
    EXPECT_TRUE(json.value().Find("name")->is_string());
    EXPECT_LE(json.value().Find("tags")->as_array().size(), 3u);
  }
  EXPECT_GT(finished, 10);
}

TEST_F(MaskTest, TheEndComesWithTheLastByteOrWithTheEndToken) {
  const auto masker = std::make_shared<TokenMasker>(Compiled(R"({"const":{"a":1}})"), Trie(),
                                                    std::vector<int32_t>{kEnd});
  bool whole = false;
  EXPECT_EQ(Draw(masker, 1, 50, &whole), R"({"a":1})");
  EXPECT_TRUE(whole);
  // A number could go on: it ends by the token.
  const auto number = std::make_shared<TokenMasker>(Compiled(R"({"enum":[1,12]})"), Trie(),
                                                    std::vector<int32_t>{kEnd});
  GrammarConstraint constraint(number);
  EXPECT_THAT(Allowed(constraint, 4096), Not(Contains(kEnd)));
  int32_t one = 0;
  while (Trie()->TextOf(one) != "1") ++one;
  ASSERT_TRUE(constraint.Accept(one).ok());
  EXPECT_FALSE(constraint.complete());
  EXPECT_THAT(Allowed(constraint, 4096), Contains(kEnd));
  EXPECT_FALSE(constraint.Accept(one).ok());  // "11"
}

TEST_F(MaskTest, BytesOfACharacterMayComeOneByOne) {
  // Three-byte and one-byte tokens of one alphabet, as byte fallback has them.
  std::vector<std::string> texts = {"",     "\"",           "\xe2", "\x82",
                                    "\xac", "\xe2\x82\xac", "\xff", "a\""};
  const auto masker = std::make_shared<TokenMasker>(Compiled(R"({"const":"\u20aca"})"),
                                                    std::make_shared<const TokenTrie>(texts),
                                                    std::vector<int32_t>{0});
  GrammarConstraint constraint(masker);
  const auto allowed = [&] { return Allowed(constraint, texts.size()); };
  EXPECT_EQ(allowed(), std::vector<int32_t>({1}));
  ASSERT_TRUE(constraint.Accept(1).ok());
  EXPECT_EQ(allowed(), std::vector<int32_t>({2, 5}));
  ASSERT_TRUE(constraint.Accept(2).ok());
  EXPECT_EQ(allowed(), std::vector<int32_t>({3}));
  ASSERT_TRUE(constraint.Accept(3).ok());
  ASSERT_TRUE(constraint.Accept(4).ok());
  EXPECT_EQ(allowed(), std::vector<int32_t>({7}));
  ASSERT_TRUE(constraint.Accept(7).ok());
  EXPECT_TRUE(constraint.complete());
}

TEST_F(MaskTest, AVocabularyWithoutTheBytesIsAnErrorNotALoop) {
  const auto masker = std::make_shared<TokenMasker>(
      Compiled("true"), std::make_shared<const TokenTrie>(std::vector<std::string>{"", "x", "y"}),
      std::vector<int32_t>{0});
  EXPECT_THAT(masker->Warm().message(), HasSubstr("no token of the vocabulary"));
}

}  // namespace
}  // namespace lserve
