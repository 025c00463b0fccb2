#include "server/key_limits.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "base/strings.h"

namespace lserve {
namespace {

// Times add up to whole requests but for their rounding.
constexpr double kRounding = 1e-6;

// What one of the two buckets is filled with in a second.
double PerSecond(int64_t per_minute) {
  return static_cast<double>(per_minute) / 60.0;
}

// How long until `left` has grown to `needed`.
double SecondsUntil(double left, double needed, int64_t per_minute) {
  return std::max(0.0, (needed - left) / PerSecond(per_minute));
}

int WholeSeconds(double seconds) {
  // A debt may be hours; clients that read the header expect a number they can wait for.
  return static_cast<int>(std::clamp(std::ceil(seconds - kRounding), 1.0, 86400.0));
}

int64_t Shown(double left) {
  return static_cast<int64_t>(std::floor(std::max(0.0, left) + kRounding));
}

KeyAdmission Refused(std::string_view by,
                     HttpHeaders headers,
                     double wait,
                     const std::string& message) {
  const int seconds = WholeSeconds(wait);
  KeyAdmission admission;
  admission.headers = std::move(headers);
  admission.error = {.http_status = 429,
                     .message = StrCat(message, "; try again in ", seconds, " s"),
                     .code = "rate_limit_exceeded",
                     .retry_after_seconds = seconds};
  admission.refused_by = by;
  return admission;
}

}  // namespace

KeyLease::~KeyLease() {
  if (!ended_) limiter_->Return(key_, 1, tokens_);
}

void KeyLease::End(int64_t used_tokens) {
  if (ended_) return;
  ended_ = true;
  limiter_->Return(key_, 0, tokens_ - std::clamp<int64_t>(used_tokens, 0, tokens_));
}

KeyLimiter::KeyLimiter(KeyLimits others,
                       std::map<std::string, KeyLimits, std::less<>> keys,
                       std::function<double()> seconds)
    : others_(others), seconds_(std::move(seconds)), keys_(std::move(keys)) {}

const KeyLimits& KeyLimiter::LimitsOf(std::string_view key) const {
  const auto own = keys_.find(key);
  return own == keys_.end() ? others_ : own->second;
}

void KeyLimiter::Replace(const AccessKeys& keys) {
  const std::lock_guard lock(mutex_);
  for (auto& [key, state] : states_) Filled(key);  // as far as the old limits had filled it
  keys_ = keys.limits;
  const std::set<std::string_view> known(keys.api.begin(), keys.api.end());
  // One that is still being answered comes back to its state; it goes with the next replacement.
  std::erase_if(states_, [&](const auto& entry) {
    return entry.second.running == 0 && !known.contains(entry.first);
  });
  for (auto& [key, state] : states_) {
    const KeyLimits& limits = LimitsOf(key);
    if (state.limits.requests_per_minute == 0)
      state.requests_left = static_cast<double>(limits.requests_per_minute);
    if (state.limits.tokens_per_minute == 0)
      state.tokens_left = static_cast<double>(limits.tokens_per_minute);
    state.limits = limits;
  }
}

KeyLimiter::State& KeyLimiter::Filled(std::string_view key) {
  const double now = seconds_();
  auto found = states_.find(key);
  if (found == states_.end()) {
    State state;
    state.limits = LimitsOf(key);
    state.requests_left = static_cast<double>(state.limits.requests_per_minute);
    state.tokens_left = static_cast<double>(state.limits.tokens_per_minute);
    state.filled_at = now;
    found = states_.emplace(std::string(key), state).first;
  }
  State& state = found->second;
  const double passed = std::max(0.0, now - state.filled_at);
  const auto fill = [&](double& left, int64_t per_minute) {
    left = std::min(static_cast<double>(per_minute), left + passed * PerSecond(per_minute));
  };
  fill(state.requests_left, state.limits.requests_per_minute);
  fill(state.tokens_left, state.limits.tokens_per_minute);
  state.filled_at = now;
  return state;
}

std::optional<KeyAdmission> KeyLimiter::Refusal(const State& state, int64_t tokens) {
  const KeyLimits& limits = state.limits;
  if (limits.requests > 0 && state.running >= limits.requests) {
    return Refused(
        "key_concurrency", Headers(state), 1,
        StrCat("this API key has ", state.running, " requests that are being answered, its most"));
  }
  if (limits.requests_per_minute > 0 && state.requests_left < 1 - kRounding) {
    return Refused("key_requests", Headers(state),
                   SecondsUntil(state.requests_left, 1, limits.requests_per_minute),
                   StrCat("this API key may ask ", limits.requests_per_minute, " times a minute"));
  }
  if (limits.tokens_per_minute == 0) return std::nullopt;
  const double needed =
      std::min(static_cast<double>(tokens), static_cast<double>(limits.tokens_per_minute));
  if (state.tokens_left >= needed - kRounding) return std::nullopt;
  return Refused(
      "key_tokens", Headers(state),
      SecondsUntil(state.tokens_left, needed, limits.tokens_per_minute),
      StrCat("this API key may use ", limits.tokens_per_minute, " tokens a minute; of these ",
             Shown(state.tokens_left), " are left, and this request may take ", tokens,
             ", its longest answer (max_tokens) included"));
}

std::optional<KeyAdmission> KeyLimiter::RefuseEarly(std::string_view key) {
  const std::lock_guard lock(mutex_);
  // A token of prompt and one of answer: less than any request.
  return Refusal(Filled(key), 2);
}

KeyAdmission KeyLimiter::Admit(std::string_view key, int64_t tokens) {
  const std::lock_guard lock(mutex_);
  State& state = Filled(key);
  if (!state.limits.any()) return {};
  if (std::optional<KeyAdmission> refusal = Refusal(state, tokens)) return *std::move(refusal);
  if (state.limits.requests_per_minute > 0) state.requests_left -= 1;
  if (state.limits.tokens_per_minute > 0) state.tokens_left -= static_cast<double>(tokens);
  ++state.running;
  KeyAdmission admission;
  admission.lease = std::make_shared<KeyLease>(shared_from_this(), std::string(key), tokens);
  admission.headers = Headers(state);
  return admission;
}

void KeyLimiter::Return(const std::string& key, int64_t requests, int64_t tokens) {
  const std::lock_guard lock(mutex_);
  State& state = Filled(key);
  --state.running;
  const auto give_back = [](double& left, int64_t count, int64_t most) {
    left = std::min(static_cast<double>(most), left + static_cast<double>(count));
  };
  give_back(state.requests_left, requests, state.limits.requests_per_minute);
  give_back(state.tokens_left, tokens, state.limits.tokens_per_minute);
}

HttpHeaders KeyLimiter::Headers(const State& state) {
  HttpHeaders headers;
  const auto add = [&](std::string_view what, double left, int64_t per_minute) {
    if (per_minute == 0) return;
    headers.emplace_back(StrCat("x-ratelimit-limit-", what), StrCat(per_minute));
    headers.emplace_back(StrCat("x-ratelimit-remaining-", what), StrCat(Shown(left)));
    headers.emplace_back(
        StrCat("x-ratelimit-reset-", what),
        ResetTime(SecondsUntil(left, static_cast<double>(per_minute), per_minute)));
  };
  add("requests", state.requests_left, state.limits.requests_per_minute);
  add("tokens", state.tokens_left, state.limits.tokens_per_minute);
  return headers;
}

Result<std::pair<std::string, KeyLimits>> ParseKeyLine(std::string_view line,
                                                       const KeyLimits& others) {
  constexpr std::string_view kSpace = " \t\r";
  std::pair<std::string, KeyLimits> out = {"", others};
  for (size_t at = line.find_first_not_of(kSpace); at != std::string_view::npos;) {
    const size_t end = std::min(line.find_first_of(kSpace, at), line.size());
    const std::string_view word = line.substr(at, end - at);
    at = line.find_first_not_of(kSpace, end);
    if (out.first.empty()) {
      out.first = std::string(word);
      continue;
    }
    const size_t equals = std::min(word.find('='), word.size());
    const std::string_view name = word.substr(0, equals);
    int64_t* const limit = name == "requests"              ? &out.second.requests
                           : name == "requests-per-minute" ? &out.second.requests_per_minute
                           : name == "tokens-per-minute"   ? &out.second.tokens_per_minute
                                                           : nullptr;
    const std::string_view digits = word.substr(std::min(equals + 1, word.size()));
    int64_t value = -1;
    const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    const bool whole = read.ec == std::errc() && read.ptr == digits.data() + digits.size();
    // 10^12 tokens a minute are no limit; more would lose whole numbers in a double.
    if (limit == nullptr || !whole || value < 0 || value > 1000000000000) {
      // Not the line itself: it begins with a key.
      return Status(Code::kInvalidArgument,
                    StrCat("after the key comes ", name.substr(0, 40),
                           "..., expected requests=N, requests-per-minute=N or "
                           "tokens-per-minute=N, N a whole number, 0: no limit"));
    }
    *limit = value;
  }
  return out;
}

std::string ResetTime(double seconds) {
  const int64_t ms =
      static_cast<int64_t>(std::ceil(std::clamp(seconds, 0.0, 1e9) * 1000 - kRounding * 1000));
  if (ms < 1000) return StrCat(ms, "ms");
  const int64_t minutes = ms / 60000;
  const int64_t rest = ms % 60000;
  std::string text = minutes > 0 ? StrCat(minutes, "m") : "";
  text += StrCat(rest / 1000);
  if (rest % 1000 != 0) {
    std::string digits = StrCat(rest % 1000 + 1000).substr(1);
    digits.erase(digits.find_last_not_of('0') + 1);
    text += StrCat(".", digits);
  }
  return text + "s";
}

}  // namespace lserve
