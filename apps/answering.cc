#include "apps/answering.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/strings.h"

namespace lserve {
namespace {

class Round {
 public:
  Round(Engine& engine, std::vector<Request> requests, const AnswerHooks& hooks)
      : engine_(engine),
        hooks_(hooks),
        requests_(std::move(requests)),
        answers_(requests_.size()) {}

  Result<std::vector<Answer>> Run() {
    Status status = Loop();
    for (const auto& [id, index] : running_) engine_.Cancel(id);
    if (!status.ok()) return status;
    return std::move(answers_);
  }

 private:
  Status Loop() {
    if (requests_.empty()) return Status();
    prefix_pending_ = requests_[0].keep_prefix > 0;
    for (;;) {
      LS_TRY(AddWhatMayRun());
      if (running_.empty()) return Status();
      for (const RequestEvent& event : LS_TRY(engine_.Step())) LS_TRY(Handle(event));
      if (hooks_.should_stop && hooks_.should_stop()) return Status();
    }
  }

  Status AddWhatMayRun() {
    const size_t limit =
        prefix_pending_ ? 1 : static_cast<size_t>(std::max(1, engine_.config().max_num_seqs));
    while (next_ < requests_.size() && running_.size() < limit) {
      const RequestId id = LS_TRY(engine_.Add(std::move(requests_[next_])));
      running_[id] = next_++;
    }
    return Status();
  }

  Status Handle(const RequestEvent& event) {
    const auto found = running_.find(event.id);
    if (found == running_.end()) return Status();  // of a request cancelled before
    const size_t index = found->second;
    Answer& answer = answers_[index];
    answer.stats = event.stats;
    answer.text += event.text;
    if (event.token) {
      answer.token_ids.push_back(*event.token);
      prefix_pending_ = false;
    }
    if (event.finished) {
      answer.finish_reason = *event.finished;
      running_.erase(found);
      prefix_pending_ = false;
      if (*event.finished == FinishReason::kError) return event.error;
    }
    return hooks_.on_event ? hooks_.on_event(index, event) : Status();
  }

  Engine& engine_;
  const AnswerHooks& hooks_;
  std::vector<Request> requests_;
  std::vector<Answer> answers_;
  std::map<RequestId, size_t> running_;
  size_t next_ = 0;
  bool prefix_pending_ = false;
};

}  // namespace

Result<std::vector<Answer>> AnswerAll(Engine& engine,
                                      std::vector<Request> requests,
                                      const AnswerHooks& hooks) {
  return Round(engine, std::move(requests), hooks).Run();
}

Result<Answer> AnswerOne(Engine& engine, Request request, const AnswerHooks& hooks) {
  std::vector<Request> requests;
  requests.push_back(std::move(request));
  return LS_TRY(AnswerAll(engine, std::move(requests), hooks))[0];
}

const char* AttentionThatRan(const RequestStats& stats) {
  const bool sparse = stats.sparse_steps > 0 || stats.pages_visited < stats.pages_present ||
                      stats.prefill_tiles_visited < stats.prefill_tiles_present;
  return sparse ? "sparse" : "dense";
}

}  // namespace lserve
