// ResultLog: the JSON Lines file of an evaluation. Every finished cell is one line, written at
// once, so that an interrupted run goes on where it stopped. Its first line says what was measured;
// a run with other settings is refused. Used by trial.cc and fidelity.cc.
#pragma once

#include <map>
#include <string>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

class ResultLog {
 public:
  // `path` empty: kept in memory only. A line that an interrupt cut short is dropped; any other
  // line that is no record is an error.
  static Result<ResultLog> Open(const std::string& path, const Json& header);
  ResultLog(ResultLog&& other) noexcept;
  ResultLog& operator=(ResultLog&& other) noexcept;
  ResultLog(const ResultLog&) = delete;
  ResultLog& operator=(const ResultLog&) = delete;
  ~ResultLog();

  // The record of a finished cell, or null.
  const Json* Find(const std::string& key) const;
  // Writes and keeps the record.
  Status Append(const std::string& key, Json record);

  size_t num_resumed() const { return num_resumed_; }

 private:
  ResultLog() = default;
  Status Load(const Json& header);
  Status WriteLine(const Json& line);

  std::string path_;
  int fd_ = -1;
  size_t num_resumed_ = 0;
  std::map<std::string, Json> records_;
};

}  // namespace lserve
