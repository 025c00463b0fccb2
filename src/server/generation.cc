#include "server/generation.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "tokenizer/tokenizer.h"

namespace lserve {
namespace {

int64_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0u) != 0x80; });
}

}  // namespace

Generation::Generation(GenerationSetup setup, size_t num_choices, int64_t prompt_tokens)
    : setup_(std::move(setup)),
      choices_(num_choices),
      readers_(num_choices, ToolCallReader(setup_.tool_style, setup_.tools)),
      started_(num_choices),
      prompt_tokens_(prompt_tokens),
      open_(num_choices) {}

std::optional<Refusal> Generation::Start(GenerationSetup setup,
                                         std::vector<Request> requests,
                                         bool first_alone,
                                         std::optional<int> top_logprobs) {
  const std::shared_ptr<Exchange> exchange = setup.exchange;
  EngineThread* const engine = setup.engine;
  const bool stream = setup.stream;
  int64_t prompt_tokens = 0;
  for (size_t i = 0; i < requests.size(); i += setup.choices_per_prompt)
    prompt_tokens += static_cast<int64_t>(requests[i].prompt.size());
  const auto self = std::make_shared<Generation>(std::move(setup), requests.size(), prompt_tokens);
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
    self->EndLease();
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
  setup_.exchange->BeginStream(std::move(head), setup_.format->Heartbeat(),
                               setup_.heartbeat_seconds);
  Write(setup_.format->Opening(prompt_tokens_));
}

void Generation::Write(std::string events) {
  if (!events.empty()) setup_.exchange->Write(std::move(events));
}

std::vector<OutputPiece> Generation::ReadPieces(size_t index, const RequestEvent& event) {
  ChoiceState& choice = choices_[index];
  const bool whole = event.finished == FinishReason::kStop;
  std::vector<OutputPiece> pieces =
      readers_[index].Push(event.text, event.finished.has_value(), whole);
  for (const OutputPiece& piece : pieces) {
    if (piece.kind == OutputPiece::Kind::kText) choice.text += piece.text;
    if (piece.kind == OutputPiece::Kind::kCallBegin)
      choice.calls.push_back({.id = piece.id, .name = piece.text, .arguments = ""});
    if (piece.kind == OutputPiece::Kind::kCallArguments)
      choice.calls.back().arguments += piece.text;
  }
  return pieces;
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
  choice.finished = event.finished;
  choice.stop_string = event.stop_string;
  const std::vector<OutputPiece> pieces = ReadPieces(job_event.index, event);
  choice.characters += CountCharacters(event.text);
  if (setup_.stream && !event.token && !event.finished) {
    Write(setup_.format->Progress(event.stats, event.prefill_done, since_start_.milliseconds()));
  } else if (setup_.stream) {
    Write(setup_.format->Step({.index = job_event.index,
                               .is_first = !started_[job_event.index],
                               .pieces = &pieces,
                               .scored = scored,
                               .choice = &choice}));
    started_[job_event.index] = true;
    // Sent, so not needed again: an answer of 10^5 tokens with scores would hold them all.
    choice.scored.clear();
    choice.text.clear();
  }
  if (event.finished && --open_ == 0) Complete();
}

void Generation::OnError(const Status& error) {
  ended_ = true;
  if (job_) setup_.engine->Cancel(*job_);  // the other choices
  ApiError api_error = FromEngineStatus(error);
  if (error.code() == Code::kCancelled) {
    api_error.http_status = 503;
    api_error.code = "shutting_down";
  }
  if (error.code() == Code::kOutOfMemory) {
    // It had passed Engine::Check: the machine is short of memory now, and need not be soon.
    api_error.http_status = 503;
    api_error.code = "out_of_memory";
    setup_.headers.emplace_back("Retry-After", "5");
  }
  setup_.exchange->Note("finish", "error");
  NoteUsage();
  EndLease();
  if (setup_.stream) {
    Write(setup_.format->Failure(api_error));
    return setup_.exchange->EndStream();
  }
  setup_.exchange->Respond({.status = api_error.http_status,
                            .body = WriteJson(setup_.format->Error(api_error)),
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
  const PrefixMatch& prefix = choices_.front().stats.prefix;
  setup_.exchange->Note("prefix_end", std::string(Name(prefix.end)));
  setup_.exchange->Note("prefix_common", StrCat(prefix.common));
  setup_.exchange->Note("completion_tokens", StrCat(usage.completion_tokens));
}

void Generation::EndLease() {
  if (setup_.lease == nullptr) return;
  const Usage usage = TotalUsage();
  // The whole prompt, also of a client that left early: its work was on the way.
  setup_.lease->End(prompt_tokens_ + usage.completion_tokens);
}

void Generation::Complete() {
  ended_ = true;
  const Usage usage = TotalUsage();
  setup_.exchange->Note("finish", std::string(Name(*choices_.front().finished)));
  NoteUsage();
  EndLease();
  if (!setup_.stream) {
    const Json reply = setup_.format->Whole(choices_, usage);
    return setup_.exchange->Respond({.body = WriteJson(reply), .headers = setup_.headers});
  }
  Write(setup_.format->Closing(choices_, usage));
  setup_.exchange->EndStream();
}

}  // namespace lserve
