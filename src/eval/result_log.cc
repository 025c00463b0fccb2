#include "eval/result_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/mapped_file.h"
#include "base/strings.h"

namespace lserve {
namespace {

constexpr const char kHeaderKey[] = "lserve_eval";
// A record holds texts of answers, never documents.
constexpr JsonLimits kLineLimits = {.max_depth = 16, .max_bytes = size_t{16} << 20};

Status IoError(const std::string& path, const char* action) {
  return Status(Code::kIoError,
                StrCat(path, ": can not ", action, " (", std::strerror(errno),
                       "), expected a file to keep results in; is the folder there and writable?"));
}

// The first member in which two headers differ, as "seed is 2, expected 1".
std::string Difference(const Json& found, const Json& expected) {
  for (const auto& [name, value] : expected.as_object()) {
    const Json* other = found.Find(name);
    if (other == nullptr) return StrCat("has no \"", name, "\"");
    if (*other != value) {
      return StrCat("\"", name, "\" is ", WriteJson(*other), ", expected ", WriteJson(value));
    }
  }
  return "has members that this version does not write";
}

}  // namespace

Result<ResultLog> ResultLog::Open(const std::string& path, const Json& header) {
  ResultLog log;
  log.path_ = path;
  if (path.empty()) return log;
  log.fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log.fd_ < 0) return IoError(path, "open");
  LS_TRY(log.Load(header));
  return log;
}

ResultLog::ResultLog(ResultLog&& other) noexcept {
  *this = std::move(other);
}

ResultLog& ResultLog::operator=(ResultLog&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(num_resumed_, other.num_resumed_);
  std::swap(records_, other.records_);
  return *this;
}

ResultLog::~ResultLog() {
  if (fd_ >= 0) close(fd_);
}

Status ResultLog::Load(const Json& header) {
  const std::string text = LS_TRY(ReadTextFile(path_));
  const auto bad_line = [&](int64_t number, const std::string& why) {
    return Status(Code::kInvalidArgument,
                  StrCat(path_, ": line ", number, " ", why,
                         ", expected a record of lserve eval; give another file to --resume"));
  };
  size_t begin = 0;
  int64_t number = 0;
  while (begin < text.size()) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // cut short
    ++number;
    const Result<Json> line = ParseJson(text.substr(begin, end - begin), kLineLimits);
    if (!line.ok()) return bad_line(number, "is no JSON");
    if (number == 1) {
      const Json* found = line.value().Find(kHeaderKey);
      if (found == nullptr || !found->is_object()) return bad_line(1, "names no evaluation");
      if (*found != header) {
        return Status(Code::kInvalidArgument,
                      StrCat(path_, ": ", Difference(*found, header),
                             "; its results are of another run: repeat that command line, or give "
                             "another file to --resume"));
      }
    } else {
      const Json* key = line.value().Find("key");
      if (key == nullptr || !key->is_string()) return bad_line(number, "has no key");
      records_[key->as_string()] = line.value();
    }
    begin = end + 1;
  }
  if (begin < text.size() && ftruncate(fd_, static_cast<off_t>(begin)) != 0) {
    return IoError(path_, "shorten");
  }
  num_resumed_ = records_.size();
  if (number > 0) return Status();
  return WriteLine(Json(Json::Object{{kHeaderKey, header}}));
}

Status ResultLog::WriteLine(const Json& line) {
  const std::string text = WriteJson(line) + "\n";
  size_t sent = 0;
  while (sent < text.size()) {
    const ssize_t n = write(fd_, text.data() + sent, text.size() - sent);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return IoError(path_, "write to");
    sent += static_cast<size_t>(n);
  }
  return Status();
}

const Json* ResultLog::Find(const std::string& key) const {
  const auto found = records_.find(key);
  return found == records_.end() ? nullptr : &found->second;
}

Status ResultLog::Append(const std::string& key, Json record) {
  Json::Object line = {{"key", Json(key)}};
  for (auto& member : record.mutable_object()) line.push_back(std::move(member));
  Json json(std::move(line));
  if (fd_ >= 0) LS_TRY(WriteLine(json));
  records_[key] = std::move(json);
  return Status();
}

}  // namespace lserve
