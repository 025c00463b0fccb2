// KeyLimiter: what one API key may take: requests at a time, requests and tokens per minute. Two
// token buckets per key, which fill evenly and hold a minute's worth. Thread-safe. Used by the
// service. AccessKeys: the keys themselves.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/api_error.h"
#include "server/exchange.h"

namespace lserve {

// 0: no limit.
struct KeyLimits {
  int64_t requests = 0;             // being answered at a time
  int64_t requests_per_minute = 0;  // only those that ask for an answer count
  int64_t tokens_per_minute = 0;    // of prompts and answers
  bool any() const { return requests > 0 || requests_per_minute > 0 || tokens_per_minute > 0; }
};

// Who may ask, and for how much. Plain data: a server's keys can be replaced while it runs.
struct AccessKeys {
  std::vector<std::string> api;    // empty: anybody may ask
  std::vector<std::string> admin;  // open admin routes as well; empty: those are closed
  // Of the API keys that differ from the others. Admin keys have no limits.
  std::map<std::string, KeyLimits, std::less<>> limits;
};

class KeyLimiter;

// What a request has taken of its key's share.
class KeyLease {
 public:
  KeyLease(std::shared_ptr<KeyLimiter> limiter, std::string key, int64_t tokens)
      : limiter_(std::move(limiter)), key_(std::move(key)), tokens_(tokens) {}
  // Without End(), the request never ran: it gives everything back.
  ~KeyLease();
  KeyLease(const KeyLease&) = delete;
  KeyLease& operator=(const KeyLease&) = delete;

  // The answer is over; the tokens that it did not use go back.
  void End(int64_t used_tokens);

 private:
  const std::shared_ptr<KeyLimiter> limiter_;  // an answer may outlive the service
  const std::string key_;
  const int64_t tokens_;
  bool ended_ = false;
};

struct KeyAdmission {
  std::shared_ptr<KeyLease> lease;  // null: refused, or the key has no limits
  HttpHeaders headers;              // OpenAI's x-ratelimit-*, of the reply
  ApiError error;                   // 429, if refused
  std::string_view refused_by;      // of metrics; empty: admitted
};

class KeyLimiter : public std::enable_shared_from_this<KeyLimiter> {
 public:
  // REQUIRES: made by std::make_shared. `keys`: those with limits of their own, which replace
  // `others` as a whole. `seconds`: a clock that never goes back.
  KeyLimiter(KeyLimits others,
             std::map<std::string, KeyLimits, std::less<>> keys,
             std::function<double()> seconds);

  // A request that may take as many as `tokens`, its longest answer included. One that alone is
  // more than a minute's tokens passes when the bucket is full, and leaves it in debt: so no key is
  // locked out, and none gets more than its share over time.
  // REQUIRES: `key` is one of the server's own, so that the table stays bounded.
  KeyAdmission Admit(std::string_view key, int64_t tokens);
  // The limits from now on, `others` as they were. What a key has taken stays taken; a limit that
  // is new begins full. Keys that are no longer among `keys.api` are forgotten.
  void Replace(const AccessKeys& keys);
  // What Admit would say to the smallest request, before the work of reading a larger one; takes
  // nothing. Nothing: it would not refuse.
  std::optional<KeyAdmission> RefuseEarly(std::string_view key);

 private:
  friend class KeyLease;
  struct State {
    KeyLimits limits;
    int64_t running = 0;
    // What is left; at most a minute's worth, below 0 after a request larger than that.
    double requests_left = 0;
    double tokens_left = 0;
    double filled_at = 0;  // seconds
  };

  State& Filled(std::string_view key);
  const KeyLimits& LimitsOf(std::string_view key) const;
  static std::optional<KeyAdmission> Refusal(const State& state, int64_t tokens);
  void Return(const std::string& key, int64_t requests, int64_t tokens);
  static HttpHeaders Headers(const State& state);

  const KeyLimits others_;
  const std::function<double()> seconds_;
  std::mutex mutex_;
  std::map<std::string, KeyLimits, std::less<>> keys_;  // guarded by mutex_
  std::map<std::string, State, std::less<>> states_;    // guarded by mutex_
};

// A line of a file of keys: "KEY [requests=N] [requests-per-minute=N] [tokens-per-minute=N]";
// limits that are not named are those of `others`. Error: a word that is none of these.
Result<std::pair<std::string, KeyLimits>> ParseKeyLine(std::string_view line,
                                                       const KeyLimits& others);

// As OpenAI writes it: "20ms", "1.5s", "6m0s".
std::string ResetTime(double seconds);

}  // namespace lserve
