#include "tokenizer/chat_template.h"

#include <gtest/gtest.h>

#include <string>

#include "base/clock.h"
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
      {"{{ raise_exception('one\\ntwo' * 1000) }}", "one two"},
      {"{{ x['a\\nb' * 1000] }}", "'x' is undefined"},
      {"{{ 1 \u00e9 }}", "unexpected character '\u00e9'"},
      {"{{ 'a' | sum }}", "sum of a string"},
      {"{{ 5 | length }}", "length of an integer"},
      {"{{ 'a'.split('') }}", "split by an empty text"},
      {"{{ range() }}", "range with 0"},
      {"{{ 5 in 5 }}", "an integer on the right of 'in'"},
      {"{{ 'a' < 5 }}", "can not order a string and an integer"},
      {"{{ {1: 2} }}", "mapping key is an integer"},
      {"{{ '\\q' }}{{ '\\xzz' }}", "escape"},
      {"{{ raise_exception }}{{ (1, 2) + 3 }}", "a list + an integer"},
  };
  for (const auto& [source, expected] : kCases) {
    const auto prompt = Render(source);
    ASSERT_FALSE(prompt.ok()) << source;
    const std::string message = prompt.status().message();
    EXPECT_NE(message.find(expected), std::string::npos) << source << ": " << message;
    // What and value; what was expected; what to do; all on one line.
    EXPECT_EQ(message.find("chat template, line "), 0u) << message;
    const size_t middle = message.find("; expected ");
    ASSERT_NE(middle, std::string::npos) << message;
    EXPECT_NE(message.find("; ", middle + 2), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 600u);
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
}

TEST(ChatTemplateTest, NoUtf8IsAnErrorThatSaysWhere) {
  const auto chat_template = ChatTemplate::Parse("{{ messages }}").value();
  const Json good(Json::Object{{"role", "system"}, {"content", "fine"}});
  const auto error_of = [&](const Json& message) {
    ChatRequest request;
    request.messages = Json(Json::Array{good, message});
    return chat_template.Render(request).status().message();
  };
  EXPECT_EQ(
      error_of(Json(Json::Object{{"role", "user"}, {"content", "caf\xe9!"}})),
      "messages[1] (role \"user\").content is no UTF-8 at byte 3 (value 233); expected UTF-8; "
      "convert it");
  const Json part(Json::Object{{"text", "\xff"}});
  EXPECT_EQ(error_of(Json(Json::Object{{"content", Json(Json::Array{part})}})),
            "messages[1].content[0].text is no UTF-8 at byte 0 (value 255); expected UTF-8; "
            "convert it");
  EXPECT_EQ(error_of(Json(Json::Object{{"a\x80", "b"}})),
            "a member name of messages[1] is no UTF-8 at byte 1 (value 128); expected UTF-8; "
            "convert it");
  EXPECT_EQ(error_of(Json(5)),
            "messages[1] is an integer; expected an object with role and content; correct it");
  ChatRequest request;
  request.messages = Json(Json::Array{});
  request.extra = Json(Json::Object{{"name", "\xff"}});
  EXPECT_EQ(chat_template.Render(request).status().message(),
            "template variable.name is no UTF-8 at byte 0 (value 255); expected UTF-8; convert it");
  Json deep = Json(1);
  for (int i = 0; i < 5000; ++i) deep = Json(Json::Array{std::move(deep)});
  request.extra = Json(Json::Object{{"name", std::move(deep)}});
  EXPECT_NE(chat_template.Render(request).status().message().find("nests deeper than 100"),
            std::string::npos);
}

// ---- what a hostile template or message may not do ----

std::string ErrorOf(const std::string& source, const std::string& messages = "[]") {
  const auto prompt = Render(source, messages);
  EXPECT_FALSE(prompt.ok()) << source.substr(0, 80);
  return prompt.status().message();
}

// Freeing, printing and comparing such values used to end in the guard page of the stack.
TEST(HostileTemplateTest, DeepValuesAreRefused) {
  const std::string begin = "{% set n = namespace(s=[]) %}{% for i in range(60000) %}{% set n.s = ";
  const std::string end = " %}{% endfor %}{{ ";
  const std::pair<const char*, const char*> kCases[] = {
      {"[n.s]", "n.s"},
      {"[n.s]", "n.s | tojson"},
      {"[n.s]", "n.s | string"},
      {"[n.s]", "n.s ~ ''"},
      {"[n.s]", "[n.s] | join"},
      {"[n.s]", "[n.s, n.s] | unique | list"},
      {"[n.s]", "n.s == [n.s]"},
      {"{'a': n.s}", "n.s"},
      {"dict(a=n.s)", "n.s"},
      {"[n.s] | list", "n.s"},
      {"{'a': {'a': n.s}.items}", "1"},
      {"{'a': n.s}.items() | list", "1"},
  };
  for (const auto& [grow, use] : kCases) {
    const std::string error = ErrorOf(begin + grow + end + use + " }}");
    EXPECT_NE(error.find("levels deep; expected at most 200; "), std::string::npos) << error;
  }
  const std::string error = ErrorOf(
      "{% set n = namespace(s=[1]) %}{% for i in range(60000) %}"
      "{% for x in [n.s, 1] %}{% set n.s = loop %}{% endfor %}{% endfor %}");
  EXPECT_NE(error.find("levels deep"), std::string::npos) << error;
}

