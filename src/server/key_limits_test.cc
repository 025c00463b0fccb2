// Limits per API key, with a clock that the test sets.
#include "server/key_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/strings.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

struct Fixture {
  double now = 1000;
  std::shared_ptr<KeyLimiter> shared;
  KeyLimiter& limiter;
  explicit Fixture(KeyLimits others, std::map<std::string, KeyLimits, std::less<>> keys = {})
      : shared(std::make_shared<KeyLimiter>(others, std::move(keys), [this] { return now; })),
        limiter(*shared) {}
};

std::string Header(const KeyAdmission& admission, std::string_view name) {
  for (const auto& [key, value] : admission.headers) {
    if (key == name) return value;
  }
  return "none";
}

TEST(KeyLimiterTest, RequestsAtATime) {
  Fixture f({.requests = 2});
  KeyAdmission one = f.limiter.Admit("a", 10);
  const KeyAdmission two = f.limiter.Admit("a", 10);
  const KeyAdmission three = f.limiter.Admit("a", 10);
  EXPECT_TRUE(one.lease && two.lease);
  EXPECT_EQ(three.refused_by, "key_concurrency");
  EXPECT_EQ(three.error.http_status, 429);
  EXPECT_EQ(three.error.code, "rate_limit_exceeded");
  EXPECT_GE(three.error.retry_after_seconds, 1);
  EXPECT_TRUE(f.limiter.Admit("b", 10).lease) << "another key is not concerned";
  EXPECT_EQ(f.limiter.RefuseEarly("a")->refused_by, "key_concurrency");
  EXPECT_FALSE(f.limiter.RefuseEarly("b"));
  one.lease->End(3);
  EXPECT_FALSE(f.limiter.RefuseEarly("a"));
  const KeyAdmission again = f.limiter.Admit("a", 10);
  EXPECT_TRUE(again.lease);
  one.lease.reset();  // gives nothing back a second time
  EXPECT_FALSE(f.limiter.Admit("a", 10).lease);
}

TEST(KeyLimiterTest, RequestsPerMinuteComeBackEvenly) {
  Fixture f({.requests_per_minute = 6});
  for (int i = 0; i < 6; ++i) {
    const KeyAdmission admission = f.limiter.Admit("a", 1);
    ASSERT_TRUE(admission.lease);
    EXPECT_EQ(Header(admission, "x-ratelimit-limit-requests"), "6");
    EXPECT_EQ(Header(admission, "x-ratelimit-remaining-requests"), StrCat(5 - i));
    admission.lease->End(1);
  }
  f.now += 4;
  const KeyAdmission refused = f.limiter.Admit("a", 1);
  EXPECT_EQ(refused.refused_by, "key_requests");
  EXPECT_EQ(refused.error.retry_after_seconds, 6) << "ten seconds a request, four have passed";
  EXPECT_EQ(Header(refused, "x-ratelimit-remaining-requests"), "0");
  EXPECT_EQ(Header(refused, "x-ratelimit-reset-requests"), "56s");
  EXPECT_EQ(Header(refused, "x-ratelimit-limit-tokens"), "none");
  f.now += refused.error.retry_after_seconds;
  EXPECT_TRUE(f.limiter.Admit("a", 1).lease) << "after the time that was named";
  f.now += 3600;
  EXPECT_EQ(Header(f.limiter.Admit("a", 1), "x-ratelimit-remaining-requests"), "5")
      << "no more than a minute's worth is kept";
}

TEST(KeyLimiterTest, TokensThatAnAnswerDoesNotUseComeBack) {
  Fixture f({.tokens_per_minute = 600});
  const KeyAdmission first = f.limiter.Admit("a", 500);
  EXPECT_EQ(Header(first, "x-ratelimit-remaining-tokens"), "100");
  const KeyAdmission refused = f.limiter.Admit("a", 200);
  EXPECT_EQ(refused.refused_by, "key_tokens");
  EXPECT_EQ(refused.error.retry_after_seconds, 10) << "100 tokens at 10 a second";
  EXPECT_THAT(refused.error.message, HasSubstr("600 tokens a minute"));
  first.lease->End(50);
  EXPECT_EQ(Header(f.limiter.Admit("a", 200), "x-ratelimit-remaining-tokens"), "350");
  // A request that did not run took nothing: the lease was dropped without an end.
  EXPECT_EQ(Header(f.limiter.Admit("a", 100), "x-ratelimit-remaining-tokens"), "450");
}

