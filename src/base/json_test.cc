#include "base/json.h"

#include <gtest/gtest.h>

#include <cmath>

namespace lserve {
namespace {

TEST(Json, ParsesEveryKindInOrder) {
  const Json json =
      ParseJson(R"({"b": [1, -2.5, true, null], "a": {"x": "\u00e9\ud83d\ude00"}})").value();
  ASSERT_EQ(json.as_object().size(), 2u);
  EXPECT_EQ(json.as_object()[0].first, "b");
  const Json::Array& items = json.Find("b")->as_array();
  EXPECT_EQ(items[0].as_int(), 1);
  EXPECT_EQ(items[1].as_double(), -2.5);
  EXPECT_TRUE(items[2].as_bool());
  EXPECT_TRUE(items[3].is_null());
  EXPECT_EQ(json.Find("a")->Find("x")->as_string(), "\xc3\xa9\xf0\x9f\x98\x80");
  EXPECT_EQ(json.Find("none"), nullptr);
}

TEST(Json, RejectsBadText) {
  for (const char* text : {"", "{", "[1,]", "{\"a\":1} x", "\"\xff\"", "{\"a\":1,\"a\":2}", "01",
                           "18446744073709551615", "nul", "\"\\ud800\""}) {
    const Result<Json> result = ParseJson(text);
    EXPECT_FALSE(result.ok()) << text;
    EXPECT_NE(result.status().message().find("JSON"), std::string::npos);
  }
}

TEST(Json, DepthIsBounded) {
  EXPECT_FALSE(ParseJson(std::string(100000, '[')).ok());
  EXPECT_FALSE(ParseJson(std::string(100, '[') + std::string(100, ']')).ok());
  EXPECT_TRUE(ParseJson(std::string(30, '[') + std::string(30, ']')).ok());
}

TEST(Json, WritesWhatItReads) {
  const std::string text = R"({"a":[1,2.5,1e+300,true,null],"b":{"c":"\"\\\n\u0001)"
                           "\xc3\xa9"
                           R"("},"d":[],"e":{}})";
  EXPECT_EQ(WriteJson(ParseJson(text).value()), text);
  EXPECT_EQ(WriteJson(Json("\xc3\xa9\xf0\x9f\x98\x80"), {.ascii_only = true}),
            "\"\\u00e9\\ud83d\\ude00\"");
  EXPECT_EQ(WriteJson(Json(std::nan(""))), "null");
  EXPECT_EQ(WriteJson(Json(3.0)), "3.0");
  EXPECT_EQ(WriteJson(Json(Json::Array{1, 2}), {.space_after = true}), "[1, 2]");
  EXPECT_EQ(WriteJson(Json(Json::Array{1, 2}), {.indent = 2}), "[\n  1,\n  2\n]");
}

}  // namespace
}  // namespace lserve
