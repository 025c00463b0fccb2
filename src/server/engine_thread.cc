#include "server/engine_thread.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/strings.h"

namespace lserve {

EngineThread::EngineThread(std::unique_ptr<Engine> engine, QueueLimits limits, Metrics* metrics)
    : engine_(std::move(engine)),
      limits_(limits),
      metrics_(metrics),
      last_step_(std::chrono::steady_clock::now()) {
  const EngineInfo& info = engine_->info();
  state_.kv_budget_bytes = info.kv_budget_bytes;
  state_.kv_dtype = info.kv_dtype;
  if (info.num_kv_heads > 0) {
    state_.streaming_head_share =
        static_cast<double>(info.num_streaming_kv_heads) / static_cast<double>(info.num_kv_heads);
  }
  thread_ = std::thread([this] { Loop(); });
}

EngineThread::~EngineThread() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

std::optional<Refusal> EngineThread::Submit(Job job, JobId* id) {
  int64_t tokens = 0;
  for (const Request& request : job.requests) tokens += static_cast<int64_t>(request.prompt.size());
  const int64_t count = static_cast<int64_t>(job.requests.size());
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) {
    return Refusal{Refusal::Why::kFailed, StrCat("the engine has failed: ", failure_), 30};
  }
  if (draining_ || stop_) {
    return Refusal{Refusal::Why::kDraining, "the server is shutting down; ask another replica", 5};
  }
  // How long the prompts before this one take at the speed seen so far.
  const double seconds_per_token =
      prefill_tokens_ > 0 ? prefill_seconds_ / static_cast<double>(prefill_tokens_) : 0.0;
  const int wait = static_cast<int>(std::clamp(
      std::ceil(seconds_per_token * static_cast<double>(state_.tokens_waiting)), 1.0, 60.0));
  if (state_.requests_waiting > 0 && state_.requests_waiting + count > limits_.max_requests) {
    metrics_->ObserveRefused("requests");
    return Refusal{Refusal::Why::kRequests,
                   StrCat("the queue holds ", state_.requests_waiting, " requests, at most ",
                          limits_.max_requests, "; try again later"),
                   wait};
  }
  if (limits_.max_tokens > 0 && state_.requests_waiting > 0 &&
      state_.tokens_waiting + tokens > limits_.max_tokens) {
    metrics_->ObserveRefused("tokens");
    return Refusal{
        Refusal::Why::kTokens,
        StrCat("the queue holds prompts of ", state_.tokens_waiting, " tokens; with this one of ",
               tokens, " it would exceed ", limits_.max_tokens, "; try again later"),
        wait};
  }
  auto running = std::make_unique<Running>();
  running->job = std::move(job);
  for (const Request& request : running->job.requests) {
    running->members.push_back({.prompt_tokens = static_cast<int64_t>(request.prompt.size()),
                                .max_tokens = request.max_tokens});
  }
  running->open = running->members.size();
  *id = next_id_++;
  inbox_.emplace_back(*id, std::move(running));
  state_.requests_waiting += count;
  state_.tokens_waiting += tokens;
  if (!state_.busy) {
    state_.busy = true;
    last_step_ = std::chrono::steady_clock::now();
  }
  wake_.notify_one();
  return std::nullopt;
}

void EngineThread::Cancel(JobId id) {
  {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
  }
  wake_.notify_one();
}

void EngineThread::DropPrefixes() {
  {
    const std::lock_guard lock(mutex_);
    drop_prefixes_ = true;
  }
  wake_.notify_one();
}

void EngineThread::Drain() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
}

void EngineThread::AbortAll(std::string why) {
  {
    const std::lock_guard lock(mutex_);
    abort_why_ = std::move(why);
  }
  wake_.notify_one();
}

EngineSnapshot EngineThread::snapshot() const {
  const std::lock_guard lock(mutex_);
  EngineSnapshot snapshot = state_;
  snapshot.failure = failure_;
  snapshot.host = engine_->host_tier();
  snapshot.disk = engine_->disk_tier();
  if (snapshot.busy) {
    snapshot.seconds_since_last_step =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - last_step_).count();
  }
  return snapshot;
}