TEST(KeyLimiterTest, ARequestOfMoreThanAMinuteLeavesADebt) {
  Fixture f({.tokens_per_minute = 600});
  const KeyAdmission large = f.limiter.Admit("a", 1200);
  ASSERT_TRUE(large.lease) << "or it could never run";
  large.lease->End(1200);
  const KeyAdmission next = f.limiter.Admit("a", 60);
  EXPECT_EQ(next.error.retry_after_seconds, 66);
  EXPECT_EQ(f.limiter.RefuseEarly("a")->refused_by, "key_tokens");
  EXPECT_EQ(Header(next, "x-ratelimit-remaining-tokens"), "0");
  f.now += 66;
  EXPECT_TRUE(f.limiter.Admit("a", 60).lease);
}

TEST(KeyLimiterTest, AKeysOwnLimitsReplaceTheOthers) {
  Fixture f({.requests = 1}, {{"free", {}}, {"small", {.requests_per_minute = 1}}});
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(f.limiter.Admit("free", 1).refused_by.empty());
  EXPECT_TRUE(f.limiter.Admit("free", 1).headers.empty());
  const KeyAdmission small = f.limiter.Admit("small", 1);
  EXPECT_EQ(f.limiter.Admit("small", 1).refused_by, "key_requests");
}

TEST(KeyLineTest, ReadsLimitsAndNamesWhatIsWrong) {
  const KeyLimits others = {.requests = 4, .tokens_per_minute = 9};
  EXPECT_EQ(ParseKeyLine("sk-a", others).value().second.requests, 4);
  const auto both = ParseKeyLine("sk-a  requests=2\ttokens-per-minute=0", others).value();
  EXPECT_EQ(both.first, "sk-a");
  EXPECT_EQ(both.second.requests, 2);
  EXPECT_EQ(both.second.tokens_per_minute, 0);
  for (const char* bad : {"sk-a x=1", "sk-a requests", "sk-a requests=", "sk-a requests=-1",
                          "sk-a requests=1x", "sk-a requests=9999999999999999999"}) {
    const auto parsed = ParseKeyLine(bad, others);
    ASSERT_FALSE(parsed.ok()) << bad;
    EXPECT_EQ(parsed.status().message().find("sk-a"), std::string::npos) << "keys are not shown";
  }
}

TEST(KeyLimiterTest, NewLimitsForgiveNothing) {
  Fixture f({.requests_per_minute = 6}, {{"b", {.requests = 1}}});
  const auto ask = [&] {
    KeyAdmission admission = f.limiter.Admit("a", 1);
    if (admission.lease) admission.lease->End(1);
    return admission;
  };
  const KeyAdmission running = f.limiter.Admit("b", 10);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(ask().lease);
  f.limiter.Replace({.api = {"a", "b"},
                     .admin = {},
                     .limits = {{"a", {.requests_per_minute = 12}},
                                {"b", {.requests = 1, .tokens_per_minute = 50}}}});
  EXPECT_EQ(Header(ask(), "x-ratelimit-remaining-requests"), "0") << "5 of 6 were used";
  f.now += 5;
  EXPECT_TRUE(ask().lease) << "12 a minute: one in five seconds";
  EXPECT_EQ(f.limiter.RefuseEarly("b")->refused_by, "key_concurrency");
  running.lease->End(10);
  const KeyAdmission next = f.limiter.Admit("b", 20);
  EXPECT_EQ(Header(next, "x-ratelimit-remaining-tokens"), "30") << "a new limit begins full";

  // Without limits of its own: those of all the others again.
  f.limiter.Replace({.api = {"a"}, .admin = {}, .limits = {}});
  EXPECT_EQ(ask().refused_by, "key_requests");
  f.now += 10;
  EXPECT_EQ(Header(ask(), "x-ratelimit-limit-requests"), "6");
  next.lease->End(20);  // of a key that is gone
}

TEST(ResetTimeTest, AsOpenAiWritesIt) {
  EXPECT_EQ(ResetTime(0), "0ms");
  EXPECT_EQ(ResetTime(0.02), "20ms");
  EXPECT_EQ(ResetTime(1.5), "1.5s");
  EXPECT_EQ(ResetTime(360), "6m0s");
}

}  // namespace
}  // namespace lserve
