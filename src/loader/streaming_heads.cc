#include "loader/streaming_heads.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/strings.h"
#include "loader/json_fields.h"

namespace lserve {
namespace {

constexpr int64_t kMaxLayers = 4096;  // as in model_config.cc
constexpr int64_t kMaxHeads = 4096;
constexpr double kMaxScore = 3e38;  // fits a float; NaN fails `<=` too and could not be ordered
constexpr size_t kMaxFileBytes = size_t{64} << 20;

Status Corrupt(const std::string& path, const std::string& what) {
  return Status(Code::kInvalidArgument,
                StrCat(path, ": ", what, "; calibrate again or fix the file"));
}

// A [layers][kv_heads] array of numbers, row by row; each passes `check`, which names what it
// wants.
Result<std::vector<double>> ParseGrid(const JsonFields& fields,
                                      const std::string& key,
                                      const Json& rows,
                                      const StreamingHeadsFile& file) {
  const std::string expected = StrCat(file.layers, " rows of ", file.kv_heads, " numbers");
  const Status wrong = Corrupt(
      fields.where(), StrCat("\"", key, "\" has another shape or type, expected ", expected));
  if (!rows.is_array() || rows.as_array().size() != static_cast<size_t>(file.layers)) return wrong;
  std::vector<double> values;
  for (const Json& row : rows.as_array()) {
    if (!row.is_array() || row.as_array().size() != static_cast<size_t>(file.kv_heads)) {
      return wrong;
    }
    for (const Json& value : row.as_array()) {
      if (!value.is_number()) return wrong;
      if (!(std::abs(value.as_double()) <= kMaxScore)) return wrong;
      values.push_back(value.as_double());
    }
  }
  return values;
}

Result<StreamingHeadsFile> ParseStreamingJson(std::string_view text, const std::string& path) {
  Result<Json> parsed = ParseJson(text, {.max_depth = 16, .max_bytes = kMaxFileBytes});
  if (!parsed.ok()) {
    return Corrupt(path, StrCat("is no valid JSON (", parsed.status().message(),
                                "), expected a streaming-heads file"));
  }
  const JsonFields fields(parsed.value(), path);
  StreamingHeadsFile file;
  file.layers = LS_TRY(fields.RequiredInt("layers", 1, kMaxLayers));
  file.kv_heads = LS_TRY(fields.RequiredInt("kv_heads", 1, kMaxHeads));
  const Json* score = fields.Find("score");
  if (score == nullptr) {
    return Corrupt(path, "\"score\" is missing, expected one number per layer and KV head");
  }
  for (const double value : LS_TRY(ParseGrid(fields, "score", *score, file))) {
    file.score.push_back(static_cast<float>(value));
  }
  if (const Json* kind = fields.Find("kind")) {
    file.kind.emplace();
    for (const double value : LS_TRY(ParseGrid(fields, "kind", *kind, file))) {
      if (value != 0.0 && value != 1.0) {
        return Corrupt(path,
                       StrCat("\"kind\" has ", value, ", expected 0 (streaming) or 1 (retrieval)"));
      }
      file.kind->push_back(value == 1.0 ? 1 : 0);
    }
  }
  return file;
}

// One line of the TSV into `scores`; returns how many there were.
Result<int64_t> ParseTsvLine(std::string_view line,
                             int64_t line_number,
                             const std::string& path,
                             std::vector<float>& scores) {
  constexpr std::string_view kSpace = " \t\r";
  int64_t count = 0;
  size_t at = line.find_first_not_of(kSpace);
  while (at != std::string_view::npos) {
    const size_t end = std::min(line.find_first_of(kSpace, at), line.size());
    const std::string_view word = line.substr(at, end - at);
    double value = 0.0;
    const std::from_chars_result read =
        std::from_chars(word.data(), word.data() + word.size(), value);
    const bool finite = std::abs(value) <= kMaxScore;
    if (read.ec != std::errc() || read.ptr != word.data() + word.size() || !finite) {
      return Corrupt(path, StrCat("line ", line_number, " has ", Quoted(word),
                                  ", expected finite numbers separated by tabs"));
    }
    scores.push_back(static_cast<float>(value));
    ++count;
    at = line.find_first_not_of(kSpace, end);
  }
  return count;
}

Result<StreamingHeadsFile> ParseStreamingTsv(std::string_view text, const std::string& path) {
  StreamingHeadsFile file;
  int64_t line_number = 0;
  while (!text.empty()) {
    ++line_number;
    const size_t end = std::min(text.find('\n'), text.size());
    const int64_t count = LS_TRY(ParseTsvLine(text.substr(0, end), line_number, path, file.score));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (count == 0) continue;
    if (file.layers == 0) file.kv_heads = count;
    if (count != file.kv_heads || count > kMaxHeads || file.layers >= kMaxLayers) {
      return Corrupt(
          path, StrCat("line ", line_number, " has ", count, " numbers, expected ", file.kv_heads,
                       " in at most ", kMaxLayers, " rows of at most ", kMaxHeads));
    }
    ++file.layers;
  }
  if (file.layers == 0) {
    return Corrupt(path, "is empty, expected one row of numbers per layer");
  }
  return file;
}

}  // namespace

Result<StreamingHeadsFile> ParseStreamingHeads(std::string_view text, const std::string& path) {
  if (text.size() > kMaxFileBytes) {
    return Corrupt(path, StrCat("has ", text.size(), " bytes, expected at most ", kMaxFileBytes));
  }
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string_view::npos && text[first] == '{') {
    return ParseStreamingJson(text, path);
  }
  return ParseStreamingTsv(text, path);
}

Result<StreamingHeadsFile> LoadStreamingHeads(const std::string& path) {
  const std::string text = LS_TRY(ReadTextFile(path, kMaxFileBytes));
  return ParseStreamingHeads(text, path);
}

Status CheckShape(const StreamingHeadsFile& file,
                  int64_t layers,
                  int64_t kv_heads,
                  const std::string& path) {
  if (file.layers == layers && file.kv_heads == kv_heads) return Status();
  return Status(Code::kInvalidArgument,
                StrCat(path, ": is for ", file.layers, " layers of ", file.kv_heads,
                       " KV heads, expected ", layers, " layers of ", kv_heads,
                       "; give the file that was calibrated for this model"));
}

Result<HeadKinds> CutByRatio(const StreamingHeadsFile& file, double ratio) {
  if (!(ratio >= 0.0 && ratio <= 1.0)) {
    return Status(Code::kInvalidArgument,
                  StrCat("streaming ratio: is ", ratio,
                         ", expected a share from 0 to 1; give for example 0.5"));
  }
  for (const float score : file.score) {
    if (std::isnan(score)) {
      return Status(Code::kInvalidArgument,
                    "streaming-heads file: a score is NaN, expected numbers; calibrate again");
    }
  }
  std::vector<size_t> order(file.score.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return file.score[a] < file.score[b]; });
  const double heads = static_cast<double>(order.size());
  const size_t num_streaming = static_cast<size_t>(std::floor(ratio * heads + 0.5));
  HeadKinds kinds(order.size(), 1);
  for (size_t i = 0; i < num_streaming; ++i) kinds[order[i]] = 0;
  return kinds;
}

}  // namespace lserve
