// EngineThread: the one thread that calls Engine's methods, and the mailbox through which the
// others reach it: jobs in, events out, cancellation. It knows no protocol. Used by the service.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "lserve/engine.h"
#include "server/metrics.h"

namespace lserve {

struct TokenScore {
  int32_t token = 0;
  float logprob = 0;
};

// What one step did to one request of a job.
struct JobEvent {
  size_t index = 0;  // of the request in Job::requests
  RequestEvent event;
  // With Job::top_logprobs and a token: the drawn one first, then the most probable ones.
  std::vector<TokenScore> scores = {};
};

// Requests that come and go together: the choices of one HTTP request.
struct Job {
  std::vector<Request> requests;
  // The others wait for the first token of the first, to share its prefix.
  bool first_alone = false;
  std::optional<int> top_logprobs = {};
  // On the engine thread, so it must be quick and must not wait. Not called after Cancel() has
  // taken effect, nor after every request has finished.
  std::function<void(JobEvent)> on_event;
};

using JobId = uint64_t;

struct QueueLimits {
  int max_requests = 128;  // that wait for their first step
  int64_t max_tokens = 0;  // of their prompts; 0: no limit. One request alone always passes
};

// Why a job was not taken.
struct Refusal {
  enum class Why : uint8_t { kRequests, kTokens, kDraining, kFailed };
  Why why = Why::kRequests;
  std::string message;
  int retry_after_seconds = 1;
};

class EngineThread {
 public:
  // Takes the engine over and starts the thread. `metrics` must outlive this.
  EngineThread(std::unique_ptr<Engine> engine, QueueLimits limits, Metrics* metrics);
  // Ends after the current step; requests in flight get a kCancelled event.
  ~EngineThread();
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  // The methods below are for any thread.

  // What never changes: info(), config(), tokenizer(), Check().
  const Engine& engine() const { return *engine_; }

  // REQUIRES: engine().Check() passed for every request.
  std::optional<Refusal> Submit(Job job, JobId* id);
  // Takes effect before the next step: pages are freed, no event follows.
  void Cancel(JobId id);

  // Before the next step: no later request starts from what earlier ones left in the cache.
  void DropPrefixes();

  // From now on Submit refuses.
  void Drain();
  // Ends every job with a kError event that says why.
  void AbortAll(std::string why);

  EngineSnapshot snapshot() const;

 private:
  struct Member {
    RequestId id = 0;      // 0: not in the engine yet
    bool started = false;  // had a step
    bool finished = false;
    int64_t prompt_tokens = 0;
    int64_t max_tokens = 0;
    int64_t prefill_done = 0;
    RequestStats stats = {};
    double since_start = 0;  // job's seconds at the first event
    double first_token = 0;
    double last_token = 0;
    std::vector<float> logits = {};  // of the token being drawn, if scores are wanted
  };
  struct Running {
    Job job;
    Stopwatch since_submitted;
    std::vector<Member> members;
    size_t open = 0;  // members not finished
    bool others_added = false;
  };

  void Loop();
  // Waits for mail or work; false: it is time to end.
  bool TakeMail();
  void AddMembers(JobId id, Running& job, size_t first, size_t last);
  void Handle(const RequestEvent& event);
  void CountEvent(Running& job, Member& member, const RequestEvent& event);
  static std::vector<TokenScore> Scores(const Job& job,
                                        const Member& member,
                                        const RequestEvent& event);
  void FinishMember(JobId id, Running& job, size_t index, RequestEvent event);
  void EndAll(FinishReason reason, const Status& error);
  void CancelJob(JobId id);
  void LeaveQueue(Member& member);
  void PublishState();

  const std::unique_ptr<Engine> engine_;
  const QueueLimits limits_;
  Metrics* const metrics_;

  // The mailbox.
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::pair<JobId, std::unique_ptr<Running>>> inbox_;
  std::vector<JobId> cancelled_;
  std::optional<std::string> abort_why_;
  bool drop_prefixes_ = false;
  JobId next_id_ = 1;
  bool draining_ = false;
  bool stop_ = false;
  std::string failure_;
  EngineSnapshot state_;  // counters of what waits and runs
  std::chrono::steady_clock::time_point last_step_;
  double prefill_seconds_ = 0;  // of steps with prompts, for Retry-After
  int64_t prefill_tokens_ = 0;

  // The engine thread's own.
  std::map<JobId, std::unique_ptr<Running>> jobs_;
  std::map<RequestId, std::pair<JobId, size_t>> members_;
  int64_t step_tokens_ = 0;

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace lserve
