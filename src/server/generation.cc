#include "server/generation.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "server/sse.h"

namespace lserve {
namespace {

int64_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0u) != 0x80; });
}

}  // namespace

Generation::Generation(GenerationSetup setup, size_t num_choices)
    : setup_(std::move(setup)), choices_(num_choices), started_(num_choices), open_(num_choices) {
  if (setup_.stream) return;
  for (size_t i = 0; i < setup_.echoes.size(); ++i) choices_[i].text = setup_.echoes[i];
}

std::optional<Refusal> Generation::Start(GenerationSetup setup,
                                         std::vector<Request> requests,
                                         bool first_alone,
                                         std::optional<int> top_logprobs) {
  const std::shared_ptr<Exchange> exchange = setup.exchange;
  EngineThread* const engine = setup.engine;
  const bool stream = setup.stream;
  const auto self = std::make_shared<Generation>(std::move(setup), requests.size());
  Job job;
  job.requests = std::move(requests);
  job.first_alone = first_alone;
  job.top_logprobs = top_logprobs;
  job.on_event = [self, exchange](JobEvent event) {
    exchange->Post([self, event = std::move(event)]() mutable { self->OnEvent(std::move(event)); });
  };
  JobId id = 0;
  if (std::optional<Refusal> refusal = engine->Submit(std::move(job), &id)) return refusal;
  exchange->Post([self, id, stream] {
    self->job_ = id;
    if (stream) self->BeginStream();
  });
  exchange->OnDisconnect([self, id] {
    // All choices at once; what the engine already said is dropped by the exchange.
    if (!self->ended_) self->setup_.engine->Cancel(id);
    self->ended_ = true;
    self->setup_.exchange->Note("finish", "disconnected");
    self->NoteUsage();
  });
  return std::nullopt;
}

void Generation::BeginStream() {
  if (stream_begun_ || ended_) return;
  stream_begun_ = true;
  HttpResponse head = {.status = 200,
                       .content_type = "text/event-stream; charset=utf-8",
                       .body = {},
                       .headers = setup_.headers};
  head.headers.emplace_back("Cache-Control", "no-cache");
  // nginx would collect the stream before passing it on.
  head.headers.emplace_back("X-Accel-Buffering", "no");
  setup_.exchange->BeginStream(std::move(head), std::string(kSseHeartbeat),
                               setup_.heartbeat_seconds);
}

void Generation::OnEvent(JobEvent job_event) {
  if (ended_) return;
  if (setup_.stream) BeginStream();
  const RequestEvent& event = job_event.event;
  ChoiceState& choice = choices_[job_event.index];
  if (event.finished == FinishReason::kError) return OnError(event.error);

  const ScoredToken* scored = nullptr;
  if (!job_event.scores.empty()) {
    // The token that ends an answer is no part of it.
    const int32_t token = job_event.scores.front().token;
    const std::vector<int32_t>& stops = setup_.stop_token_ids;
    const bool ends = event.finished == FinishReason::kStop &&
                      (setup_.engine->engine().tokenizer()->IsSpecial(token) ||
                       std::find(stops.begin(), stops.end(), token) != stops.end());
    if (!ends) {
      choice.scored.push_back({std::move(job_event.scores), choice.characters});
      scored = &choice.scored.back();
    }
  }
  choice.stats = event.stats;
  choice.text += event.text;
  choice.characters += CountCharacters(event.text);
  choice.finished = event.finished;
  if (setup_.stream) StreamEvent(job_event, scored);
  if (event.finished && --open_ == 0) Complete();
}

void Generation::StreamEvent(const JobEvent& job_event, const ScoredToken* scored) {
  const RequestEvent& event = job_event.event;
  const size_t index = job_event.index;
  const Tokenizer& tokenizer = *setup_.engine->engine().tokenizer();
  const bool is_first = !started_[index];
  if (!event.token && !event.finished) {
    if (setup_.return_progress) {
      setup_.exchange->Write(SseData(ProgressChunk(setup_.head, event.stats, event.prefill_done,
                                                   since_start_.milliseconds())));
    }
    return;
  }
  std::string out;
  const auto send = [&](const ChunkParts& parts) {
    out += SseData(Chunk(setup_.head, parts, tokenizer));
  };
  if (is_first) {
    started_[index] = true;
    const std::string echo = setup_.echoes.empty() ? std::string() : setup_.echoes[index];
    if (setup_.head.kind == ReplyKind::kChat || !echo.empty()) {
      send({.index = index, .with_role = true, .text = echo, .null_usage = setup_.include_usage});
    }
  }
  if (!event.text.empty() || scored != nullptr) {
    send(
        {.index = index, .text = event.text, .scored = scored, .null_usage = setup_.include_usage});
  }
  if (event.finished) {
    send({.index = index,
          .finished = event.finished,
          .timings = &event.stats,
          .null_usage = setup_.include_usage});
  }
  if (!out.empty()) setup_.exchange->Write(std::move(out));
  // Sent, so not needed again: an answer of 10^5 tokens with scores would hold them all.
  choices_[index].scored.clear();
  choices_[index].text.clear();
}

void Generation::OnError(const Status& error) {
  ended_ = true;
  if (job_) setup_.engine->Cancel(*job_);  // the other choices
  ApiError api_error = FromEngineStatus(error);
  if (error.code() == Code::kCancelled) {
    api_error.http_status = 503;
    api_error.code = "shutting_down";
  }
  setup_.exchange->Note("finish", "error");
  NoteUsage();
  if (setup_.stream) {
    // The status line is gone; this is the only way to say it that clients understand.
    setup_.exchange->Write(StrCat(SseData(api_error.ToJson()), kSseDone));
    return setup_.exchange->EndStream();
  }
  setup_.exchange->Respond({.status = api_error.http_status,
                            .body = WriteJson(api_error.ToJson()),
                            .headers = setup_.headers});
}

Usage Generation::TotalUsage() const {
  Usage usage;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const RequestStats& stats = choices_[i].stats;
    usage.completion_tokens += stats.completion_tokens;
    // A prompt counts once, whatever the number of its choices.
    if (i % setup_.choices_per_prompt != 0) continue;
    usage.prompt_tokens += stats.prompt_tokens;
    usage.cached_tokens += stats.cached_tokens;
  }
  return usage;
}

void Generation::NoteUsage() {
  const Usage usage = TotalUsage();
  setup_.exchange->Note("prompt_tokens", StrCat(usage.prompt_tokens));
  setup_.exchange->Note("cached_tokens", StrCat(usage.cached_tokens));
  setup_.exchange->Note("completion_tokens", StrCat(usage.completion_tokens));
}

void Generation::Complete() {
  ended_ = true;
  const Usage usage = TotalUsage();
  setup_.exchange->Note("finish", std::string(Name(*choices_.front().finished)));
  NoteUsage();
  if (!setup_.stream) {
    const Json reply = WholeReply(setup_.head, choices_, usage, setup_.scores,
                                  *setup_.engine->engine().tokenizer());
    return setup_.exchange->Respond({.body = WriteJson(reply), .headers = setup_.headers});
  }
  std::string end;
  if (setup_.include_usage) end = SseData(UsageChunk(setup_.head, usage));
  setup_.exchange->Write(StrCat(end, kSseDone));
  setup_.exchange->EndStream();
}

}  // namespace lserve