TEST(HostileTemplateTest, ValuesOfAllowedDepthWork) {
  const std::string deep =
      "{% set n = namespace(s=[]) %}{% for i in range(150) %}{% set n.s = [n.s] %}{% endfor %}";
  EXPECT_EQ(Render(deep + "{{ n.s | string == n.s | tojson and n.s == [n.s[0]] }}").value().text,
            "True");
}

// Namespaces hold each other by reference: a chain was freed by recursion, a ring never.
TEST(HostileTemplateTest, NamespacesMayNestInChainsAndRings) {
  EXPECT_EQ(Render("{% set n = namespace(s=0) %}{% for j in range(10) %}{% for i in range(60000) %}"
                   "{% set n.s = namespace(s=n.s) %}{% endfor %}{% endfor %}ok")
                .value()
                .text,
            "ok");
  EXPECT_EQ(Render("{% set n = namespace() %}{% set n.n = [n] %}ok").value().text, "ok");
}

// Each body is within the parser's limits; the macro multiplied it by fifty.
TEST(HostileTemplateTest, MacrosCanNotExhaustTheStack) {
  const auto repeat = [](const std::string& text, int times) {
    std::string out;
    for (int i = 0; i < times; ++i) out += text;
    return out;
  };
  const std::string kBodies[] = {
      "{{ m()" + repeat(" + 1", 390) + " }}",
      "{{ m()" + repeat(" | e", 390) + " }}",
      "{{ " + repeat("[", 45) + "m()" + repeat("]", 45) + " }}",
      repeat("{% if true %}", 90) + "{{ m() }}" + repeat("{% endif %}", 90),
  };
  for (const std::string& body : kBodies) {
    const std::string error = ErrorOf("{% macro m() %}" + body + "{% endmacro %}{{ m() }}");
    EXPECT_NE(error.find("macros nest"), std::string::npos) << error;
  }
}

// Searching by trying every place took minutes for each of these.
TEST(HostileTemplateTest, SearchIsLinear) {
  const std::string texts =
      "{% set a = 'b' ~ 'a' * 800000 ~ 'b' %}{% set n = 'a' * 400000 ~ 'c' %}"
      "{% set m = 'c' ~ 'a' * 400000 %}";
  const std::pair<const char*, const char*> kCases[] = {
      {"n in a", "False"},           {"a.find(n)", "-1"},
      {"a.rfind(m)", "-1"},          {"a.count(n)", "0"},
      {"a.split(n)|length", "1"},    {"a.rsplit(m)|length", "1"},
      {"a.replace(n, '')", "baaaa"}, {"a.strip('a' ~ n ~ m)", "baaaa"},
  };
  for (const auto& [expression, expected] : kCases) {
    const double begin = ProcessorSeconds();
    const auto prompt = Render(texts + "{% set x = " + expression + " %}{{ (x | string)[:5] }}");
    ASSERT_TRUE(prompt.ok()) << prompt.status().message();
    EXPECT_EQ(prompt.value().text, expected) << expression;
    // Each takes milliseconds; the bound is for slow machines and sanitizers.
    EXPECT_LT(ProcessorSeconds() - begin, 5.0) << expression;
  }
}

TEST(HostileTemplateTest, SearchFromTheRight) {
  EXPECT_EQ(Render("{{ 'abcabcab'.rfind('abc') }} {{ 'aaa'.rfind('aa') }} {{ 'a'.rfind('') }}"
                   " {{ 'a'.rfind('aa') }}")
                .value()
                .text,
            "3 1 1 -1");
  EXPECT_EQ(Render("{{ 'a--b---c'.rsplit('--') }}{{ 'a--b---c'.rsplit('--', 1) }}"
                   "{{ '--'.rsplit('--') }}{{ 'a'.rsplit('--') }}")
                .value()
                .text,
            "['a', 'b-', 'c']['a--b-', 'c']['', '']['a']");
  EXPECT_EQ(
      Render("{{ 'xyaxbyx'.strip('yx') }} {{ '\u00e9a\u00e9'.strip('\u00e9') }}").value().text,
      "axb a");
}

