#include "lserve/engine.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/strings.h"
#include "base/within_memory.h"
#include "engine/admission.h"
#include "engine/attention_probe.h"
#include "engine/auditor.h"
#include "engine/engine_setup.h"
#include "engine/host_lists.h"
#include "engine/prefix_archive.h"
#include "engine/prefix_tree.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/step_draws.h"

namespace lserve {

class Engine::Impl {
 public:
  explicit Impl(EngineParts parts)
      : parts_(std::move(parts)),
        config_(parts_.config),
        prefixes_(parts_.pool.get(), parts_.store.get()),
        archive_(&prefixes_, parts_.pool.get(), parts_.store.get(), &parts_.tiers, parts_.seconds),
        scheduler_(parts_.pool.get(),
                   &prefixes_,
                   &archive_,
                   config_.max_num_seqs,
                   config_.max_num_batched_tokens,
                   config_.max_decode_gap_ms),
        audited_requests_(config_.audit_rate),
        audited_steps_(config_.audit_rate),
        draws_(parts_.backend.get(), &parts_.model_config) {}

  Status Check(const Request& request) const;
  Result<RequestId> Add(Request request);
  void Cancel(RequestId id);
  Result<std::vector<RequestEvent>> Step();

  EngineParts parts_;
  const EngineConfig& config_;
  PrefixTree prefixes_;
  PrefixArchive archive_;
  Scheduler scheduler_;
  AuditStats audit_;

 private:
  // A sequence's place in the batch.
  struct Member {
    Scheduled scheduled;
    RowRange range;
    bool decodes = false;
    DecodeDecision decision;
    std::unique_ptr<StepAudit> audit;  // null: this step is not audited
    bool draws = false;                // a token follows from the logits of its last row
  };

  Status AddSequence(Request request, RequestId* added);
  // Ends who is cancelled or starved and picks the next step.
  Status Plan(std::vector<Scheduled>* step, std::vector<RequestEvent>* events);
  // Computes a step or a part of one. If memory runs out, the cache gives back what it does not
  // use, and what was not computed yet is tried again in halves, so that memory can go to whoever
  // needs little; who finds none alone, for the second time, ends with an error.
  Status RunMembers(std::span<const Scheduled> step,
                    std::vector<RequestEvent>* events,
                    bool is_last_try = false);
  // The same in one batch. With an error, `done` members have had their part, the others are as
  // they were.
  Status RunBatch(std::span<const Scheduled> step, size_t* done, std::vector<RequestEvent>* events);
  Status BuildBatch(std::span<const Scheduled> step);
  Status AllocateSelection(Sequence* sequence);
  Status RequestTileLists();
  // Picks the steps to audit and computes what they would have said with every page.
  Status BeginAudits();
  // The logits of a member's token if its retrieval heads read every page; none: no page is free.
  Result<std::optional<std::vector<float>>> ShadowPass(const Member& member);
  void SetObserver();
  Status CountWork(const Member& member, Sequence* sequence);
  Status EmitPromptLogits(const Member& member);
  Status AfterForward(const Member& member);
  // Gives the tree what a step has added to a prompt, from position `first` on.
  void KeepPrefix(const Sequence& sequence, int64_t first);
  // Computes the logits of the members from `first` on that draw a token, for as many as one call
  // gives, says which members those are, and draws.
  Status DrawTokens(size_t first);
  Result<RequestEvent> Finalize(size_t index);
  // What concerns the member alone: an error is its request's.
  Status TakePart(size_t index, RequestEvent* event);
  // The one of `row` of draws_.
  Status TakeToken(const Member& member, size_t row, RequestEvent* event);
  void Finish(Sequence* sequence, FinishReason reason, RequestEvent* event);
  void FillStats(const Sequence& sequence, RequestStats* stats) const;
  void Fail(Sequence* sequence, Status error, std::vector<RequestEvent>* events);
  void TakeCancelled(std::vector<RequestEvent>* events);
  // Ends the sequences that no memory is left for; whether there was one.
  bool TakeStarved(std::vector<RequestEvent>* events);

