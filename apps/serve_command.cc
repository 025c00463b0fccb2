#include "apps/serve_command.h"

#include <unistd.h>

#include <memory>
#include <utility>

#include "apps/console.h"
#include "apps/interrupt.h"
#include "apps/quantities.h"
#include "base/log.h"
#include "base/strings.h"
#include "loader/model_config.h"

namespace lserve {
namespace {

bool IsLoopback(const HttpAddress& address) {
  return !address.unix_socket.empty() || address.host == "localhost" || address.host == "::1" ||
         address.host.starts_with("127.");
}

// Of whoever brings no settings of their own.
std::string AttentionText(const AttentionSettings& attention, const EngineInfo& info) {
  std::string mode = StrCat("attention ", Name(attention.mode));
  if (attention.mode == AttentionMode::kDense) return mode;
  const std::string dense = StrCat("dense below ", FormatCount(attention.min_context), ", then ");
  return StrCat(mode, ": ", attention.mode == AttentionMode::kAuto ? dense : "",
                FormatCount(attention.token_budget), " tokens read per token of an answer, ",
                info.num_streaming_kv_heads, " of ", info.num_kv_heads, " KV heads stream");
}

// What an operator wants to see in the log of a start: where, what, how much, and what was chosen
// where no flag said.
void PrintStart(const Server& server, const EngineInfo& info, const EngineConfig& config) {
  PrintToStderr(StrCat("lserve: ", info.model, " on ", OneLine(info.device), ", context ",
                       FormatCount(info.max_model_len), " tokens, KV cache ",
                       FormatBytes(info.kv_budget_bytes), " (", info.kv_dtype, "), memory at most ",
                       FormatBytes(info.peak_bytes), "\n"));
  PrintToStderr(StrCat("lserve: up to ", config.max_num_seqs, " requests at a time in steps of ",
                       FormatCount(config.max_num_batched_tokens), " tokens, ",
                       AttentionText(config.attention, info), "\n"));
  PrintToStderr(StrCat("lserve: listening at ", server.address(), "\n"));
}

void ReloadCertificate(Server& server) {
  const Status status = server.ReloadCertificate();
  PrintToStderr(status.ok() ? "lserve: new connections get the certificate as it is now\n"
                            : StrCat("lserve: error: the certificate stays as it was: ",
                                     OneLine(status.message()), "\n"));
}

// All of the keys or none: half of a change could open what should be closed.
void ReloadKeys(Server& server, const KeySources& sources, const KeyLimits& others) {
  Result<AccessKeys> keys = ReadKeys(sources, others);
  if (!keys.ok()) {
    return PrintToStderr(StrCat(
        "lserve: error: the keys stay as they were: ", OneLine(keys.status().message()), "\n"));
  }
  const std::string counts =
      StrCat("API keys: ", keys.value().api.size(), ", admin keys: ", keys.value().admin.size());
  server.ReplaceKeys(std::move(keys).value());
  PrintToStderr(StrCat("lserve: new requests need the keys as they are now (", counts, ")\n"));
}

}  // namespace

int ServeCommand(ServeOptions options) {
  CountTerminations();
  const bool has_tls = !options.server.address.tls_certificate.empty();
  // With nothing to read again a hang-up ends the process, as it ends other programs.
  if (has_tls || options.keys.has_files()) RememberHangups();
  Result<std::unique_ptr<Engine>> made = Engine::Create(options.engine.config);
  if (!made.ok()) return ReportError(made.status());
  std::unique_ptr<Engine> engine = std::move(made).value();
  const EngineInfo info = engine->info();
  const EngineConfig in_effect = engine->config();

  ServerConfig& config = options.server;
  config.service.default_sampling =
      MakeSampling(options.sampling, engine->model_config().generation);
  if (config.queue.max_tokens == 0) config.queue.max_tokens = 4 * info.max_model_len;
  if (!options.no_access_log) {
    // One write per line, so that the lines of two threads do not mix.
    config.access_log = [](const std::string& line) { PrintToStderr(line + "\n"); };
  }
  const KeyLimits key_limits = config.service.default_key_limits;
  const bool is_open = config.service.access.api.empty() && !IsLoopback(config.address);

  Result<std::unique_ptr<Server>> started = Server::Start(std::move(engine), std::move(config));
  if (!started.ok()) return ReportError(started.status());
  std::unique_ptr<Server> server = std::move(started).value();
  for (const std::string& warning : info.warnings) PrintNote(warning);
  if (is_open) PrintNote("anybody who reaches this address may ask; give --api-key-file");
  PrintStart(*server, info, in_effect);

  const Status status = server->Run([&] {
    if (TakeHangup()) {
      if (has_tls) ReloadCertificate(*server);
      if (options.keys.has_files()) ReloadKeys(*server, options.keys, key_limits);
    }
    return Terminations();
  });
  if (status.ok()) {
    server.reset();
    PrintToStderr("lserve: ended\n");
    return kExitOk;
  }
  ReportError(status);
  // The engine's thread may never come back, so nothing here waits for it.
  _exit(kExitFailed);
}

}  // namespace lserve
