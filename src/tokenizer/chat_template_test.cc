#include "tokenizer/chat_template.h"

#include <gtest/gtest.h>

#include <string>

#include "base/json.h"

namespace lserve {
namespace {

Result<RenderedPrompt> Render(const std::string& source,
                              const std::string& messages = R"([{"role":"user","content":"hi"}])",
                              const ChatTemplateLimits& limits = {}) {
  const auto chat_template =
      ChatTemplate::Parse(source, Json(Json::Object{{"bos_token", "<s>"}}), limits);
  if (!chat_template.ok()) return chat_template.status();
  ChatRequest request;
  request.messages = ParseJson(messages).value();
  return chat_template.value().Render(request);
}

// The rendered text with its user ranges in brackets.
std::string Marked(const std::string& source, const std::string& content) {
  const auto prompt = Render(
      source,
      WriteJson(Json(Json::Array{Json(Json::Object{{"role", "user"}, {"content", content}})})));
  if (!prompt.ok()) return prompt.status().message();
  std::string out;
  size_t at = 0;
  for (const ByteRange& range : prompt.value().user_ranges) {
    out += prompt.value().text.substr(at, range.begin - at);
    out += "[" + prompt.value().text.substr(range.begin, range.end - range.begin) + "]";
    at = range.end;
  }
  return out + prompt.value().text.substr(at);
}

TEST(ChatTemplateTest, MarksFollowUserText) {
  const std::string c = "{{ messages[0].content";
  EXPECT_EQ(Marked(c + " }}", "x"), "[x]");
  EXPECT_EQ(Marked("{{ bos_token + messages[0]['content'] + '<e>' }}", "x"), "<s>[x]<e>");
  EXPECT_EQ(Marked("a{{ messages[0].role ~ ':' ~ messages[0].content | trim }}b", " x "),
            "a[user]:[x]b");
  EXPECT_EQ(Marked(c + ".split('|')[-1] }}", "a|b"), "[b]");
  EXPECT_EQ(Marked(c + "[1:3] ~ '!' }}", "abcd"), "[bc]!");
  EXPECT_EQ(Marked(c + "[::-1] }}", "abc"), "[cba]");
  EXPECT_EQ(Marked(c + " | upper }}", "a\u00df"), "[ASS]");
  EXPECT_EQ(Marked(c + " | replace('b', '<e>') }}", "abc"), "[a<e>c]");
  EXPECT_EQ(Marked("{{ 'a-b' | replace('-', messages[0].content) }}", "X"), "a[X]b");
  EXPECT_EQ(Marked("{{ ['<a>', messages[0].content, '<b>'] | join('<') }}", "x"), "<a><[x]<<b>");
  EXPECT_EQ(Marked("{{ messages | map(attribute='content') | join }}", "x"), "[x]");
  EXPECT_EQ(Marked("<{{ messages[0] | tojson }}>", "x"),
            "<[{\"role\": \"user\", \"content\": \"x\"}]>");
  EXPECT_EQ(Marked("{% set t %}<{{ messages[0].content }}>{% endset %}{{ t | trim }}", "x"),
            "<[x]>");
  EXPECT_EQ(Marked("{% macro m(v) %}<{{ v }}>{% endmacro %}{{ m(messages[0].content) }}", "x"),
            "<[x]>");
  EXPECT_EQ(Marked("{% for ch in messages[0].content %}{{ ch }},{% endfor %}", "ab"), "[a],[b],");
  EXPECT_EQ(Marked("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "x"),
            "[role]=[user];[content]=[x];");
  EXPECT_EQ(Marked("{{ {'k': messages[0].content} }}", "x"), "{'k': ['x']}");
  EXPECT_EQ(Marked("{{ messages[0].content * 2 ~ '-' }}", "x"), "[xx]-");
  EXPECT_EQ(Marked("{{ messages[0].content | indent(2, true) }}", "x\ny"), "  [x]\n  [y]");
}

TEST(ChatTemplateTest, Errors) {
  const std::pair<const char*, const char*> kCases[] = {
      {"\n\n{{ raise_exception('no way') }}",
       "line 3: the template refuses these messages: no way"},
      {"{% include 'x' %}", "include"},
      {"{% for x in y recursive %}{% endfor %}", "recursive"},
      {"{{ x | frobnicate }}", "frobnicate"},
      {"{{ x is frobnicated }}", "frobnicated"},
      {"{{ frob() }}", "frob"},
      {"{{ x.y }}", "'x' is undefined"},
      {"{{ x + 'a' }}", "undefined"},
      {"{{ 'a' + 1 }}", "a string + an integer"},
      {"{{ 1 // 0 }}", "division by zero"},
      {"{{ 9223372036854775807 + 1 }}", "64 bits"},
      {"{{ 99999999999999999999 }}", "out of range"},
      {"{% if x %}", "endif"},
      {"{{ 'abc }}", "quote"},
      {"{{ (1 }}", "unbalanced"},
      {"{{", "tag without"},
      {"{# x", "comment"},
      {"{% raw %}x", "endraw"},
      {"{% endfor %}", "endfor"},
      {"{% break %}", "outside"},
      {"{{ [1].append(2) }}", "append"},
      {"{{ strftime_now('%Y') }}", "pin one"},
      {"{{ range(1000000) }}", "range"},
      {"{% set x.y = 1 %}", "namespace"},
      {"{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "takes 1"},
  };
  for (const auto& [source, expected] : kCases) {
    const auto prompt = Render(source);
    ASSERT_FALSE(prompt.ok()) << source;
    EXPECT_NE(prompt.status().message().find(expected), std::string::npos)
        << source << ": " << prompt.status().message();
  }
}

TEST(ChatTemplateTest, LimitsHold) {
  ChatTemplateLimits limits;
  limits.max_output_bytes = 10'000;
  limits.max_work_bytes = 1'000'000;
  limits.max_steps = 100'000;
  const std::string nested(100'000, '(');
  std::string tags;
  std::string sum = "{{ 1";
  for (int i = 0; i < 5000; ++i) tags += "{% if true %}";
  for (int i = 0; i < 5000; ++i) sum += " + 1";
  const std::string doubled = "{% set n = namespace(s='ab') %}{% for i in range(99) %}";
  const std::string kSources[] = {
      "{{ " + nested,
      tags,
      sum + " }}",
      "{{ " + std::string(5000, '-') + "1 }}",
      "{{ x" + std::string(5000, '[') + " }}",
      doubled + "{% set n.s = n.s + n.s %}{% endfor %}",
      "{{ 'abc' * 1000000000000 }}",
      "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
      "{% for i in range(2000) %}0123456789{% endfor %}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% set n = namespace(l=[1]) %}{% for i in range(64) %}{% set n.l = n.l + n.l %}{% endfor %}",
      "{{ 'a' | replace('', 'bbbbbbbbbb' * 900) | replace('b', 'c' * 9000) }}"};
  for (const std::string& source : kSources) {
    const auto prompt = Render(source, "[]", limits);
    EXPECT_FALSE(prompt.ok()) << source.substr(0, 80);
    EXPECT_LT(prompt.status().message().size(), 400u);
  }
}

TEST(ChatTemplateTest, DateIsPinned) {
  const auto chat_template =
      ChatTemplate::Parse("{{ strftime_now('%d %b %Y|%A %j %-d %I%p %F') }}").value();
  ChatRequest request;
  request.messages = Json(Json::Array{});
  request.date = ParseChatDate("2024-03-05T15:04:05").value();
  EXPECT_EQ(chat_template.Render(request).value().text,
            "05 Mar 2024|Tuesday 065 5 03PM 2024-03-05");
  for (const char* bad :
       {"", "2024", "2024-13-01", "2023-02-29", "2024-02-29T24:00:00", "2024/01/01"}) {
    EXPECT_FALSE(ParseChatDate(bad).ok()) << bad;
  }
}

TEST(ChatTemplateTest, BadRequests) {
  const auto chat_template = ChatTemplate::Parse("{{ messages }}").value();
  for (const char* messages : {"3", "null", "{}", "[3]", "[null]"}) {
    ChatRequest request;
    request.messages = ParseJson(messages).value();
    EXPECT_FALSE(chat_template.Render(request).ok()) << messages;
  }
  ChatRequest request;
  request.messages = Json(Json::Array{Json(Json::Object{{"content", "\xff"}})});
  EXPECT_FALSE(chat_template.Render(request).ok());
}

}  // namespace
}  // namespace lserve
