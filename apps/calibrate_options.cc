#include "apps/calibrate_options.h"

#include <utility>

#include "apps/quantities.h"
#include "base/strings.h"

namespace lserve {
namespace {

Status Usage(std::string message) {
  return Status(Code::kInvalidArgument, std::move(message));
}

}  // namespace

void AddCalibrateFlags(FlagSet& flags, CalibrateOptions& out) {
  out.engine.config.max_num_seqs = 1;
  flags.Group("What to measure on");
  flags.Texts(
      "--text", out.texts, "FILE",
      "UTF-8 text as the model will read; heads that serve text count as much as heads that "
      "answer questions. Default: made-up manual pages");
  flags.Size("--length", out.length, 256, {}, "TOKENS",
             "of a document with its question and answer, and of a part of a text");
  flags.Integer("--documents", out.documents, 0, "COUNT",
                "made documents with hidden facts to measure on; as many again for the checks");
  flags.Integer("--questions", out.questions, 1, "COUNT",
                "facts that are asked of each, at most 8");
  flags.Integer("--text-parts", out.text_parts, 2, "COUNT",
                "parts of each text that are used at most; every second one is for the checks");
  flags.Size("--seed,-s", out.seed, 0, {}, "NUMBER", "of what is random in the documents");
  flags.Group("Which heads stream");
  flags.Choice(
      "--rank", out.rank, {"peak", "ablation"},
      "peak: by what one dense run shows of each head. ablation: by what is lost when that "
      "head alone streams: truer, and a run for every head");
  flags.Number("--target-ratio", out.target_ratio, 0.0, 1.0,
               "share of the KV heads that stream. Default: 0.5");
  flags.Number("--max-loss", out.max_loss, 0.0, 100.0,
               "instead: as many as cost at most this KL divergence from dense attention, in nats "
               "per token of the checks; of answers and texts the worse counts");
  flags.Text("--ratios", out.ratios_text, "LIST", "shares that are checked as well; none: \"\"");
  flags.Text(
      "--compare", out.compare_file, "FILE",
      "another file (DuoAttention's full_attention_heads.tsv or ours), cut at the same share, "
      "checked and compared");
  flags.Group("Results");
  flags.Text("--output,-o", out.output_file, "FILE",
             "Default: MODEL_DIR/streaming_heads.json, which all commands use from then on");
  flags.Switch("--overwrite", out.overwrite, "replace the file if it is there");
  flags.Text("--svg", out.svg_file, "FILE", "draw scores and kinds, layers x KV heads");
  AddEngineFlags(flags, out.engine);
}

Status FinishCalibrateOptions(CalibrateOptions& out) {
  LS_TRY(FinishEngineFlags(out.engine));
  if (out.target_ratio && out.max_loss) {
    return Usage("--target-ratio: got --max-loss as well, expected one of them");
  }
  if (!out.target_ratio && !out.max_loss) out.target_ratio = 0.5;
  constexpr int kMostQuestions = 8, kMostDocuments = 1000;
  if (out.questions > kMostQuestions || out.documents > kMostDocuments) {
    return Usage(StrCat("--documents, --questions: got ", out.documents, " and ", out.questions,
                        ", expected at most ", kMostDocuments, " and ", kMostQuestions));
  }
  if (out.documents == 0 && out.texts.empty()) {
    return Usage("--documents: got 0 and no --text, expected something to measure on");
  }
  if (!out.engine.config.streaming_heads.empty() || out.engine.config.streaming_ratio) {
    return Usage(
        "--streaming-heads, --streaming-ratio: are what calibrate finds out; compare with a file "
        "by --compare FILE, choose a share by --target-ratio");
  }
  for (const auto& [flag, file] :
       {std::pair("--output", out.output_file), std::pair("--svg", out.svg_file),
        std::pair("--compare", out.compare_file)}) {
    if (file && file->empty()) {
      return Usage(StrCat(flag, ": got an empty name, expected a file; is a variable unset?"));
    }
  }
  if (out.ratios_text.empty()) return Status();
  return ForEachValue(out.ratios_text, "--ratios", [&](const std::string& part) {
    out.ratios.push_back(LS_TRY(ParseNumber(part, 0.0, 1.0, "--ratios")));
    return Status();
  });
}

}  // namespace lserve
