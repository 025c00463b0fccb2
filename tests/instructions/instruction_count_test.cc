// Instructions of the hot kernels, held against the committed counts: a regression shows without a
// clock, on a machine however busy. A child process is stepped one instruction at a time between
// two breakpoints, on the real processor: valgrind 3.19 of Debian 12 knows no AVX-512.
//
// Instructions are not time; they tell that the code changed. On a difference: measure the time
// (`lserve bench --kernels`), then commit the table that this test prints. The counts are those of
// one compiler; with another there is nothing to compare with.
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <map>
#include <string>

#include "base/json.h"
#include "base/mapped_file.h"
#include "tests/instructions/hot_kernels_testing.h"

namespace lserve {
namespace {

// Alignment and the counters of a loop's remainder may cost an instruction here and there.
constexpr double kTolerance = 0.01;

// Instructions that `run` executes, or -1 if stepping is not permitted here.
int64_t CountInstructions(const HotKernel& kernel) {
  kernel.run();  // resolves symbols
  const pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(1);
    raise(SIGTRAP);
    kernel.run();
    raise(SIGTRAP);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (!WIFSTOPPED(status)) return -1;
  // The first stop is inside raise(). A step ends in SIGTRAP too: only the second raise() is told
  // apart, by its signal having been sent from user space.
  int64_t count = 0;
  for (;;) {
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0) break;
    if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) return -1;
    siginfo_t info = {};
    if (ptrace(PTRACE_GETSIGINFO, child, nullptr, &info) != 0) return -1;
    if (info.si_code <= 0) break;  // SI_USER, SI_TKILL
    ++count;
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return count;
}

TEST(InstructionCounts, AreThoseCommitted) {
  const std::string path = LS_SOURCE_DIR "/tests/instructions/counts.json";
  const Result<std::string> text = ReadTextFile(path);
  ASSERT_TRUE(text.ok()) << text.status().message();
  const Result<Json> json = ParseJson(text.value());
  ASSERT_TRUE(json.ok()) << json.status().message();
  const std::string compiler = json.value().Find("compiler")->as_string();
  if (compiler != __VERSION__) {
    GTEST_SKIP() << "counts are of GCC " << compiler << ", this is " << __VERSION__;
  }
  const int64_t overhead = CountInstructions({"nothing", [] {}});
  ASSERT_GT(overhead, 0) << "ptrace is not permitted here";
  const Json& committed = *json.value().Find("counts");
  Json::Object all;
  bool same = true;
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    if (isa > BestCpuIsa()) continue;
    Json::Object counts;
    const Json* known = committed.Find(Name(isa));
    for (const HotKernel& kernel : HotKernels(isa)) {
      const int64_t count = CountInstructions(kernel) - overhead;
      ASSERT_GT(count, 0);
      counts.emplace_back(kernel.name, Json(count));
      const Json* expected = known == nullptr ? nullptr : known->Find(kernel.name);
      const double before = expected == nullptr ? 0.0 : expected->as_double();
      const bool close = std::abs(static_cast<double>(count) - before) <= kTolerance * before;
      same = same && close;
      EXPECT_TRUE(close) << Name(isa) << ", " << kernel.name << ": " << count << " instructions, "
                         << before << " committed";
    }
    all.emplace_back(std::string(Name(isa)), Json(std::move(counts)));
  }
  if (same) return;
  const Json table(
      Json::Object{{"compiler", Json(std::string(__VERSION__))}, {"counts", Json(std::move(all))}});
  ADD_FAILURE() << path << " would be:\n" << WriteJson(table, {.indent = 1});
}

}  // namespace
}  // namespace lserve
