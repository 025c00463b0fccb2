#include "apps/serve_options.h"

#include <vector>

#include "apps/run_options.h"
#include "base/strings.h"

namespace lserve {
namespace {

void AddListenFlags(FlagSet& flags, ServeOptions& out) {
  flags.Group("Where to listen");
  flags.Text("--host", out.server.address.host, "ADDRESS",
             "127.0.0.1: this machine only; 0.0.0.0: every network, so give an API key");
  flags.Integer("--port", out.server.address.port, 0, "PORT", "0: any free one");
  flags.Text("--uds,--unix-socket", out.uds, "FILE", "listen on this Unix socket instead");
  flags.Text("--tls-cert,--ssl-certfile,--ssl-cert-file", out.server.address.tls_certificate,
             "FILE",
             "speak TLS with this certificate (PEM, the chain after it); SIGHUP reads it and the "
             "key again, for new connections");
  flags.Text("--tls-key,--ssl-keyfile,--ssl-key-file", out.server.address.tls_key, "FILE",
             "its key (PEM, without a passphrase)");
  flags.Texts("--served-model-name,--alias,-a", out.server.service.served_model_names, "NAME",
              "what clients call the model; several are allowed, the first is in /v1/models first. "
              "Default: the directory's name");
  flags.Texts("--api-key", out.keys.keys, "KEY",
              "who may ask; several are allowed. Others can read a command line: rather use "
              "--api-key-file or the variable LSERVE_API_KEY");
  flags.Text(
      "--api-key-file", out.keys.key_file, "FILE",
      "a key per line, after it limits of its own if it has some: requests=N "
      "requests-per-minute=N tokens-per-minute=N; # begins a comment. SIGHUP reads it again: a "
      "file that is wrong changes nothing");
  flags.Text("--admin-key-file", out.keys.admin_key_file, "FILE",
             "the same for POST /reset_prefix_cache, which no other key opens, and nobody without "
             "this file or the variable LSERVE_ADMIN_KEY; SIGHUP reads it again");
  flags.Texts("--allowed-origins,--cors-origins", out.server.service.allowed_origins, "ORIGIN",
              "web pages that may ask from a browser, as https://chat.example.org; *: all. "
              "Default: none");
}

void AddQueueFlags(FlagSet& flags, ServeOptions& out) {
  flags.Group("Who waits, and how long");
  flags.Integer("--max-num-queued-reqs,--max-queued-requests", out.server.queue.max_requests, 1,
                "COUNT", "requests that may wait for their first step; further ones get 429");
  flags.Choice("--scheduling-policy", out.scheduling_policy, {"priority", "fcfs"},
               "priority: a request's \"priority\" counts, lower values first (default 0), and "
               "takes places and pages from higher ones; fcfs: a value other than 0 is refused");
  flags.Number(
      "--priority-ageing", out.engine.config.priority_ageing_seconds, 0, 1e9, "SECONDS",
      "a request gains one level of priority on newer ones for every so many seconds since "
      "it came, so that better ones can not keep it waiting without end; 0: never");
  flags.Size("--max-num-queued-tokens", out.server.queue.max_tokens, 0, {"auto"}, "TOKENS",
             "the same for the tokens of their prompts; auto: four contexts");
  KeyLimits& each = out.server.service.default_key_limits;
  flags.Size("--max-requests-per-key", each.requests, 0, {}, "COUNT",
             "requests of one API key that are answered at a time; further ones get 429. 0: no "
             "limit, as below; the file of keys can say otherwise for a key");
  flags.Size("--requests-per-minute-per-key", each.requests_per_minute, 0, {}, "COUNT",
             "the same per minute; unused ones of a minute are kept, no more");
  flags.Size("--tokens-per-minute-per-key", each.tokens_per_minute, 0, {}, "TOKENS",
             "tokens of prompts and answers; max_tokens counts until the answer has ended");
  flags.Number("--max-decode-gap-ms", out.engine.config.max_decode_gap_ms, 0, 1e6, "MS",
               "while answers are written, prompts are read in chunks that take about this long, "
               "128 tokens at least; 0: chunks are always --max-num-batched-tokens long");
  flags.Integer("--max-connections", out.server.http.connections, 1, "COUNT",
                "open HTTP connections; further ones get 503");
  flags.Number("--sse-ping-interval", out.server.service.heartbeat_seconds, 0.1, 3600, "SECONDS",
               "a stream without a token for this long gets a comment, so that no client or proxy "
               "gives up while a prompt is read");
  flags.Number("--step-deadline", out.server.service.step_deadline_seconds, 0.1, 86400, "SECONDS",
               "/ready fails when a step takes longer");
  flags.Number("--watchdog-timeout", out.server.watchdog_seconds, 0, 86400, "SECONDS",
               "the process ends with an error when a step takes longer; 0: never");
  flags.Number("--shutdown-timeout", out.server.drain_seconds, 0, 86400, "SECONDS",
               "what is being answered gets this long after SIGTERM");
}

void AddAnswerFlags(FlagSet& flags, ServeOptions& out) {
  flags.Group("Answers");
  flags.Size("--default-max-tokens", out.server.service.default_max_tokens, 1, {}, "TOKENS",
             "longest answer of a request that does not say. Requests run side by side as long as "
             "their pages fit; then the youngest waits and is computed again");
  flags.Number("--audit-rate", out.engine.config.audit_rate, 0.0, 1.0, "SHARE",
               "measure what sparse attention leaves out, in this share of the decode steps and "
               "requests, for /metrics (lserve:audit_*); such a step is computed twice, and such a "
               "request holds the pages of dense attention");
  flags.Text("--chat-date", out.date_text, "YYYY-MM-DD",
             "the date that some chat templates write. Default: the day of the start; a date that "
             "changes would empty the prefix cache at midnight");
  flags.Switch("--no-enable-prefix-caching,--no-prefix-caching", out.no_prefix_caching,
               "compute every prompt from its first token on");
  flags.Switch("--no-access-log", out.no_access_log,
               "no JSON line per request on stderr (it never holds prompts or answers)");
  flags.Text("--config", out.config_file, "FILE",
             "options as a JSON object, as --print-config writes it; the command line wins");
  flags.Switch("--print-config", out.print_config,
               "print the options in effect as JSON, and do nothing else");
}

void AddForeignFlags(FlagSet& flags, ServeOptions& out) {
  flags.Group("Of other servers");
  flags.Switch(
      "--enable-prefix-caching,--cont-batching,--metrics,--enable-metrics,"
      "--enable-chunked-prefill,--enable-prompt-tokens-details,--jinja,"
      "--enable-auto-tool-choice",
      out.ignored, "accepted: on anyhow, or of no use here");
  flags.NoEffect("--tool-call-parser", "NAME", "the chat template says how the model writes calls");
  flags.NoEffect("--reasoning-parser", "NAME", "what a model thinks is part of its text");
  flags.Refused("--tensor-parallel-size,--tp", true, "this version computes on one device");
  flags.Refused("--admin-api-key", true,
                "others can read a command line; use --admin-key-file or LSERVE_ADMIN_KEY");
  flags.Refused("--chat-template", true, "the checkpoint's own template is used");
  flags.Refused("--kv-offloading-size,--cache-ram", true,
                "its unit is not ours; use --kv-host-bytes, as 16G");
  flags.Refused("--slot-save-path", true, "use --kv-disk-dir, which needs no request to save");
}

}  // namespace

void AddServeFlags(FlagSet& flags, ServeOptions& out) {
  out.engine.config.max_decode_gap_ms = 200;
  AddListenFlags(flags, out);
  AddQueueFlags(flags, out);
  AddAnswerFlags(flags, out);
  AddSamplingFlags(flags, out.sampling);
  AddEngineFlags(flags, out.engine);
  AddForeignFlags(flags, out);
}

Status FinishServeOptions(ServeOptions& out) {
  LS_TRY(FinishEngineFlags(out.engine));
  out.server.service.access = LS_TRY(ReadKeys(out.keys, out.server.service.default_key_limits));
  if (out.server.address.port > 65535) {
    return Status(Code::kInvalidArgument,
                  StrCat("--port: got ", out.server.address.port, ", expected 0 to 65535"));
  }
  out.server.address.unix_socket = out.uds;
  out.server.service.prefix_caching = !out.no_prefix_caching;
  out.server.service.priorities = out.scheduling_policy == "priority";
  out.server.service.date = out.date_text ? LS_TRY(ParseChatDate(*out.date_text)) : Today();
  const std::vector<std::string> problems = MakeSampling(out.sampling, {}).Problems();
  return problems.empty() ? Status() : Status(Code::kInvalidArgument, problems[0]);
}

}  // namespace lserve
