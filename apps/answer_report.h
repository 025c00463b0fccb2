// Reports on answers: the object of `--json` (design 4.2) and the lines for people. Used by
// `lserve run`.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "apps/answering.h"
#include "apps/explanation.h"
#include "base/json.h"

namespace lserve {

struct ReportedAnswer {
  std::optional<std::string> question;
  bool has_text = false;  // false without a tokenizer
  Answer answer;
  std::optional<std::vector<Passage>> passages = {};  // with --explain
};

// `audit`: of all answers; null: none was asked for.
Json AnswersToJson(const std::vector<ReportedAnswer>& answers,
                   const EngineInfo& info,
                   const AuditStats* audit = nullptr);

// "audit: 5 steps | recall 97.3%, lowest 61.0% | ..."
std::string AuditLine(const AuditStats& audit);

// "8,124 prompt tokens (8,000 cached) | first token 123 ms | ..."
std::string SummaryLine(const Answer& answer);

}  // namespace lserve
