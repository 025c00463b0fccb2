#include "server/unix_path.h"

#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>

#include "base/strings.h"

namespace lserve {

namespace asio = boost::asio;

Status FreeUnixPath(const std::string& path) {
  struct stat info = {};
  if (lstat(path.c_str(), &info) != 0) return Status();
  if (!S_ISSOCK(info.st_mode)) {
    return Status(
        Code::kInvalidArgument,
        StrCat("--uds ", path, " exists and is no socket, expected a free name; choose another"));
  }
  asio::io_context context;
  asio::local::stream_protocol::socket probe(context);
  boost::system::error_code error;
  probe.connect(asio::local::stream_protocol::endpoint(path), error);
  if (!error) {
    return Status(
        Code::kInvalidArgument,
        StrCat("--uds ", path, " is in use by another process; stop it or choose another name"));
  }
  unlink(path.c_str());
  return Status();
}

}  // namespace lserve