  EvenSample audited_requests_;
  EvenSample audited_steps_;
  RequestId next_id_ = 1;
  bool plan_failed_ = false;  // in the last step, for want of memory
  Batch batch_;
  std::vector<Member> members_;
  Buffer tile_list_memory_;            // of the plan's prefill lists
  StepDraws draws_;                    // of the last logits
  std::vector<size_t> drawn_members_;  // whose those are, a row each
  std::vector<float> prompt_logits_;   // [kLogitRows, vocab], for those who ask
};

Status Engine::Impl::Check(const Request& request) const {
  AttentionSettings attention = request.attention.value_or(config_.attention);
  LS_TRY(CheckRequest(parts_, request, attention));
  if (request.keep_streaming_pages) attention.mode = AttentionMode::kDense;
  return CheckFits(parts_, request, attention, MaxTokens(parts_, request));
}

Result<RequestId> Engine::Impl::Add(Request request) {
  RequestId id = 0;
  LS_TRY(WithinMemory([&] { return AddSequence(std::move(request), &id); }));
  return id;
}

Status Engine::Impl::AddSequence(Request request, RequestId* added) {
  LS_TRY(Check(request));
  const AttentionSettings attention = request.attention.value_or(config_.attention);
  const int64_t max_tokens = MaxTokens(parts_, request);
  const RequestId id = next_id_++;
  std::vector<std::string> stops = request.stop;
  auto sequence = std::make_unique<Sequence>(id, std::move(request), attention,
                                             SequenceCache(parts_.pool.get(), parts_.store.get()));
  sequence->rank =
      RankOf(sequence->request.priority, config_.priority_ageing_seconds, parts_.seconds());
  sequence->max_tokens = max_tokens;
  sequence->spare_pages = SparePages(parts_);
  sequence->keeps_streaming = sequence->request.keep_streaming_pages;
  if (attention.mode != AttentionMode::kDense && audited_requests_.Next()) {
    AttentionSettings untrimmed = attention;
    untrimmed.mode = AttentionMode::kDense;
    sequence->keeps_streaming |= CheckFits(parts_, sequence->request, untrimmed, max_tokens).ok();
  }
  sequence->stats.prompt_tokens = sequence->prompt_size();
  if (parts_.tokenizer != nullptr) sequence->text.emplace(*parts_.tokenizer, std::move(stops));
  scheduler_.Add(std::move(sequence));
  *added = id;
  return Status();
}

void Engine::Impl::Cancel(RequestId id) {
  Sequence* const sequence = scheduler_.Find(id);
  if (sequence != nullptr) sequence->cancelled = true;
}

void Engine::Impl::TakeCancelled(std::vector<RequestEvent>* events) {
  for (Sequence* sequence : scheduler_.sequences()) {
    if (!sequence->cancelled) continue;
    RequestEvent event{.id = sequence->id};
    Finish(sequence, FinishReason::kCancelled, &event);
    events->push_back(std::move(event));
  }
}

void Engine::Impl::Fail(Sequence* sequence, Status error, std::vector<RequestEvent>* events) {
  RequestEvent event{.id = sequence->id};
  event.error = std::move(error);
  Finish(sequence, FinishReason::kError, &event);
  events->push_back(std::move(event));
}

bool Engine::Impl::TakeStarved(std::vector<RequestEvent>* events) {
  bool any = false;
  for (Sequence* sequence : scheduler_.sequences()) {
    if (!sequence->starved) continue;
    any = true;
    Fail(sequence,
         Status(Code::kOutOfMemory,
                StrCat("no page is left for the request although the KV cache of ",
                       parts_.pool->budget_bytes() >> 20,
                       " MiB holds nothing else: the device gave less, ",
                       "expected all of it; lower --kv-cache-bytes or free its memory")),
         events);
  }
  return any;
}

Status Engine::Impl::AllocateSelection(Sequence* sequence) {
  if (sequence->selection.table.capacity > 0) return Status();
  const int entries = parts_.store->layout().way(Way::kRetrieval).num_entries;
  const int capacity = SelectionCapacity(sequence->attention);
  const size_t count_bytes = (static_cast<size_t>(entries) * sizeof(int) + 63) / 64 * 64;
  const size_t run_bytes =
      static_cast<size_t>(entries) * static_cast<size_t>(capacity) * sizeof(PageRun);
  sequence->selection_memory = LS_TRY(parts_.backend->Allocate(count_bytes + run_bytes));
  std::byte* memory = sequence->selection_memory.as<std::byte>();
  sequence->selection.table = {.capacity = capacity,
                               .max_pages = BudgetPages(sequence->attention),
                               .num_runs = reinterpret_cast<int*>(memory),
                               .runs = reinterpret_cast<PageRun*>(memory + count_bytes)};
  return Status();
}

Status Engine::Impl::BuildBatch(std::span<const Scheduled> step) {
  batch_.Clear();
  members_.clear();
  const KvLayout& layout = parts_.store->layout();
  for (const Scheduled& scheduled : step) {
    Sequence* sequence = scheduled.sequence;
    const int64_t first = sequence->cache.num_tokens();
    Member member{.scheduled = scheduled,
                  .range = {.sequence = static_cast<int>(batch_.sequences.size()),
                            .first_row = static_cast<int>(batch_.tokens.size()),
                            .num_rows = scheduled.num_tokens,
                            .first_position = first},
                  .decodes = !sequence->in_prompt(),
                  .decision = {},
                  .audit = {},
                  .draws = first + scheduled.num_tokens >= sequence->num_known_tokens()};
    for (int i = 0; i < scheduled.num_tokens; ++i)
      batch_.tokens.push_back(sequence->token_at(first + i));
    batch_.ranges.push_back(member.range);
    SequencePages pages;
    for (const Way way : kWays) pages.pages[Index(way)] = sequence->cache.pages(way);
    batch_.sequences.push_back(pages);
    if (member.decodes) {
      if (ReadsSelectedPages(sequence->attention, layout, first))
        LS_TRY(AllocateSelection(sequence));
      member.decision = PlanDecode(sequence->attention, layout, member.range, &sequence->selection,
                                   &batch_.decode);
      if (member.decision.selects) {
        batch_.selects.push_back({.sequence = member.range.sequence,
                                  .query_row = member.range.first_row,
                                  .num_pages = NumPages(first + 1),
                                  .sink_pages = kForcedSinkPages,
                                  .newest_pages = kForcedNewestPages,
                                  .budget_pages = BudgetPages(sequence->attention),
                                  .table = sequence->selection.table});
      }
    } else {
      PlanPrefill(sequence->attention, layout, member.range, &batch_.prefill);
    }
    members_.push_back(std::move(member));
  }
  return RequestTileLists();
}

// Gives every prefill row that reads a selected list its table, in memory that the next step
// reuses, and asks for the lists.
Status Engine::Impl::RequestTileLists() {
  const size_t entries =
      static_cast<size_t>(parts_.store->layout().way(Way::kRetrieval).num_entries);
  const auto run_bytes = [&](const SelectionTable& table) {
    return entries * static_cast<size_t>(table.capacity) * sizeof(PageRun);
  };
  const size_t count_bytes = (entries * sizeof(int) + 63) / 64 * 64;
  PagePlan& plan = batch_.prefill;
  size_t bytes = 0;
  for (const SelectionTable& table : plan.selections) bytes += count_bytes + run_bytes(table);
  if (bytes > tile_list_memory_.bytes) {
    tile_list_memory_ = {};  // give back first: both together may be too much
    tile_list_memory_ = LS_TRY(parts_.backend->Allocate(bytes));
  }
  std::byte* memory = tile_list_memory_.as<std::byte>();
  for (const PlanRow& row : plan.rows) {
    if (row.selection == kNoSelection) continue;
    SelectionTable& table = plan.selections[static_cast<size_t>(row.selection)];
    table.num_runs = reinterpret_cast<int*>(memory);
    table.runs = reinterpret_cast<PageRun*>(memory + count_bytes);
    memory += count_bytes + run_bytes(table);
    const Sequence& sequence = *members_[static_cast<size_t>(row.sequence)].scheduled.sequence;
    batch_.tile_selects.push_back({.sequence = row.sequence,
                                   .first_query = row.first_query,
                                   .first_position = row.first_position,
                                   .sink_tiles = kForcedSinkTiles,
                                   .newest_tiles = kForcedNewestTiles,
                                   .threshold = sequence.attention.prefill_threshold,
                                   .max_listed_tiles = MaxListedTiles(sequence.attention),
                                   .table = table});
  }
  return Status();
}

Result<std::optional<std::vector<float>>> Engine::Impl::ShadowPass(const Member& member) {
  const Sequence& sequence = *member.scheduled.sequence;
  const int64_t position = member.range.first_position;
  // Full pages are shared; the page of the new token is copied, so that its keys and values, which
  // differ from the second layer on, go to scratch.
  SequenceCache scratch = sequence.cache.Fork(position);
  if (!scratch.Reserve(1)) return std::optional<std::vector<float>>();
  Batch batch;
  batch.tokens = {sequence.token_at(position)};
  batch.ranges = {{.sequence = 0, .first_row = 0, .num_rows = 1, .first_position = position}};
  SequencePages pages;
  for (const Way way : kWays) pages.pages[Index(way)] = scratch.pages(way);
  batch.sequences = {pages};
  AttentionSettings all_pages = sequence.attention;
  all_pages.token_budget = std::numeric_limits<int>::max();
  SelectionState no_lists;
  PlanDecode(all_pages, parts_.store->layout(), batch.ranges[0], &no_lists, &batch.decode);
  LS_TRY(parts_.model->Forward(batch, parts_.store.get()));
  const int32_t row = 0;
  const ConstMatrix logits = LS_TRY(parts_.model->Logits({&row, 1}));
  std::vector<float> host(static_cast<size_t>(parts_.model_config.vocab_size));
  LS_TRY(parts_.backend->CopyToHost(host.data(), logits.data, host.size() * sizeof(float)));
  return std::optional<std::vector<float>>(std::move(host));
}

Status Engine::Impl::BeginAudits() {
  if (config_.audit_rate <= 0) return Status();
  const auto selects = [&](const Member& member) {
    return std::any_of(
        batch_.decode.rows.begin(), batch_.decode.rows.end(), [&](const PlanRow& row) {
          return row.sequence == member.range.sequence && row.selection != kNoSelection;
        });
  };
  for (Member& member : members_) {
    if (!member.decision.sparse || !audited_steps_.Next()) continue;
    auto audit = std::make_unique<StepAudit>();
    const Stopwatch watch;
    if (selects(member)) {
      std::optional<std::vector<float>> logits;
      Status status = WithinMemory([&] {
        logits = LS_TRY(ShadowPass(member));
        return Status();
      });
      // No request fails because it is audited.
      if (!status.ok() && status.code() != Code::kOutOfMemory) return status;
      if (!logits) {
        ++member.scheduled.sequence->stats.audit.skipped_steps;
        ++audit_.skipped_steps;
        continue;
      }
      audit->all_pages_logits = *std::move(logits);
    }
    audit->seconds = watch.seconds();
    member.audit = std::move(audit);
  }
  return Status();
}

// Calls the requests that want to see their attention, and the audits of this step.
void Engine::Impl::SetObserver() {
  const auto watched = [](const Member& member) {
    return member.audit != nullptr || member.scheduled.sequence->request.on_attention;
  };
  if (std::none_of(members_.begin(), members_.end(), watched)) return;
  batch_.observe = [this](const AttentionParams& attention) {
    const bool decodes = attention.plan == &batch_.decode;
    for (const Member& member : members_) {
      if (member.decodes != decodes) continue;
      const AttentionView view = {.backend = parts_.backend.get(),
                                  .attention = &attention,
                                  .range = member.range,
                                  .decodes = decodes};
      const auto& on_attention = member.scheduled.sequence->request.on_attention;
      if (on_attention) LS_TRY(on_attention(view));
      if (member.audit != nullptr) LS_TRY(member.audit->Observe(view));
    }
    return Status();
  };
}

Status Engine::Impl::CountWork(const Member& member, Sequence* sequence) {
  const KvLayout& layout = parts_.store->layout();
  const PagePlan& plan = member.decodes ? batch_.decode : batch_.prefill;
  RequestStats& stats = sequence->stats;
  for (const PlanRow& row : plan.rows) {
    if (row.sequence != member.range.sequence) continue;
    const int entries = layout.way(row.way).num_entries;
    if (entries == 0) continue;
    const int64_t num_keys = row.first_position + row.num_queries;
    if (!member.decodes) {
      stats.prefill_tiles_present += (num_keys + kTileTokens - 1) / kTileTokens * entries;
      if (row.selection == kNoSelection) {
        stats.prefill_tiles_visited += TilesVisited(row, plan.RunsOf(row, 0)) * entries;
        continue;
      }
      const HostLists host = LS_TRY(CopyLists(
          parts_.backend.get(), plan.selections[static_cast<size_t>(row.selection)], entries));
      for (int entry = 0; entry < entries; ++entry) {
        stats.prefill_tiles_visited += TilesVisited(row, host.table.list(entry));
      }
      ++stats.tile_selections;
      continue;
    }
    sequence->pages_present += static_cast<double>(NumPages(num_keys)) * entries;
    if (row.selection == kNoSelection) {
      sequence->pages_visited +=
          static_cast<double>(PagesVisited(row, plan.RunsOf(row, 0)) * entries);
      continue;
    }
    const SelectionTable lists =
        LS_TRY(DecodeLists(parts_.backend.get(), sequence, member.decision.selects,
                           plan.selections[static_cast<size_t>(row.selection)], entries));
    for (int entry = 0; entry < entries; ++entry) {
      sequence->pages_visited += static_cast<double>(PagesVisited(row, lists.list(entry)));
    }
  }
  if (!member.decodes) return Status();
  ++(member.decision.sparse ? stats.sparse_steps : stats.dense_steps);
  stats.selections += member.decision.selects ? 1 : 0;
  return Status();
}

Status Engine::Impl::EmitPromptLogits(const Member& member) {
  const Sequence& sequence = *member.scheduled.sequence;
  const int64_t vocab = parts_.model_config.vocab_size;
  std::vector<int32_t> rows;
  // What a preempted request computes again was shown before.
  const int64_t shown = sequence.computed_tokens - member.range.first_position;
  const int begin = static_cast<int>(std::clamp<int64_t>(shown, 0, member.range.num_rows));
  for (int first = begin; first < member.range.num_rows; first += LlamaModel::kLogitRows) {
    const int count = std::min(LlamaModel::kLogitRows, member.range.num_rows - first);
    rows.clear();
    for (int i = 0; i < count; ++i) rows.push_back(member.range.first_row + first + i);
    const ConstMatrix logits = LS_TRY(parts_.model->Logits(rows));
    prompt_logits_.resize(static_cast<size_t>(LlamaModel::kLogitRows * vocab));
    LS_TRY(parts_.backend->CopyToHost(prompt_logits_.data(), logits.data,
                                      static_cast<size_t>(count * vocab) * sizeof(float)));
    LS_TRY(sequence.request.on_prompt_logits(
        member.range.first_position + first,
        ConstMatrix(prompt_logits_.data(), DType::kF32, count, vocab, vocab)));
  }
  return Status();
}

Status Engine::Impl::AfterForward(const Member& member) {
  Sequence* sequence = member.scheduled.sequence;
  SequenceCache& cache = sequence->cache;
  cache.Advance(member.scheduled.num_tokens);
  const int64_t again = sequence->computed_tokens - member.range.first_position;
  sequence->stats.recomputed_tokens += std::clamp<int64_t>(again, 0, member.scheduled.num_tokens);
  sequence->computed_tokens = std::max(sequence->computed_tokens, cache.num_tokens());
  sequence->stats.kv_bytes = std::max<uint64_t>(sequence->stats.kv_bytes, cache.bytes());
  LS_TRY(CountWork(member, sequence));
  const int64_t done = cache.num_tokens();
  if (!member.decodes) KeepPrefix(*sequence, member.range.first_position);
  const int64_t keep_from = StreamingKeepFrom(sequence->attention, done, sequence->in_prompt());
  if (keep_from > 0 && !sequence->keeps_streaming)
    cache.TrimStreaming(StreamingSinkEnd(sequence->attention), keep_from);
  return Status();
}

// Before the streaming way is trimmed: the windows of all resume points behind `first` are there.
void Engine::Impl::KeepPrefix(const Sequence& sequence, int64_t first) {
  const int64_t kept = sequence.request.keep_prefix;
  const int64_t done = std::min(sequence.cache.num_tokens(), kept);
  for (const int64_t point : ResumePoints(sequence.attention, kept, first, done)) {
    prefixes_.Add(
        sequence.request.prompt, point,
        {.settings = sequence.attention, .salt = sequence.request.cache_salt},
        [&](Way way, PageIdx page) { return sequence.cache.SharePage(way, page); },
        sequence.keeps_streaming ? PrefixTree::StreamingPages::kAll
                                 : PrefixTree::StreamingPages::kNeeded);
    if (point % kStretchTokens == 0 || point == ResumePosition(sequence.attention, kept)) {
      archive_.Keep(sequence.request.prompt, point,
                    {.settings = sequence.attention, .salt = sequence.request.cache_salt});
    }
  }
}

Status Engine::Impl::DrawTokens(size_t first) {
  std::vector<int32_t> rows;
  std::vector<StepDraws::Row> draws;
  drawn_members_.clear();
  for (size_t i = first; i < members_.size() && rows.size() < LlamaModel::kLogitRows; ++i) {
    const Member& member = members_[i];
    if (!member.draws) continue;
    rows.push_back(member.range.first_row + member.range.num_rows - 1);
    drawn_members_.push_back(i);
    Sequence& sequence = *member.scheduled.sequence;
    const bool is_copied = sequence.request.on_token_logits || member.audit != nullptr;
    sequence.stats.logit_copies += is_copied ? 1 : 0;
    draws.push_back({.sequence = &sequence, .is_copied = is_copied});
  }
  return draws_.Draw(draws, LS_TRY(parts_.model->Logits(rows)));
}

Status Engine::Impl::TakeToken(const Member& member, size_t row, RequestEvent* event) {
  Sequence* sequence = member.scheduled.sequence;
  const std::span<const float> logits = draws_.logits(row);
  if (sequence->request.on_token_logits) sequence->request.on_token_logits(logits);
  if (member.audit != nullptr) {
    AuditStats step;
    member.audit->Finish(logits, &step);
    sequence->stats.audit.Add(step);
    audit_.Add(step);
  }
  const std::vector<int32_t>& forced = sequence->request.forced_tokens;
  const bool is_forced = !forced.empty();
  const int32_t token = is_forced ? forced[sequence->answer.size()]
                                  : LS_TRY(sequence->sampler.Take(LS_TRY(draws_.token(row))));
  sequence->answer.push_back(token);
  event->token = token;
  sequence->last_token_ms = sequence->since_added.milliseconds();
  if (sequence->answer.size() == 1) sequence->first_token_ms = sequence->last_token_ms;

  const auto contains = [&](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  const bool eos =
      !is_forced && !sequence->request.ignore_eos && contains(parts_.model_config.eos_token_ids);
  const bool stop_id = !is_forced && contains(sequence->request.stop_token_ids);
  // The token that ends an answer is no part of its text.
  if (sequence->text.has_value() && !eos && !stop_id) {
    event->text = LS_TRY(sequence->text->Push(token));
  }
  bool complete = false;
  if (sequence->request.constraint != nullptr && !eos) {
    LS_TRY(sequence->request.constraint->Accept(token));
    complete = sequence->request.constraint->complete();
  }
  const bool stop_text = !is_forced && sequence->text.has_value() && sequence->text->stopped();
  if (stop_text) event->stop_string = sequence->text->stop_string();
  if (eos || stop_id || stop_text || complete) {
    Finish(sequence, FinishReason::kStop, event);
  } else if (static_cast<int64_t>(sequence->answer.size()) >= sequence->max_tokens) {
    Finish(sequence, FinishReason::kLength, event);
  }
  return Status();
}

Result<RequestEvent> Engine::Impl::Finalize(size_t index) {
  // Before anything waits for the device: the members' logits in one product, which reads the
  // weight once.
  if (members_[index].draws &&
      std::find(drawn_members_.begin(), drawn_members_.end(), index) == drawn_members_.end()) {
    LS_TRY(DrawTokens(index));
  }
  Sequence* sequence = members_[index].scheduled.sequence;
  RequestEvent event{.id = sequence->id};
  Status status = WithinMemory([&] { return TakePart(index, &event); });
  if (status.code() == Code::kDeviceLost) return status;
  if (!status.ok()) {
    event.error = std::move(status);
    Finish(sequence, FinishReason::kError, &event);
  }
  if (!event.finished.has_value()) FillStats(*sequence, &event.stats);
  return event;
}

Status Engine::Impl::TakePart(size_t index, RequestEvent* event) {
  const Member& member = members_[index];
  Sequence* sequence = member.scheduled.sequence;
  Status status;
  if (!member.decodes && sequence->request.on_prompt_logits) status = EmitPromptLogits(member);
  LS_TRY(AfterForward(member));
  event->prefill_done = std::min(sequence->computed_tokens, sequence->prompt_size());
  if (!status.ok() || !member.draws) return status;
  const auto at = std::find(drawn_members_.begin(), drawn_members_.end(), index);
  return TakeToken(member, static_cast<size_t>(at - drawn_members_.begin()), event);
}

void Engine::Impl::Finish(Sequence* sequence, FinishReason reason, RequestEvent* event) {
  if (sequence->text.has_value() && reason != FinishReason::kError)
    event->text += sequence->text->Finish();
  event->finished = reason;
  event->prefill_done = std::min(sequence->computed_tokens, sequence->prompt_size());
  FillStats(*sequence, &event->stats);
  scheduler_.Remove(sequence->id);
}

void Engine::Impl::FillStats(const Sequence& sequence, RequestStats* stats) const {
  *stats = sequence.stats;
  stats->completion_tokens = static_cast<int64_t>(sequence.answer.size());
  stats->ttft_ms = sequence.first_token_ms;
  if (stats->completion_tokens > 1) {
    stats->decode_ms_per_token = (sequence.last_token_ms - sequence.first_token_ms) /
                                 static_cast<double>(stats->completion_tokens - 1);
  }
  const int64_t steps = stats->dense_steps + stats->sparse_steps;
  if (steps > 0) {
    stats->pages_visited = sequence.pages_visited / static_cast<double>(steps);
    stats->pages_present = sequence.pages_present / static_cast<double>(steps);
  }
}

Status Engine::Impl::Plan(std::vector<Scheduled>* step, std::vector<RequestEvent>* events) {
  events->reserve(scheduler_.size());  // at most one of each: an event that happened is not lost
  TakeCancelled(events);
  *step = scheduler_.Schedule();
  // A step in which the last running sequence was preempted is empty; the next one is not.
  while (step->empty() && scheduler_.has_work()) {
    if (TakeStarved(events)) break;
    if (scheduler_.is_loading()) {
      // Nothing to compute before a prefix is read. Not for long: there may be mail.
      archive_.Wait(std::chrono::milliseconds(10));
      break;
    }
    *step = scheduler_.Schedule();
  }
  return Status();
}

Status Engine::Impl::RunBatch(std::span<const Scheduled> step,
                              size_t* done,
                              std::vector<RequestEvent>* events) {
  LS_TRY(BuildBatch(step));
  LS_TRY(BeginAudits());
  SetObserver();
  LS_TRY(parts_.model->Forward(batch_, parts_.store.get()));
  drawn_members_.clear();
  for (size_t i = 0; i < members_.size(); ++i, ++*done) events->push_back(LS_TRY(Finalize(i)));
  return Status();
}

Status Engine::Impl::RunMembers(std::span<const Scheduled> step,
                                std::vector<RequestEvent>* events,
                                bool is_last_try) {
  for (const Scheduled& member : step)
    member.sequence->selection_before = member.sequence->selection;
  size_t done = 0;
  Status status = WithinMemory([&] { return RunBatch(step, &done, events); });
  if (status.code() != Code::kOutOfMemory || done == step.size()) return status;
  const std::span<const Scheduled> rest = step.subspan(done);
  // Nothing of them was counted, and what they wrote to the cache is written again; but lists that
  // were planned have not all been chosen.
  for (const Scheduled& member : rest) {
    Sequence* sequence = member.sequence;
    sequence->selection.age = sequence->selection_before.age;
    sequence->selection.num_pages = sequence->selection_before.num_pages;
  }
  parts_.pool->DecommitEmpty();
  if (rest.size() == 1) {
    if (!is_last_try) return RunMembers(rest, events, true);
    Fail(rest[0].sequence, std::move(status), events);
    return Status();
  }
  const size_t half = rest.size() / 2;
  LS_TRY(RunMembers(rest.first(half), events));
  return RunMembers(rest.subspan(half), events);
}

Result<std::vector<RequestEvent>> Engine::Impl::Step() {
  std::vector<RequestEvent> events;
  std::vector<Scheduled> step;
  const Status planned = WithinMemory([&] { return Plan(&step, &events); });
  if (planned.code() == Code::kOutOfMemory) {
    scheduler_.DropPlan();
    // It is tried once more; then whoever ranks last makes room.
    if (!std::exchange(plan_failed_, true)) return events;
    Sequence* const lowest = scheduler_.lowest();
    if (lowest == nullptr || events.size() == events.capacity()) return planned;
    Fail(lowest, planned, &events);
    return events;
  }
  LS_TRY(planned);
  plan_failed_ = false;
  if (step.empty()) return events;
  const Stopwatch watch;
  LS_TRY(RunMembers(step, &events));
  scheduler_.RecordStep(step, watch.milliseconds());  // reads no sequence: some are gone
  return events;
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::Create(const EngineConfig& config) {
  return Create(config, EngineInputs{});
}
Result<std::unique_ptr<Engine>> Engine::Create(const EngineConfig& config, EngineInputs inputs) {
  EngineParts parts = LS_TRY(BuildEngine(config, std::move(inputs)));
  return std::unique_ptr<Engine>(new Engine(std::make_unique<Impl>(std::move(parts))));
}

Status Engine::Check(const Request& request) const {
  return impl_->Check(request);
}
Result<RequestId> Engine::Add(Request request) {
  return impl_->Add(std::move(request));
}
void Engine::Cancel(RequestId id) {
  impl_->Cancel(id);
}
bool Engine::has_work() const {
  return impl_->scheduler_.has_work();
}
Result<std::vector<RequestEvent>> Engine::Step() {
  return impl_->Step();
}
void Engine::DropPrefixes() {
  impl_->prefixes_.Clear();
  impl_->archive_.Clear();
}
uint64_t Engine::kv_bytes_in_use() const {
  return impl_->parts_.pool->bytes_in_use();
}
int64_t Engine::num_preemptions() const {
  return impl_->scheduler_.num_preemptions();
}
KvTierStats Engine::host_tier() const {
  const PrefixTier* tier = impl_->parts_.tiers.host.get();
  return tier == nullptr ? KvTierStats() : tier->stats();
}
KvTierStats Engine::disk_tier() const {
  const PrefixTier* tier = impl_->parts_.tiers.disk.get();
  if (tier == nullptr) return {};
  KvTierStats stats = tier->stats();
  stats.slow = impl_->archive_.num_slow();
  return stats;
}
double Engine::selector_seconds() const {
  return impl_->parts_.model->selector_seconds();
}

const AuditStats& Engine::audit() const {
  return impl_->audit_;
}
const EngineInfo& Engine::info() const {
  return impl_->parts_.info;
}
const EngineConfig& Engine::config() const {
  return impl_->config_;
}
const ModelConfig& Engine::model_config() const {
  return impl_->parts_.model_config;
}
const Tokenizer* Engine::tokenizer() const {
  return impl_->parts_.tokenizer.get();
}

}  // namespace lserve