// Whatever reads a text costs its length: the loops below ran for hours.
TEST(HostileTemplateTest, EveryReadOfATextIsCharged) {
  ChatTemplateLimits limits;
  limits.max_work_bytes = 20'000'000;
  const char* kExpressions[] = {
      "a == b",
      "a != b",
      "a < b",
      "a is eq b",
      "a is sameas b",
      "a is lt b",
      "[a] == [b]",
      "a in [b]",
      "{a: 1} == {b: 1}",
      "a in d",
      "d[a]",
      "d.get(a)",
      "'x' in a",
      "a.startswith(b)",
      "a.endswith([b])",
      "a.isspace()",
      "a.isalpha()",
      "a.isdigit()",
      "a.strip('a')",
      "a.find('x')",
      "a.rfind('x')",
      "a.count('x')",
      "a.split('x')",
      "a.split()",
      "a.splitlines()",
      "a.replace('x', '')",
      "a.removeprefix('x')",
      "a.upper()",
      "a | lower",
      "a | length",
      "a[0]",
      "a[1:2]",
      "a[5:0:-100000]",
      "{a: 1}",
      "dict(d)",
      "namespace(d)",
      "d | list",
      "d.keys()",
      "d.items()",
      "l | sort",
      "l | unique",
      "l | max",
      "l | map('trim') | list",
      "a | int",
      "a | float",
      "[d] | map(attribute=a) | list",
      "l | select('eq', b) | list",
      "d | dictsort",
      "[a] | join",
      "a | tojson",
      "a is lower",
      "a ~ b",
      "a | e",
  };
  for (const char* expression : kExpressions) {
    const std::string source = std::string("{% set a = 'a' * 500000 %}{% set b = 'a' * 500000 %}") +
                               "{% set d = {b: 1} %}{% set l = [a, b] %}" +
                               "{% for i in range(200) %}{% set x = " + expression +
                               " %}{% endfor %}";
    const auto prompt = Render(source, "[]", limits);
    ASSERT_FALSE(prompt.ok()) << expression;
    EXPECT_NE(prompt.status().message().find("bytes of text in all; expected at most 20000000"),
              std::string::npos)
        << expression << ": " << prompt.status().message();
  }
}

// Lists that share their parts are trees of any size; so are names beyond counting.
TEST(HostileTemplateTest, EveryVisitOfAValueIsAStep) {
  ChatTemplateLimits limits;
  limits.max_steps = 1'000'000;
  std::string names;
  for (int i = 0; i < 20000; ++i) names += "{% set a" + std::to_string(i) + " = 1 %}";
  const std::string kSources[] = {
      "{% set n = namespace(s=[], t=[]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}"
      "{% set n.t = [n.t, n.t] %}{% endfor %}{{ n.s == n.t }}",
      names + "{% for i in range(9999) %}{{ zz }}{% endfor %}",
      "{% set d = namespace(d={}) %}{% set l = range(9999) | list %}"
      "{% for i in range(200) %}{% set x = l + l %}{% endfor %}",
  };
  for (const std::string& source : kSources) {
    const auto prompt = Render(source, "[]", limits);
    ASSERT_FALSE(prompt.ok()) << source.substr(0, 80);
    EXPECT_NE(prompt.status().message().find("more than 1000000 steps"), std::string::npos)
        << prompt.status().message();
  }
  EXPECT_NE(ErrorOf("{{ " + std::string(1000, 'a') + " }}").find("at most 256"), std::string::npos);
  std::string call = "{{ dict(a0=1";
  for (int i = 1; i < 300; ++i) call += ",a" + std::to_string(i) + "=1";
  EXPECT_NE(ErrorOf(call + ") }}").find("more than 255 arguments"), std::string::npos);
}

// A text beyond the limit was gone on with, on every level above it.
TEST(HostileTemplateTest, LongTextsAreGivenUpAtOnce) {
  ChatTemplateLimits limits;
  limits.max_output_bytes = 1'000'000;
  const std::string source =
      "{% set a = 'a' * 400000 %}{% set n = namespace(s=1) %}{% for i in range(100) %}"
      "{% set n.s = {a: n.s, a ~ 1: 1, a ~ 2: 1, a ~ 3: 1} %}{% endfor %}";
  for (const char* use : {"n.s | tojson", "n.s | string"}) {
    const std::string message =
        Render(source + "{{ " + use + " }}", "[]", limits).status().message();
    const size_t at = message.find("made a text of ");
    ASSERT_NE(at, std::string::npos) << message;
    // What is there when it is noticed: the limit and two keys.
    EXPECT_LT(std::stoll(message.substr(at + 15)), 3'000'000) << message;
  }
}

TEST(ChatTemplateTest, RepeatedKeywordReplacesTheMember) {
  EXPECT_EQ(Render("{{ dict({'a': 1, 'b': 2}, a=3) }}").value().text, "{'a': 3, 'b': 2}");
}

}  // namespace
}  // namespace lserve