void EngineThread::Loop() {
  while (TakeMail()) {
    if (!engine_->has_work()) {
      PublishState();
      continue;
    }
    const Stopwatch watch;
    step_tokens_ = 0;
    Result<std::vector<RequestEvent>> events = engine_->Step();
    if (!events.ok()) {
      const Status status = events.status();
      LogError(StrCat("the engine has failed: ", status.message()));
      {
        const std::lock_guard lock(mutex_);
        failure_ = status.message();
      }
      EndAll(FinishReason::kError, status);
      PublishState();
      return;
    }
    for (const RequestEvent& event : events.value()) Handle(event);
    // Without tokens there was none: prefixes are being read.
    if (step_tokens_ > 0) metrics_->ObserveStep(step_tokens_);
    {
      const std::lock_guard lock(mutex_);
      ++state_.steps;
      last_step_ = std::chrono::steady_clock::now();
      if (step_tokens_ >= 64) {  // a step of prompts, not of single tokens
        prefill_seconds_ += watch.seconds();
        prefill_tokens_ += step_tokens_;
      }
    }
    PublishState();
  }
  EndAll(FinishReason::kError, Status(Code::kCancelled, "the server is shutting down"));
  PublishState();
}

bool EngineThread::TakeMail() {
  std::deque<std::pair<JobId, std::unique_ptr<Running>>> inbox;
  std::vector<JobId> cancelled;
  std::optional<std::string> abort_why;
  bool drop_prefixes = false;
  {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] {
      return stop_ || !inbox_.empty() || !cancelled_.empty() || abort_why_ || drop_prefixes_ ||
             engine_->has_work();
    });
    if (stop_) return false;
    inbox.swap(inbox_);
    cancelled.swap(cancelled_);
    abort_why.swap(abort_why_);
    drop_prefixes = std::exchange(drop_prefixes_, false);
  }
  if (drop_prefixes) engine_->DropPrefixes();
  for (auto& [id, job] : inbox) {
    Running& running = *job;
    jobs_.emplace(id, std::move(job));
    running.others_added = !running.job.first_alone;
    // Cancelled before it got here: never show it to the engine.
    if (std::find(cancelled.begin(), cancelled.end(), id) != cancelled.end()) continue;
    AddMembers(id, running, 0, running.others_added ? running.members.size() : 1);
  }
  for (const JobId id : cancelled) CancelJob(id);
  if (abort_why) EndAll(FinishReason::kError, Status(Code::kCancelled, *abort_why));
  return true;
}

void EngineThread::AddMembers(JobId id, Running& running, size_t first, size_t last) {
  for (size_t i = first; i < last; ++i) {
    Request request = std::move(running.job.requests[i]);
    if (running.job.top_logprobs) {
      request.on_token_logits = [&member = running.members[i]](std::span<const float> logits) {
        member.logits.assign(logits.begin(), logits.end());
      };
    }
    const Result<RequestId> added = engine_->Add(std::move(request));
    if (added.ok()) {
      running.members[i].id = added.value();
      members_[added.value()] = {id, i};
    } else {
      FinishMember(id, running, i, {.finished = FinishReason::kError, .error = added.status()});
      if (!jobs_.contains(id)) return;
    }
  }
}

void EngineThread::Handle(const RequestEvent& event) {
  const auto found = members_.find(event.id);
  if (found == members_.end()) return;  // cancelled before
  const auto [id, index] = found->second;
  Running& running = *jobs_.at(id);
  CountEvent(running, running.members[index], event);
  if (event.finished) {
    FinishMember(id, running, index, event);
  } else {
    running.job.on_event({index, event, Scores(running.job, running.members[index], event)});
  }
  const auto still = jobs_.find(id);
  if (still != jobs_.end() && index == 0 && !still->second->others_added &&
      (event.token || event.finished)) {
    still->second->others_added = true;
    AddMembers(id, *still->second, 1, still->second->members.size());
  }
}

void EngineThread::CountEvent(Running& running, Member& member, const RequestEvent& event) {
  const double now = running.since_submitted.seconds();
  if (!member.started) {
    LeaveQueue(member);
    {
      const std::lock_guard lock(mutex_);
      ++state_.requests_running;
    }
    member.since_start = now;
    member.prefill_done = event.stats.cached_tokens;
  }
  const int64_t prefilled = std::max<int64_t>(0, event.prefill_done - member.prefill_done);
  member.prefill_done = std::max(member.prefill_done, event.prefill_done);
  // A decode step computes the token before; a prompt's last chunk draws one without computing it.
  step_tokens_ += prefilled > 0 ? prefilled : event.token ? 1 : 0;
  metrics_->AddWork(member.stats, event.stats, prefilled);
  if (event.stats.preemptions > member.stats.preemptions) {
    LogWarning(StrCat("a request was preempted since the KV cache is full; it goes on, ",
                      event.stats.completion_tokens, " tokens of its answer are computed again"));
  }
  const int64_t recomputed = event.stats.recomputed_tokens - member.stats.recomputed_tokens;
  member.stats = event.stats;
  if (recomputed > 0) {
    const std::lock_guard lock(mutex_);
    state_.recomputed_tokens += recomputed;
  }
  if (!event.token) return;
  if (event.stats.completion_tokens == 1) {
    member.first_token = now;
    metrics_->ObserveFirstToken(now, event.stats);
  } else {
    metrics_->ObserveTokenGap(now - member.last_token);
  }
  member.last_token = now;
}

