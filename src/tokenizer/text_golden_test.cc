// Ids, texts and prompts that Hugging Face tokenizers and transformers made
// (tools/make_text_goldens.py), compared value by value.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/strings.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace lserve {
namespace {

const std::string kGoldens = LS_SOURCE_DIR "/tests/goldens/text/";

Json ReadGolden(const std::string& name) {
  Result<std::string> text = ReadTextFile(kGoldens + name);
  EXPECT_TRUE(text.ok()) << text.status().message();
  if (!text.ok()) return {};
  Result<Json> json = ParseJson(text.value());
  EXPECT_TRUE(json.ok()) << json.status().message();
  return json.ok() ? std::move(json).value() : Json();
}

std::vector<TokenId> IdsOf(const Json& json) {
  std::vector<TokenId> ids;
  for (const Json& id : json.as_array()) ids.push_back(static_cast<TokenId>(id.as_int()));
  return ids;
}

std::unique_ptr<Tokenizer> LoadFamily(const std::string& name) {
  const std::string dir =
      name == "needle" ? std::string(LS_SOURCE_DIR "/models/needle") : kGoldens + name;
  Result<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(dir);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return tokenizer.ok() ? std::move(tokenizer).value() : nullptr;
}

// Pushes the ids one by one; every piece must be complete UTF-8.
std::string Stream(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool skip_special) {
  StreamDetokenizer stream(tokenizer, skip_special);
  std::string text;
  for (const TokenId id : ids) {
    const Result<std::string> piece = stream.Push(id);
    EXPECT_TRUE(piece.ok());
    EXPECT_EQ(FindInvalidUtf8(piece.value()), piece.value().size());
    text += piece.value();
  }
  return text + stream.Finish();
}

class FamilyTest : public testing::TestWithParam<const char*> {};

TEST_P(FamilyTest, EncodesAsTransformers) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadFamily(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const Json golden = ReadGolden(StrCat(GetParam(), "/cases.json"));
  const Json::Array& cases = golden.Find("encode")->as_array();
  ASSERT_GT(cases.size(), 100u);
  for (const Json& one : cases) {
    const std::string& text = one.Find("text")->as_string();
    SCOPED_TRACE(WriteJson(*one.Find("text"), {0, false, true}));
    const auto plain = tokenizer->Encode(text, {false, false});
    ASSERT_TRUE(plain.ok()) << plain.status().message();
    EXPECT_EQ(plain.value(), IdsOf(*one.Find("ids")));
    const auto matched = tokenizer->Encode(text, {true, true});
    ASSERT_TRUE(matched.ok()) << matched.status().message();
    EXPECT_EQ(matched.value(), IdsOf(*one.Find("ids_special")));
  }
}

TEST_P(FamilyTest, DecodesAsTransformers) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadFamily(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const Json golden = ReadGolden(StrCat(GetParam(), "/cases.json"));
  const auto check = [&](const Json& ids_json, const Json& skipped, const Json& kept) {
    const std::vector<TokenId> ids = IdsOf(ids_json);
    SCOPED_TRACE(WriteJson(ids_json));
    EXPECT_EQ(tokenizer->Decode(ids, true).value(), skipped.as_string());
    EXPECT_EQ(tokenizer->Decode(ids, false).value(), kept.as_string());
    EXPECT_EQ(Stream(*tokenizer, ids, true), skipped.as_string());
    EXPECT_EQ(Stream(*tokenizer, ids, false), kept.as_string());
  };
  for (const Json& one : golden.Find("encode")->as_array()) {
    check(*one.Find("ids_special"), *one.Find("decoded"), *one.Find("decoded_special"));
  }
  for (const Json& one : golden.Find("decode")->as_array()) {
    check(*one.Find("ids"), *one.Find("text"), *one.Find("text_special"));
  }
}

// The same file with its merges spelled the other way: "a b", or ["a", "b"].
std::string WithOtherMerges(const std::string& text) {
  Json json = ParseJson(text).value();
  for (auto& [part, model] : json.mutable_object()) {
    if (part != "model") continue;
    for (auto& [name, merges] : model.mutable_object()) {
      if (name != "merges") continue;
      for (Json& merge : merges.mutable_array()) {
        if (merge.is_array()) {
          merge = StrCat(merge.as_array()[0].as_string(), " ", merge.as_array()[1].as_string());
        } else {
          const std::string pair = merge.as_string();
          const size_t space = pair.find(' ');
          merge = Json(Json::Array{pair.substr(0, space), pair.substr(space + 1)});
        }
      }
    }
  }
  return WriteJson(json);
}

TEST(MergesTest, BothSpellingsGiveTheSameIds) {
  for (const char* family : {"llama3", "gpt2", "sp_legacy", "sp_metaspace"}) {
    SCOPED_TRACE(family);
    TokenizerFiles files;
    files.tokenizer_json = ReadTextFile(StrCat(kGoldens, family, "/tokenizer.json")).value();
    const std::string other = WithOtherMerges(files.tokenizer_json);
    ASSERT_EQ(WithOtherMerges(other), WriteJson(ParseJson(files.tokenizer_json).value()));
    ASSERT_NE(other, WithOtherMerges(other));
    files.tokenizer_json = other;
    files.tokenizer_config_json =
        ReadTextFile(StrCat(kGoldens, family, "/tokenizer_config.json")).value();
    const auto tokenizer = Tokenizer::FromFiles(files);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    const Json golden = ReadGolden(StrCat(family, "/cases.json"));
    for (const Json& one : golden.Find("encode")->as_array()) {
      const std::string& text = one.Find("text")->as_string();
      EXPECT_EQ(tokenizer.value()->Encode(text, {true, true}).value(),
                IdsOf(*one.Find("ids_special")))
          << WriteJson(*one.Find("text"), {0, false, true});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All,
    FamilyTest,
    testing::Values("gpt2", "llama3", "qwen2", "other", "sp_legacy", "sp_metaspace", "needle"));

// The classes of our splitters against those of the engine that the files are written for,
void ExpectClass(const std::string& name, const std::function<bool(char32_t)>& has) {
  const Json golden = ReadGolden("classes.json");
  std::vector<bool> expected(0x110000, false);
  for (const Json& range : golden.Find(name)->as_array()) {
    for (int64_t c = range.as_array()[0].as_int(); c <= range.as_array()[1].as_int(); ++c) {
      expected[static_cast<size_t>(c)] = true;
    }
  }
  int differing = 0;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    if (has(c) != expected[c] && ++differing < 40) {
      ADD_FAILURE() << name << " U+" << std::hex << static_cast<uint32_t>(c) << " expected "
                    << expected[c];
    }
  }
  EXPECT_EQ(differing, 0) << name;
}

TEST(ClassesTest, Letters) {
  ExpectClass("letter", IsLetter);
}
TEST(ClassesTest, Numbers) {
  ExpectClass("number", IsNumber);
}
TEST(ClassesTest, WhiteSpace) {
  ExpectClass("space", IsWhiteSpace);
}

TEST(ChatGoldenTest, RendersAsTransformers) {
  const Json golden = ReadGolden("chat.json");
  ASSERT_GT(golden.as_array().size(), 40u);
  int refused = 0;
  for (const Json& one : golden.as_array()) {
    const std::string& name = one.Find("template")->as_string();
    const std::unique_ptr<Tokenizer> tokenizer = LoadFamily(one.Find("tokenizer")->as_string());
    SCOPED_TRACE(StrCat(name, " ", WriteJson(*one.Find("messages"), {0, false, true})));
    Json::Object variables;
    const auto add = [&](const char* variable, std::optional<TokenId> id) {
      if (id.has_value()) variables.emplace_back(variable, *tokenizer->IdToToken(*id));
    };
    add("bos_token", tokenizer->bos_id());
    add("eos_token", tokenizer->eos_id());
    const auto chat_template =
        ChatTemplate::Parse(ReadTextFile(kGoldens + "templates/" + name).value(), Json(variables));
    ASSERT_TRUE(chat_template.ok()) << chat_template.status().message();
    ChatRequest request;
    request.messages = *one.Find("messages");
    request.tools = *one.Find("tools");
    request.extra = *one.Find("extra");
    request.add_generation_prompt = one.Find("add_generation_prompt")->as_bool();
    const Result<RenderedPrompt> prompt = chat_template.value().Render(request);
    if (const Json* error = one.Find("error")) {
      ++refused;
      EXPECT_FALSE(prompt.ok()) << "expected: " << error->as_string();
      continue;
    }
    ASSERT_TRUE(prompt.ok()) << prompt.status().message();
    EXPECT_EQ(prompt.value().text, one.Find("text")->as_string());
    const auto ids = tokenizer->EncodeChat(prompt.value());
    ASSERT_TRUE(ids.ok()) << ids.status().message();
    EXPECT_EQ(ids.value(), IdsOf(*one.Find("ids")));
  }
  EXPECT_LT(refused, 10);
}

}  // namespace
}  // namespace lserve
