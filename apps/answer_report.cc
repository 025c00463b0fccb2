#include "apps/answer_report.h"

#include <cstring>
#include <utility>

#include "apps/quantities.h"
#include "base/strings.h"

namespace lserve {
namespace {

// Means over the steps that they are of; null without one.
Json AuditToJson(const AuditStats& audit) {
  const auto mean = [](double sum, int64_t count) {
    return count > 0 ? Json(sum / static_cast<double>(count)) : Json();
  };
  const auto lowest = [](double value, int64_t count) { return count > 0 ? Json(value) : Json(); };
  return Json(Json::Object{
      {"steps", Json(audit.steps)},
      {"skipped_steps", Json(audit.skipped_steps)},
      {"retrieval_steps", Json(audit.retrieval_steps)},
      {"retrieval_recall", mean(audit.retrieval_recall, audit.retrieval_steps)},
      {"lowest_retrieval_recall", lowest(audit.lowest_retrieval_recall, audit.retrieval_steps)},
      {"top1_agreement", mean(static_cast<double>(audit.same_top), audit.retrieval_steps)},
      {"kl", mean(audit.kl, audit.retrieval_steps)},
      {"streaming_steps", Json(audit.streaming_steps)},
      {"streaming_recall", mean(audit.streaming_recall, audit.streaming_steps)},
      {"lowest_streaming_recall", lowest(audit.lowest_streaming_recall, audit.streaming_steps)},
      {"cost_ms", Json(audit.seconds * 1e3)},
  });
}

Json AnswerToJson(const ReportedAnswer& reported, bool audited) {
  const Answer& answer = reported.answer;
  const RequestStats& stats = answer.stats;
  Json::Array ids;
  for (const int32_t id : answer.token_ids) ids.push_back(Json(int64_t{id}));
  Json::Object object = {
      {"question", reported.question ? Json(*reported.question) : Json()},
      {"text", reported.has_text ? Json(answer.text) : Json()},
      {"token_ids", Json(std::move(ids))},
      {"finish_reason", Json(std::string(Name(answer.finish_reason)))},
      {"prompt_tokens", Json(stats.prompt_tokens)},
      {"cached_tokens", Json(stats.cached_tokens)},
      {"completion_tokens", Json(stats.completion_tokens)},
      {"ttft_ms", Json(stats.ttft_ms)},
      {"decode_ms_per_token",
       stats.decode_ms_per_token ? Json(*stats.decode_ms_per_token) : Json()},
      {"kv_bytes", Json(static_cast<int64_t>(stats.kv_bytes))},
      {"pages_visited", Json(stats.pages_visited)},
      {"pages_present", Json(stats.pages_present)},
      {"prefill_tiles_visited", Json(stats.prefill_tiles_visited)},
      {"prefill_tiles_present", Json(stats.prefill_tiles_present)},
      {"dense_steps", Json(stats.dense_steps)},
      {"sparse_steps", Json(stats.sparse_steps)},
      {"selections", Json(stats.selections)},
  };
  if (audited) object.emplace_back("audit", AuditToJson(stats.audit));
  if (reported.passages) {
    Json::Array passages;
    for (const Passage& passage : *reported.passages) passages.push_back(ToJson(passage));
    object.emplace_back("passages", Json(std::move(passages)));
  }
  return Json(std::move(object));
}

}  // namespace

Json AnswersToJson(const std::vector<ReportedAnswer>& answers,
                   const EngineInfo& info,
                   const AuditStats* audit) {
  Json::Array items;
  const char* attention = "dense";
  for (const ReportedAnswer& reported : answers) {
    items.push_back(AnswerToJson(reported, audit != nullptr));
    const char* ran = AttentionThatRan(reported.answer.stats);
    if (std::strcmp(ran, "sparse") == 0) attention = ran;
  }
  Json::Object object = {
      {"answers", Json(std::move(items))},
      {"model", Json(info.model)},
      {"attention", Json(attention)},
      {"device", Json(info.device)},
      {"kv_dtype", Json(info.kv_dtype)},
      {"streaming_kv_heads", Json(info.num_streaming_kv_heads)},
  };
  if (audit != nullptr) object.emplace_back("audit", AuditToJson(*audit));
  return Json(std::move(object));
}

std::string AuditLine(const AuditStats& audit) {
  const auto percent = [](double sum, int64_t count) {
    return StrCat(FormatFixed(100 * sum / static_cast<double>(count), 1), "%");
  };
  std::string line = StrCat("audit: ", audit.steps, " steps");
  if (audit.steps == 0) line += ", none was sparse and due";
  if (audit.retrieval_steps > 0) {
    const int64_t n = audit.retrieval_steps;
    line += StrCat(" | selected pages carry ", percent(audit.retrieval_recall, n),
                   " of the attention (", percent(audit.lowest_retrieval_recall, 1),
                   " at least) | same token ", audit.same_top, " of ", n, " | KL ",
                   FormatFixed(audit.kl / static_cast<double>(n), 5), " nats");
  }
  if (audit.streaming_steps > 0) {
    line +=
        StrCat(" | sink and window carry ", percent(audit.streaming_recall, audit.streaming_steps),
               " (", percent(audit.lowest_streaming_recall, 1), " at least)");
  }
  if (audit.skipped_steps > 0) {
    line += StrCat(" | ", audit.skipped_steps, " steps skipped: no free page");
  }
  return line + StrCat(" | cost ", FormatSeconds(audit.seconds));
}

std::string SummaryLine(const Answer& answer) {
  const RequestStats& stats = answer.stats;
  std::string line =
      StrCat(FormatCount(stats.prompt_tokens), " prompt tokens (", FormatCount(stats.cached_tokens),
             " cached) | first token ", FormatSeconds(stats.ttft_ms / 1e3), " | ",
             stats.completion_tokens, " tokens");
  if (stats.decode_ms_per_token) {
    line += StrCat(" at ", FormatFixed(*stats.decode_ms_per_token, 2), " ms");
  }
  line += StrCat(" | KV ", FormatBytes(stats.kv_bytes));
  if (stats.pages_present > 0) {
    line += StrCat(" | pages ", FormatFixed(stats.pages_visited, 0), " of ",
                   FormatFixed(stats.pages_present, 0), " per step");
  }
  line += StrCat(" | ", AttentionThatRan(stats), " attention | ", Name(answer.finish_reason));
  return line;
}

}  // namespace lserve