std::vector<TokenScore> EngineThread::Scores(const Job& job,
                                             const Member& member,
                                             const RequestEvent& event) {
  std::vector<TokenScore> scores;
  const std::vector<float>& logits = member.logits;
  if (!job.top_logprobs || !event.token || logits.empty()) return scores;
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - most);
  const double log_total = most + std::log(sum);
  const auto score = [&](int32_t id) {
    return TokenScore{id, static_cast<float>(logits[static_cast<size_t>(id)] - log_total)};
  };
  scores.push_back(score(*event.token));
  const size_t count = std::min(static_cast<size_t>(*job.top_logprobs), logits.size());
  std::vector<int32_t> best(logits.size());
  for (size_t i = 0; i < best.size(); ++i) best[i] = static_cast<int32_t>(i);
  std::partial_sort(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(count), best.end(),
                    [&](int32_t a, int32_t b) {
                      const float x = logits[static_cast<size_t>(a)],
                                  y = logits[static_cast<size_t>(b)];
                      return x != y ? x > y : a < b;
                    });
  for (size_t i = 0; i < count; ++i) scores.push_back(score(best[i]));
  return scores;
}

void EngineThread::FinishMember(JobId id, Running& running, size_t index, RequestEvent event) {
  Member& member = running.members[index];
  member.finished = true;
  members_.erase(member.id);
  if (member.started) {
    const std::lock_guard lock(mutex_);
    --state_.requests_running;
  } else {
    LeaveQueue(member);
  }
  const FinishReason reason = event.finished.value_or(FinishReason::kError);
  if (reason == FinishReason::kStop || reason == FinishReason::kLength) {
    const RequestTimes times = {.queue = member.since_start,
                                .prefill = member.first_token - member.since_start,
                                .decode = member.last_token - member.first_token};
    metrics_->ObserveFinished(Name(reason), times, event.stats, member.max_tokens);
  }
  std::vector<TokenScore> scores = Scores(running.job, member, event);
  const bool was_last = --running.open == 0;
  running.job.on_event({index, std::move(event), std::move(scores)});
  if (was_last) jobs_.erase(id);
}

void EngineThread::EndAll(FinishReason reason, const Status& error) {
  {
    // What is still in the mailbox ends the same way.
    const std::lock_guard lock(mutex_);
    for (auto& [id, job] : inbox_) jobs_.emplace(id, std::move(job));
    inbox_.clear();
  }
  while (!jobs_.empty()) {
    const JobId id = jobs_.begin()->first;
    Running& running = *jobs_.begin()->second;
    const size_t count = running.members.size();
    // The job goes with its last member.
    for (size_t i = 0; i < count && jobs_.contains(id); ++i) {
      if (running.members[i].finished) continue;
      if (running.members[i].id != 0) engine_->Cancel(running.members[i].id);
      FinishMember(id, running, i, {.finished = reason, .error = error});
    }
  }
}

void EngineThread::CancelJob(JobId id) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) return;  // it finished meanwhile
  Running& running = *found->second;
  for (size_t i = 0; i < running.members.size(); ++i) {
    Member& member = running.members[i];
    if (member.finished) continue;
    if (member.id != 0) {
      engine_->Cancel(member.id);
      members_.erase(member.id);
    }
    if (member.started) {
      const std::lock_guard lock(mutex_);
      --state_.requests_running;
    } else {
      LeaveQueue(member);
    }
    metrics_->ObserveCancelled(member.stats.completion_tokens > 0 ? RequestPhase::kDecode
                               : member.prefill_done > 0          ? RequestPhase::kPrefill
                                                                  : RequestPhase::kQueue);
  }
  jobs_.erase(found);
}

void EngineThread::LeaveQueue(Member& member) {
  LS_CHECK(!member.started);
  member.started = true;
  const std::lock_guard lock(mutex_);
  --state_.requests_waiting;
  state_.tokens_waiting -= member.prompt_tokens;
}

void EngineThread::PublishState() {
  const uint64_t bytes = engine_->kv_bytes_in_use();
  const int64_t preemptions = engine_->num_preemptions();
  const bool has_work = engine_->has_work();
  const double selector_seconds = engine_->selector_seconds();
  const std::lock_guard lock(mutex_);
  state_.selector_seconds = selector_seconds;
  state_.kv_bytes_in_use = bytes;
  state_.preemptions = preemptions;
  state_.busy = has_work || !inbox_.empty();
}

}  // namespace lserve
