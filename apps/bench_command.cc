#include "apps/bench_command.h"

#include <fstream>
#include <memory>
#include <utility>

#include "apps/bench_report.h"
#include "apps/console.h"
#include "apps/interrupt.h"
#include "apps/machine.h"
#include "apps/progress_bar.h"
#include "backend/registry.h"
#include "base/strings.h"
#include "bench/random_model.h"
#include "bench/shapes.h"

namespace lserve {
namespace {

// The table goes to stdout and JSON Lines to a file; or, with --json -, the lines to stdout and the
// table to stderr. Each line is written when its test ends: an interrupted run keeps what it has.
class Report {
 public:
  explicit Report(const BenchOptions& options) : options_(options) {}

  Status Open() {
    if (!options_.json || options_.json_to_stdout()) return Status();
    file_.open(*options_.json);
    return file_.is_open() ? Status() : WriteProblem();
  }
  Status Text(const std::string& text) {
    if (!options_.json_to_stdout()) return output_.Write(text);
    PrintToStderr(text);
    return Status();
  }
  Status Line(const Json& json) {
    if (!options_.json) return Status();
    const std::string line = WriteJson(json) + "\n";
    if (options_.json_to_stdout()) return output_.Write(line);
    file_ << line << std::flush;
    return file_.good() ? Status() : WriteProblem();
  }

 private:
  Status WriteProblem() const {
    return Status(Code::kIoError,
                  StrCat("--json: cannot write ", *options_.json,
                         ", expected a file in a directory that exists, on a disk with space; "
                         "choose another, or - for stdout"));
  }

  const BenchOptions& options_;
  Output output_;
  std::ofstream file_;
};

// A bar per run: the engine bench tells what runs now.
class RunProgress {
 public:
  void Update(const std::string& what, int64_t done, int64_t total) {
    if (what != what_ || done < done_) {
      bar_.emplace(what);
      what_ = what;
    }
    done_ = done;
    bar_->Update(done, total);
  }
  void Clear() {
    if (bar_) bar_->Clear();
  }

 private:
  std::optional<ProgressBar> bar_;
  std::string what_;
  int64_t done_ = 0;
};

BenchMachine Machine(const BenchOptions& options, const CeilingMeter& meter, CpuCeilings ceilings) {
  return {.processor = ProcessorName(),
          .num_threads = meter.num_threads(),
          .isa = Name(meter.isa()),
          .ceilings = ceilings,
          .note = options.note};
}

Status BenchEngine(const BenchOptions& options, Report& report) {
  std::optional<ModelInMemory> model;
  if (!options.shape.empty()) {
    model = MakeRandomModel(LS_TRY(FindShape(options.shape)), options.tests.seed);
  }
  const std::unique_ptr<EngineBench> bench =
      LS_TRY(EngineBench::Create(options.engine.config, std::move(model)));
  LS_TRY(bench->Check(options.tests));
  for (const std::string& warning : bench->info().warnings) PrintNote(warning);
  const CpuCeilings& ceilings = bench->ceilings();
  const BenchMachine machine = Machine(options, bench->ceiling_meter(), ceilings);
  LS_TRY(report.Line(MachineToJson(machine, &bench->info())));
  LS_TRY(report.Text(StrCat(MachineText(machine), ModelText(bench->info(), !options.shape.empty()),
                            "\n", EngineTableHeader())));
  RunProgress progress;
  BenchHooks hooks;
  hooks.on_progress = [&](const std::string& what, int64_t done, int64_t total) {
    progress.Update(what, done, total);
  };
  hooks.should_stop = Interrupted;
  hooks.on_test = [&](const EngineTest& test) {
    progress.Clear();
    LS_TRY(report.Text(EngineTableRow(test, ceilings)));
    return report.Line(EngineTestToJson(test, ceilings));
  };
  Status status = bench->Run(options.tests, hooks);
  progress.Clear();
  return status;
}

Status BenchKernels(const BenchOptions& options, Report& report) {
  const EngineConfig& config = options.engine.config;
  const CpuIsa isa = LS_TRY(ChooseCpuIsa(config.cpu_isa));
  const std::unique_ptr<Backend> backend = LS_TRY(MakeBackend(
      {.device = config.device, .num_threads = config.num_threads, .cpu_isa = config.cpu_isa}));
  CeilingMeter meter(isa, config.num_threads);
  const CpuCeilings ceilings = meter.Measure();
  const BenchMachine machine = Machine(options, meter, ceilings);
  LS_TRY(report.Line(MachineToJson(machine, nullptr)));
  LS_TRY(report.Text(StrCat(MachineText(machine), "\n", KernelTableHeader())));
  KernelBenchConfig kernels;
  kernels.repeats = options.repeats;
  KernelHooks hooks;
  hooks.should_stop = Interrupted;
  hooks.on_test = [&](const KernelTest& test) {
    LS_TRY(report.Text(KernelTableRow(test, ceilings)));
    return report.Line(KernelTestToJson(test, ceilings));
  };
  return RunKernelBench(*backend, meter, kernels, hooks);
}

}  // namespace

int BenchCommand(const BenchOptions& options) {
  InstallSignalHandlers();
  Report report(options);
  Status status = report.Open();
  if (status.ok()) {
    status = options.kernels ? BenchKernels(options, report) : BenchEngine(options, report);
  }
  if (status.code() == Code::kCancelled) {
    static_cast<void>(ReportError(status));
    return kExitInterrupt;
  }
  return status.ok() ? kExitOk : ReportError(status);
}

}  // namespace lserve
