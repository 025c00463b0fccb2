// Data files of evaluations: any text either gives a one-line error, or rows and questions whose
// every metric is a number from 0 to 1. The text is read as a row of LongBench and as SQuAD's file.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "eval/longbench.h"
#include "eval/squad.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto check_error = [](const lserve::Status& status) {
    LS_CHECK(status.message().find('\n') == std::string::npos);
  };
  const lserve::Result<lserve::SquadData> squad = lserve::ParseSquad(text, "fuzz");
  if (!squad.ok()) check_error(squad.status());
  if (squad.ok()) {
    for (const lserve::SquadQuestion& question : squad.value().questions) {
      LS_CHECK_LT(question.document, squad.value().documents.size());
    }
  }
  const lserve::Result<lserve::LongBenchRow> row = lserve::ParseLongBenchRow(text, "fuzz");
  if (!row.ok()) {
    check_error(row.status());
    return 0;
  }
  // ROUGE and edit similarity take the product of two lengths.
  constexpr size_t kLongest = 2000;
  if (row.value().input.size() > kLongest) return 0;
  for (const std::string& answer : row.value().answers) {
    if (answer.size() > kLongest) return 0;
  }
  for (const lserve::LongBenchDataset& dataset : lserve::LongBenchDatasets()) {
    const double score = lserve::ScoreLongBench(dataset, row.value(), row.value().input);
    LS_CHECK(score >= 0.0 && score <= 1.0) << dataset.name << " " << score;
  }
  return 0;
}
