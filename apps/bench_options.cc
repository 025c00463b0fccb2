#include "apps/bench_options.h"

#include <algorithm>

#include "apps/quantities.h"
#include "base/strings.h"
#include "bench/shapes.h"

namespace lserve {
namespace {

constexpr char kDefaultLengths[] = "2k,8k";
constexpr int64_t kLongest = int64_t{1} << 24;  // tokens; beyond every model
constexpr int64_t kLargestBatch = 256;

Status Usage(std::string message) {
  return Status(Code::kInvalidArgument, std::move(message));
}

std::string Joined(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += StrCat(all.empty() ? "" : "|", name);
  return all;
}

BenchArm Arm(const AttentionSettings& settings, AttentionMode mode) {
  BenchArm arm{std::string(Name(mode)), settings};
  arm.attention.mode = mode;
  return arm;
}

}  // namespace

Result<std::vector<int64_t>> ParseSizeList(std::string_view text,
                                           int64_t min,
                                           int64_t max,
                                           std::string_view what) {
  std::vector<int64_t> values;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    values.push_back(LS_TRY(ParseSize(text.substr(begin, end - begin), min, max, what)));
    begin = end + 1;
  }
  return values;
}

void AddBenchFlags(FlagSet& flags, BenchOptions& out) {
  flags.Group("What to measure");
  const std::vector<std::string> shapes = ShapeNames();
  flags.Checked(
      "--shape", out.shape,
      [shapes](std::string_view name) {
        return std::find(shapes.begin(), shapes.end(), name) != shapes.end();
      },
      Joined(shapes),
      "random weights of this shape instead of a MODEL_DIR; needs no file. Half of the KV heads "
      "stream, chosen by --seed, unless --streaming-heads or --streaming-ratio say otherwise");
  flags.Text("--prompt,--n-prompt,-p", out.prompts, "TOKENS,...",
             "prefill tests: how fast prompts of these lengths are read, as 2k,8k,32k");
  flags.Text("--depth,--n-depth,-d", out.depths, "TOKENS,...",
             "decode tests: how fast tokens are written after this many; 0 is allowed. Default of "
             "both, if neither is given: 2k,8k");
  flags.Integer("--n-gen,-n", out.decode_tokens, 1, "TOKENS", "tokens of a decode test");
  flags.Text("--batch", out.batches, "COUNT,...",
             "decode tests: sequences side by side, each with a prompt of its own, as 1,4");
  flags.Number("--temperature,--temp", out.temperature, 0.0, 100.0,
               "decode tests: how tokens are drawn; default: the most probable one");
  flags.Number("--top-p", out.top_p, 0.0, 1.0, "with --temperature: smallest set of tokens");
  flags.Number("--repetition-penalty", out.repetition_penalty, 0.0, 100.0,
               "decode tests: of tokens of prompt and answer; default: 1, none");
  flags.Integer("--repeat,--repetitions,-r", out.repeats, 1, "COUNT",
                "runs of each test; the table has their median, least and most");
  flags.Size("--seed,-s", out.seed, 0, {}, "NUMBER", "of tokens and random weights");
  flags.Switch("--kernels", out.kernels,
               "instead of a model, measure the ops one by one: GEMM, attention, page selection");
  flags.Group("Output");
  flags.TextOrBare("--json", out.json, "-", "FILE|-",
                   "also write JSON Lines: the machine, then one line per test. Alone or with -: "
                   "to stdout, and the table to stderr");
  flags.Text("--note", out.note, "TEXT", "kept in the JSON's first line, such as the commit");
  // Which arms run is this command's own default.
  out.engine.attention_mode = "";
  AddEngineFlags(flags, out.engine);
}

Status FinishBenchOptions(BenchOptions& out) {
  const bool both = out.engine.attention_mode.empty();
  if (both) out.engine.attention_mode = "auto";
  LS_TRY(FinishEngineFlags(out.engine));
  EngineConfig& config = out.engine.config;
  if (out.kernels && (!out.shape.empty() || !config.model_dir.empty())) {
    return Usage(StrCat("--kernels: got a model as well (",
                        out.shape.empty() ? config.model_dir : out.shape,
                        "), expected none; the kernel benches have shapes of their own"));
  }
  if (out.kernels && (!out.prompts.empty() || !out.depths.empty())) {
    return Usage(
        "--kernels: got --prompt or --depth as well, expected neither; the kernel benches have "
        "lengths of their own");
  }
  if (!out.kernels && out.shape.empty() == config.model_dir.empty()) {
    return Usage(StrCat(
        "MODEL_DIR or --shape: got ", out.shape.empty() ? "neither" : "both",
        ", expected one; give the directory of a checkpoint, --shape NAME for random weights, or "
        "--kernels; see lserve bench --help"));
  }
  if (out.prompts.empty() && out.depths.empty()) out.prompts = out.depths = kDefaultLengths;

  EngineBenchConfig& tests = out.tests;
  if (!out.prompts.empty()) {
    tests.prompts = LS_TRY(ParseSizeList(out.prompts, 1, kLongest, "--prompt"));
  }
  if (!out.depths.empty()) {
    tests.depths = LS_TRY(ParseSizeList(out.depths, 0, kLongest, "--depth"));
  }
  tests.batches.clear();
  for (const int64_t batch : LS_TRY(ParseSizeList(out.batches, 1, kLargestBatch, "--batch"))) {
    tests.batches.push_back(static_cast<int>(batch));
  }
  tests.decode_tokens = out.decode_tokens;
  tests.repeats = out.repeats;
  tests.seed = static_cast<uint64_t>(out.seed);
  tests.sampling.temperature = out.temperature.value_or(0.0);
  tests.sampling.top_p = out.top_p.value_or(1.0);
  tests.sampling.repetition_penalty = out.repetition_penalty.value_or(1.0);
  for (const std::string& problem : tests.sampling.Problems()) return Usage(problem);
  if (both) {
    tests.arms = {Arm(config.attention, AttentionMode::kDense),
                  Arm(config.attention, AttentionMode::kSparse)};
  } else {
    tests.arms = {Arm(config.attention, config.attention.mode)};
  }
  // Without a sparse arm nobody has to hear that no head streams.
  config.attention.mode = tests.arms.back().attention.mode;
  config.max_num_seqs =
      std::max(config.max_num_seqs, *std::max_element(tests.batches.begin(), tests.batches.end()));
  return Status();
}

}  // namespace lserve
