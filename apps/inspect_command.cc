#include "apps/inspect_command.h"

#include "apps/console.h"
#include "apps/machine.h"
#include "apps/model_report.h"

namespace lserve {
namespace {

int Print(const std::string& text) {
  Output output;
  const Status status = output.Write(text);
  return status.ok() ? kExitOk : ReportError(status);
}

}  // namespace

void AddInspectFlags(FlagSet& flags, InspectOptions& out) {
  flags.Group("Options");
  flags.Switch("--support", out.support,
               "instead of a model, list what this machine can compute with");
  flags.Switch("--json", out.json, "one JSON object on stdout");
}

int InspectCommand(const InspectOptions& options) {
  const JsonStyle style = {.indent = 1};
  if (options.support) {
    return Print(options.json ? WriteJson(SupportJson(), style) + "\n" : SupportTable());
  }
  const Result<ModelReport> report = MakeModelReport(options.model_dir);
  if (report.ok()) {
    return Print(options.json ? WriteJson(ReportToJson(report.value()), style) + "\n"
                              : ReportToText(report.value()));
  }
  if (options.json) {
    // The object says it too, for a reader that only has stdout.
    const Json json(
        Json::Object{{"supported", Json(false)}, {"reason", Json(report.status().message())}});
    const int printed = Print(WriteJson(json, style) + "\n");
    if (printed != kExitOk) return printed;
  }
  return ReportError(report.status());
}

}  // namespace lserve
