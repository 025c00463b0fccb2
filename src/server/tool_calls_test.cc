// Calls of tools: which way a template stands for, reading calls from text in pieces of any size,
// and the grammars of both ways.
#include "server/tool_calls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/mapped_file.h"
#include "base/strings.h"
#include "grammar/grammar_matcher.h"
#include "server/output_grammar.h"

namespace lserve {
namespace {

ToolOptions TwoTools() {
  ToolOptions options;
  for (const char* name : {"get", "get_all"}) {
    options.tools.push_back(
        {name, "d", ParseJson(R"({"type":"object","properties":{"a":{"type":"integer"}}})").value(),
         "t"});
  }
  return options;
}

std::string Template(const std::string& name) {
  return ReadTextFile(StrCat(LS_SOURCE_DIR, "/tests/goldens/text/templates/", name, ".jinja"))
      .value();
}

// "text|name(arguments)|..." of an answer that comes in pieces of `size` bytes.
std::string Read(ToolStyle style, const std::string& text, size_t size, bool whole = true) {
  ToolCallReader reader(style, TwoTools());
  std::string out;
  for (size_t at = 0; at <= text.size(); at += size) {
    const bool last = at + size > text.size();
    for (const OutputPiece& piece : reader.Push(text.substr(at, size), last, whole)) {
      if (piece.kind == OutputPiece::Kind::kCallBegin) out += StrCat("|", piece.text, "(");
      if (piece.kind == OutputPiece::Kind::kText || piece.kind == OutputPiece::Kind::kCallArguments)
        out += piece.text;
      if (piece.kind == OutputPiece::Kind::kCallEnd) out += ")";
    }
  }
  return out;
}

TEST(ToolStyleTest, IsFoundInTheTemplate) {
  EXPECT_EQ(ToolStyleOf(Template("qwen3")), ToolStyle::kTagged);
  EXPECT_EQ(ToolStyleOf(Template("llama31")), ToolStyle::kBareJson);
  EXPECT_EQ(ToolStyleOf(Template("llama2")), ToolStyle::kDescribed);
  EXPECT_EQ(ToolStyleOf(""), ToolStyle::kDescribed);
}

TEST(ToolCallReaderTest, PiecesOfAnySize) {
  const std::string tagged =
      "Hello < <tool\n<tool_call>\n{\"name\": \"get_all\", \"arguments\": {\"a\": "
      "\"}</tool_call>\"}}\n</tool_call>\n"
      "<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>";
  const std::string bare = "{\"name\": \"get\", \"parameters\": {\"a\": {}}}";
  for (size_t size = 1; size < 40; ++size) {
    EXPECT_EQ(Read(ToolStyle::kTagged, tagged, size),
              "Hello < <tool\n|get_all({\"a\": \"}</tool_call>\"})|get({})")
        << size;
    EXPECT_EQ(Read(ToolStyle::kDescribed, "no < call", size), "no < call");
    EXPECT_EQ(Read(ToolStyle::kBareJson, bare, size), "|get({\"a\": {}})") << size;
    EXPECT_EQ(Read(ToolStyle::kBareJson, "{\"name\": 1}", size), "{\"name\": 1}");
    EXPECT_EQ(Read(ToolStyle::kBareJson, "plain " + bare, size), "plain " + bare);
    // Cut off: what there is of the arguments, and nothing taken from them.
    EXPECT_EQ(Read(ToolStyle::kBareJson, bare.substr(0, bare.size() - 1), size, false),
              "|get({\"a\": {}})");
    EXPECT_EQ(Read(ToolStyle::kTagged, "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\"",
                   size, false),
              "|get({\"a\")");
  }
}

class OutputGrammarTest : public testing::Test {
 protected:
  void SetUp() override {
    tokenizer_ = Tokenizer::Load(StrCat(LS_SOURCE_DIR, "/models/needle")).value();
  }
  static bool IsAllowed(TokenConstraint& constraint, int32_t token) {
    const size_t id = static_cast<size_t>(token);
    std::vector<uint64_t> words(id / 64 + 1, ~uint64_t{0});
    const Status status = constraint.Mask(words);
    EXPECT_TRUE(status.ok()) << status.message();
    return ((words[id / 64] >> (id % 64)) & 1) != 0;
  }
  // Whether the mask lets a text through, token by token, and lets it end there.
  bool Accepts(ToolStyle style,
               const ToolOptions& tools,
               const std::string& text,
               const OutputFormat& format = {}) {
    OutputGrammars grammars(tokenizer_.get(), {*tokenizer_->eos_id()});
    std::shared_ptr<TokenMasker> masker;
    const auto error = grammars.Find(format, tools, style, &masker);
    EXPECT_FALSE(error.has_value()) << error->message;
    EncodeOptions plain;
    plain.add_special_tokens = false;
    GrammarConstraint constraint(masker);
    for (const int32_t token : tokenizer_->Encode(text, plain).value()) {
      if (!constraint.Accept(token).ok()) return false;
    }
    return constraint.complete() || IsAllowed(constraint, *tokenizer_->eos_id());
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(OutputGrammarTest, BothWaysOfCalls) {
  const std::string tagged =
      "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": 1}}\n</tool_call>";
  const std::string bare = "{\"name\": \"get\", \"parameters\": {\"a\": 1}}";
  ToolOptions tools = TwoTools();
  EXPECT_TRUE(Accepts(ToolStyle::kTagged, tools, "Well, <tool <b> \xc3\xa9 " + tagged));
  EXPECT_TRUE(Accepts(ToolStyle::kTagged, tools, tagged + "\n" + tagged));
  EXPECT_TRUE(Accepts(ToolStyle::kTagged, tools, ""));
  EXPECT_FALSE(Accepts(ToolStyle::kTagged, tools, tagged + " and text"));
  EXPECT_FALSE(Accepts(ToolStyle::kTagged, tools, "<tool_call>\n{\"name\": \"other\""));
  EXPECT_TRUE(Accepts(ToolStyle::kBareJson, tools, "Plain text {"));
  EXPECT_TRUE(Accepts(ToolStyle::kBareJson, tools, bare));
  EXPECT_FALSE(Accepts(ToolStyle::kBareJson, tools, "{\"x\": 1}"));
  tools.choice = ToolOptions::Choice::kRequired;
  EXPECT_FALSE(Accepts(ToolStyle::kTagged, tools, "Well"));
  EXPECT_TRUE(Accepts(ToolStyle::kTagged, tools, tagged + "\n" + tagged));
  EXPECT_TRUE(Accepts(ToolStyle::kBareJson, tools, bare));
  tools.only = "get_all";
  EXPECT_FALSE(Accepts(ToolStyle::kTagged, tools, tagged));
  tools.only = "get";
  EXPECT_FALSE(Accepts(ToolStyle::kTagged, tools, tagged + "\n" + tagged));
}

TEST_F(OutputGrammarTest, TokenizersOfAllKinds) {
  const OutputFormat format = {.kind = OutputFormat::Kind::kJsonObject, .schema = {}, .where = ""};
  const std::string text = "{\"na me\": [\"\xc3\xa9\xe2\x82\xac \xf0\x9f\x98\x80\", 12, true]}";
  for (const char* name : {"gpt2", "llama3", "qwen2", "sp_legacy", "sp_metaspace"}) {
    const auto tokenizer =
        Tokenizer::Load(StrCat(LS_SOURCE_DIR, "/tests/goldens/text/", name)).value();
    OutputGrammars grammars(tokenizer.get(), {0});
    std::shared_ptr<TokenMasker> masker;
    const auto error = grammars.Find(format, {}, ToolStyle::kTagged, &masker);
    ASSERT_FALSE(error.has_value()) << name << error->message;
    GrammarConstraint constraint(masker);
    EncodeOptions plain;
    plain.add_special_tokens = false;
    const std::vector<int32_t> ids = tokenizer->Encode(text, plain).value();
    for (const int32_t id : ids) {
      EXPECT_TRUE(IsAllowed(constraint, id)) << name << " " << id;
      ASSERT_TRUE(constraint.Accept(id).ok()) << name << " " << id << " " << tokenizer->BytesOf(id);
    }
    EXPECT_TRUE(constraint.complete()) << name;
    EXPECT_EQ(tokenizer->Decode(ids).value(), text) << name;
  }
}

TEST_F(OutputGrammarTest, AFormatOrACall) {
  const OutputFormat format = {.kind = OutputFormat::Kind::kJsonSchema,
                               .schema = ParseJson(R"({"enum":["x"]})").value(),
                               .where = "f"};
  EXPECT_TRUE(Accepts(ToolStyle::kTagged, TwoTools(), "\"x\"", format));
  EXPECT_TRUE(Accepts(ToolStyle::kTagged, TwoTools(),
                      "<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>", format));
  EXPECT_FALSE(Accepts(ToolStyle::kTagged, TwoTools(), "x", format));
}

}  // namespace
}  // namespace lserve
