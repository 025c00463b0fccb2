#include "server/tls.h"

#include <openssl/ssl.h>

#include "base/strings.h"

namespace lserve {

namespace asio = boost::asio;

Result<std::shared_ptr<asio::ssl::context>> MakeTlsContext(const std::string& certificate,
                                                           const std::string& key) {
  auto context = std::make_shared<asio::ssl::context>(asio::ssl::context::tls_server);
  boost::system::error_code error;
  const auto failed = [&](const char* flag, const std::string& file, const char* expected) {
    return Status(Code::kInvalidArgument,
                  StrCat(flag, " ", file, ": ", error.message(), ", expected ", expected));
  };
  // TLS 1.0 and 1.1 are deprecated (RFC 8996).
  SSL_CTX_set_min_proto_version(context->native_handle(), TLS1_2_VERSION);
  context->set_options(asio::ssl::context::no_compression | asio::ssl::context::single_dh_use,
                       error);
  // OpenSSL would ask the terminal for one.
  if (!error) {
    context->set_password_callback(
        [](size_t, asio::ssl::context::password_purpose) { return std::string(); }, error);
  }
  if (!error) context->use_certificate_chain_file(certificate, error);
  if (error)
    return failed("--tls-cert", certificate, "a PEM file with the server's certificate first");
  context->use_private_key_file(key, asio::ssl::context::pem, error);
  if (error) {
    return failed("--tls-key", key,
                  "a PEM file with the key of that certificate, without a passphrase");
  }
  return context;
}

}  // namespace lserve
