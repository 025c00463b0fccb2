// TLS for the HTTP server: the certificate, and the versions that are spoken. Used by
// http_server.cc.
#pragma once

#include <boost/asio/ssl/context.hpp>
#include <memory>
#include <string>

#include "base/status.h"

namespace lserve {

// `certificate`: a PEM file with the chain, the server's own one first; `key`: its key, without a
// passphrase. Error: a file that can not be read, or a pair that does not fit.
Result<std::shared_ptr<boost::asio::ssl::context>> MakeTlsContext(const std::string& certificate,
                                                                  const std::string& key);

}  // namespace lserve
