#include "apps/bench_report.h"

#include <algorithm>
#include <vector>

#include "apps/quantities.h"
#include "base/strings.h"
#include "lserve/version.h"

namespace lserve {
namespace {

// A column: its heading and width; numbers stand right.
struct Column {
  const char* title;
  size_t width;
  bool right;
};

constexpr Column kEngineColumns[] = {
    {"test", 18, false},       {"attention", 9, false}, {"tok/s", 9, true}, {"min - max", 19, true},
    {"first token", 11, true}, {"ms/token", 8, true},   {"KV", 9, true},    {"attn time", 9, true},
    {"of ceiling", 10, true},  {"cores", 5, true},      {"gauge", 6, true}, {"load", 5, true},
};

constexpr Column kKernelColumns[] = {
    {"kernel", 17, false},    {"shape", 46, false}, {"type", 4, false},
    {"time", 9, true},        {"GFLOP/s", 8, true}, {"GB/s", 6, true},
    {"of ceiling", 17, true}, {"cores", 5, true},   {"gauge", 6, true},
};

std::string Padded(std::string text, const Column& column) {
  if (text.size() >= column.width) return text;
  const std::string space(column.width - text.size(), ' ');
  return column.right ? space + text : text + space;
}

template <size_t N>
std::string Row(const Column (&columns)[N], const std::string (&cells)[N]) {
  std::string line = "|";
  for (size_t i = 0; i < N; ++i) line += StrCat(" ", Padded(cells[i], columns[i]), " |");
  return line + "\n";
}

template <size_t N>
std::string Header(const Column (&columns)[N]) {
  std::string titles[N];
  std::string rule = "|";
  for (size_t i = 0; i < N; ++i) {
    titles[i] = columns[i].title;
    rule += StrCat(" ", std::string(columns[i].width - 1, '-'), columns[i].right ? ":" : "-", " |");
  }
  return Row(columns, titles) + rule + "\n";
}

// Three significant digits or more.
std::string Short(double value) {
  return FormatFixed(value, value >= 1000 ? 0 : value >= 100 ? 1 : value >= 10 ? 2 : 3);
}

std::string Percent(double share) {
  return StrCat(FormatFixed(share * 100, 0), "%");
}

std::string Milliseconds(double ms) {
  return ms >= 1000 ? StrCat(FormatFixed(ms / 1e3, ms >= 1e5 ? 0 : 2), " s")
                    : StrCat(FormatFixed(ms, ms >= 10 ? 0 : 1), " ms");
}

std::string ShortTime(double seconds) {
  if (seconds < 1e-3) return StrCat(Short(seconds * 1e6), " us");
  return StrCat(Short(seconds * 1e3), " ms");
}

std::string Rate(double per_second, const char* unit) {
  return StrCat(FormatFixed(per_second / 1e9, per_second < 100e9 ? 1 : 0), " G", unit);
}

Json SummaryToJson(const Summary& summary) {
  return Json(Json::Object{
      {"median", Json(summary.median)}, {"min", Json(summary.min)}, {"max", Json(summary.max)}});
}

Json Numbers(const std::vector<double>& values) {
  return Json(Json::Array(values.begin(), values.end()));
}

Json CeilingsToJson(const CpuCeilings& ceilings) {
  const auto known = [](double value) { return value > 0 ? Json(value) : Json(); };
  return Json(Json::Object{{"f32_flop_s", known(ceilings.f32_flop_s)},
                           {"bf16_flop_s", known(ceilings.bf16_flop_s)},
                           {"int8_op_s", known(ceilings.int8_op_s)},
                           {"read_bytes_s", known(ceilings.read_bytes_s)}});
}

}  // namespace

std::string MachineText(const BenchMachine& machine) {
  const CpuCeilings& c = machine.ceilings;
  std::string text =
      StrCat(machine.processor, ", ", machine.num_threads,
             machine.num_threads == 1 ? " thread, " : " threads, ", machine.isa, "; lserve ",
             kVersion, machine.note.empty() ? "" : StrCat(", ", machine.note), "\nceilings: ");
  if (c.bf16_flop_s > 0) text += StrCat("bf16 dot ", Rate(c.bf16_flop_s, "FLOP/s"), ", ");
  text += StrCat("f32 FMA ", Rate(c.f32_flop_s, "FLOP/s"));
  if (c.int8_op_s > 0) text += StrCat(", int8 dot ", Rate(c.int8_op_s, "op/s"));
  return text + StrCat(", memory read ", Rate(c.read_bytes_s, "B/s"), "\n");
}

std::string ModelText(const EngineInfo& info, bool random_weights) {
  return StrCat(info.model, random_weights ? " (random weights)" : "", ", ",
                FormatBytes(info.weight_bytes), " of weights, KV cache ", info.kv_dtype, ", ",
                info.num_streaming_kv_heads, " of ", info.num_kv_heads,
                " KV heads stream when attention is sparse\n");
}

Json MachineToJson(const BenchMachine& machine, const EngineInfo* info) {
  Json::Object object = {{"kind", Json("machine")},
                         {"version", Json(kVersion)},
                         {"note", Json(machine.note)},
                         {"processor", Json(machine.processor)},
                         {"threads", Json(machine.num_threads)},
                         {"isa", Json(machine.isa)},
                         {"ceilings", CeilingsToJson(machine.ceilings)}};
  if (info != nullptr) {
    object.emplace_back(
        "model", Json(Json::Object{{"name", Json(info->model)},
                                   {"device", Json(info->device)},
                                   {"weight_bytes", Json(static_cast<int64_t>(info->weight_bytes))},
                                   {"kv_dtype", Json(info->kv_dtype)},
                                   {"layers", Json(info->num_layers)},
                                   {"kv_heads", Json(info->num_kv_heads)},
                                   {"streaming_kv_heads", Json(info->num_streaming_kv_heads)}}));
  }
  return Json(std::move(object));
}

std::string EngineTableHeader() {
  return Header(kEngineColumns);
}

std::string EngineTableRow(const EngineTest& test, const CpuCeilings& ceilings) {
  const bool prefill = test.phase == BenchPhase::kPrefill;
  const Summary& rate = test.tokens_per_second;
  const double gauge = *std::min_element(test.gauges.begin(), test.gauges.end());
  return Row(
      kEngineColumns,
      {test.name, test.arm, Short(rate.median), StrCat(Short(rate.min), " - ", Short(rate.max)),
       test.first_token_ms.median > 0 ? Milliseconds(test.first_token_ms.median) : "-",
       prefill ? "-" : Short(test.ms_per_token), FormatBytes(test.kv_bytes),
       test.attention_share > 0 ? Percent(test.attention_share) : "-",
       test.share_of(ceilings) > 0
           ? StrCat(Percent(test.share_of(ceilings)), prefill ? " FLOP" : " read")
           : "-",
       FormatFixed(Summarize(test.cores).median, 2),
       Percent(gauge / std::max(ceilings.dot_flop_s(), 1.0)), FormatFixed(test.load_average, 1)});
}

Json EngineTestToJson(const EngineTest& test, const CpuCeilings& ceilings) {
  const bool prefill = test.phase == BenchPhase::kPrefill;
  Json::Object ops;
  for (int kind = 0; kind < kNumOpKinds; ++kind) {
    ops.emplace_back(Name(static_cast<OpKind>(kind)), Json(test.op_seconds[kind]));
  }
  ops.emplace_back("other", Json(test.other_seconds));
  return Json(Json::Object{
      {"kind", Json(prefill ? "prefill" : "decode")},
      {"test", Json(test.name)},
      {"attention", Json(test.arm)},
      {"context", Json(test.context)},
      {"batch", Json(test.batch)},
      {"decode_tokens", Json(test.decode_tokens)},
      {"seconds", Numbers(test.seconds)},
      {"cores", Numbers(test.cores)},
      {"tokens_per_second", SummaryToJson(test.tokens_per_second)},
      {"first_token_ms",
       test.first_token_ms.median > 0 ? SummaryToJson(test.first_token_ms) : Json()},
      {"ms_per_token", prefill ? Json() : Json(test.ms_per_token)},
      {"kv_bytes", Json(static_cast<int64_t>(test.kv_bytes))},
      {"attention_share", Json(test.attention_share)},
      {"flop_s", Json(test.flop_per_second)},
      {"bytes_s", Json(test.bytes_per_second)},
      {"bound", Json(prefill ? "flop" : "read")},
      {"ceiling_share", Json(test.share_of(ceilings))},
      {"op_seconds", Json(std::move(ops))},
      {"selector_seconds", prefill ? Json() : Json(test.selector_seconds)},
      {"pages_visited", prefill ? Json() : Json(test.stats.pages_visited)},
      {"pages_present", prefill ? Json() : Json(test.stats.pages_present)},
      {"prefill_tiles_visited", prefill ? Json(test.stats.prefill_tiles_visited) : Json()},
      {"prefill_tiles_present", prefill ? Json(test.stats.prefill_tiles_present) : Json()},
      {"gauge_flop_s", Numbers(test.gauges)},
      {"load_average", Json(test.load_average)},
  });
}

std::string KernelTableHeader() {
  return Header(kKernelColumns);
}

std::string KernelTableRow(const KernelTest& test, const CpuCeilings& ceilings) {
  const double seconds = test.seconds.median;
  const double roof = test.roof_seconds(ceilings);
  const auto rate = [&](double amount, int decimals) {
    return amount > 0 ? FormatFixed(amount / seconds / 1e9, decimals) : std::string("-");
  };
  return Row(
      kKernelColumns,
      {test.op, test.shape, test.dtype, ShortTime(seconds), rate(test.cost.flop, 1),
       rate(test.cost.bytes, 1),
       roof > 0 ? StrCat(Percent(roof / seconds), test.memory_bound(ceilings) ? " read" : " FLOP")
                : "-",
       FormatFixed(test.cores, 2), Percent(test.gauge / std::max(ceilings.dot_flop_s(), 1.0))});
}

Json KernelTestToJson(const KernelTest& test, const CpuCeilings& ceilings) {
  const double seconds = test.seconds.median;
  const double roof = test.roof_seconds(ceilings);
  return Json(Json::Object{
      {"kind", Json("kernel")},
      {"kernel", Json(test.op)},
      {"shape", Json(test.shape)},
      {"dtype", Json(test.dtype)},
      {"seconds", SummaryToJson(test.seconds)},
      {"flop_s", Json(test.cost.flop / seconds)},
      {"bytes_s", Json(test.cost.bytes / seconds)},
      {"bound", roof > 0 ? Json(test.memory_bound(ceilings) ? "read" : "flop") : Json()},
      {"ceiling_share", roof > 0 ? Json(roof / seconds) : Json()},
      {"cores", Json(test.cores)},
      {"gauge_flop_s", Json(test.gauge)},
  });
}

}  // namespace lserve
