#include "server/output_grammar.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "base/strings.h"
#include "grammar/json_rules.h"
#include "grammar/json_schema.h"

namespace lserve {
namespace {

constexpr size_t kMaxKnown = 16;  // of at most some 20 MB, while they rest
using StateId = Grammar::StateId;
using RuleId = Grammar::RuleId;

// Any bytes without `tag` in them, from `from`, which must be fresh; with the tag, `tagged` is
// reached. Knuth, Morris and Pratt's automaton.
void AddTextUpTo(GrammarBuilder& builder,
                 std::string_view tag,
                 StateId from,
                 StateId end,
                 std::optional<StateId> tagged) {
  std::vector<StateId> states = {from};
  for (size_t i = 1; i < tag.size(); ++i) states.push_back(builder.NewState());
  // How much of the tag the text ends with, after `matched` bytes of it and `byte`.
  const auto next = [&](size_t matched, char byte) {
    const std::string text = StrCat(tag.substr(0, matched), byte);
    size_t n = std::min(tag.size(), text.size());
    while (n > 0 && !text.ends_with(tag.substr(0, n))) --n;
    return n;
  };
  std::string bytes(tag);
  std::sort(bytes.begin(), bytes.end());
  bytes.erase(std::unique(bytes.begin(), bytes.end()), bytes.end());
  for (size_t i = 0; i < states.size(); ++i) {
    builder.AddSilent(states[i], end);
    int other = 0;  // the first byte that is in no range yet
    for (const char c : bytes) {
      const int byte = static_cast<unsigned char>(c);
      if (other < byte) {
        builder.AddBytes(states[i], static_cast<uint8_t>(other), static_cast<uint8_t>(byte - 1),
                         states[0]);
      }
      other = byte + 1;
      const size_t matched = next(i, c);
      if (matched < tag.size()) {
        builder.AddLiteral(states[i], {&c, 1}, states[matched]);
      } else if (tagged) {
        builder.AddLiteral(states[i], {&c, 1}, *tagged);
      }
    }
    builder.AddBytes(states[i], static_cast<uint8_t>(other), 255, states[0]);
  }
}

// All that one request's grammar is made of while it is made.
struct Assembly {
  GrammarBuilder builder = GrammarBuilder();
  JsonRules rules = JsonRules(&builder);
  std::deque<SchemaCompiler> compilers;

  Result<RuleId> Schema(const Json& schema, const std::string& where) {
    return compilers.emplace_back(schema, where, &builder, &rules).Compile();
  }
};

Result<RuleId> FormatRule(Assembly& assembly, const OutputFormat& format) {
  if (format.kind == OutputFormat::Kind::kJsonObject) return assembly.rules.Object();
  return assembly.Schema(format.schema, format.where);
}

// The calls from `from` on: `skipped` bytes of each opening are already written.
Status AddCalls(Assembly& assembly,
                const ToolOptions& tools,
                ToolStyle style,
                StateId from,
                size_t skipped,
                StateId end) {
  GrammarBuilder& builder = assembly.builder;
  const StateId after = builder.NewState();
  const StateId again = builder.NewState();
  const std::string closing = CallClosing(style);
  for (const Tool& tool : tools.tools) {
    if (!tools.only.empty() && tool.name != tools.only) continue;
    const RuleId arguments = LS_TRY(assembly.Schema(tool.parameters, tool.where));
    const std::string opening = CallOpening(style, tool.name);
    const StateId begin = builder.NewState();
    const StateId finish = builder.NewState();
    builder.AddLiteral(from, opening.substr(skipped), begin);
    if (skipped > 0) builder.AddLiteral(again, opening, begin);
    builder.AddCall(begin, arguments, finish);
    builder.AddLiteral(finish, closing, after);
  }
  builder.AddSilent(after, end);
  // A bare call is the whole answer; and whoever names a tool wants one call of it, where a model
  // that may not stop would go on calling.
  const bool is_single = !tools.parallel || !tools.only.empty() || style == ToolStyle::kBareJson;
  if (is_single) return Status();
  builder.AddLiteral(after, "\n", skipped > 0 ? again : from);
  return Status();
}

// Text that a bare call can not be mistaken for.
void AddTextWithoutBrace(GrammarBuilder& builder, StateId from, StateId end) {
  const StateId text = builder.NewState();
  builder.AddSilent(from, end);
  builder.AddBytes(from, 0, '{' - 1, text);
  builder.AddBytes(from, '{' + 1, 255, text);
  builder.AddBytes(text, 0, 255, text);
  builder.AddSilent(text, end);
}

Status AddAnswer(Assembly& assembly,
                 const OutputFormat& format,
                 const ToolOptions& tools,
                 ToolStyle style,
                 StateId from,
                 StateId end) {
  GrammarBuilder& builder = assembly.builder;
  const bool is_text = format.kind == OutputFormat::Kind::kText;
  if (!tools.enabled()) {
    builder.AddCall(from, LS_TRY(FormatRule(assembly, format)), end);
    return Status();
  }
  if (tools.choice == ToolOptions::Choice::kRequired)
    return AddCalls(assembly, tools, style, from, 0, end);
  if (!is_text) {
    builder.AddCall(from, LS_TRY(FormatRule(assembly, format)), end);
    const StateId calls = builder.NewState();
    builder.AddSilent(from, calls);
    return AddCalls(assembly, tools, style, calls, 0, end);
  }
  if (style == ToolStyle::kBareJson) {
    AddTextWithoutBrace(builder, from, end);
    const StateId calls = builder.NewState();
    builder.AddSilent(from, calls);
    return AddCalls(assembly, tools, style, calls, 0, end);
  }
  const StateId text = builder.NewState();
  const StateId tagged = builder.NewState();
  builder.AddSilent(from, text);
  AddTextUpTo(builder, kCallTag, text, end, tagged);
  return AddCalls(assembly, tools, style, tagged, kCallTag.size(), end);
}

std::string KeyOf(const OutputFormat& format, const ToolOptions& tools, ToolStyle style) {
  std::string key =
      StrCat(static_cast<int>(format.kind), " ", static_cast<int>(style), " ",
             static_cast<int>(tools.choice), " ", tools.parallel, " ", tools.only, " ");
  key += WriteJson(format.schema);
  if (!tools.enabled()) return key;
  for (const Tool& tool : tools.tools)
    key += StrCat(" ", tool.name, " ", tool.where, " ", WriteJson(tool.parameters));
  return key;
}

}  // namespace

OutputGrammars::OutputGrammars(const Tokenizer* tokenizer, std::vector<int32_t> end_tokens)
    : tokenizer_(tokenizer), end_tokens_(std::move(end_tokens)) {}

Result<std::shared_ptr<TokenMasker>> OutputGrammars::Make(const OutputFormat& format,
                                                          const ToolOptions& tools,
                                                          ToolStyle style) {
  Assembly assembly;
  GrammarBuilder& builder = assembly.builder;
  const RuleId root = builder.NewRule();
  const StateId begin = builder.NewState();
  builder.AddSilent(builder.start(root), begin);
  // Such a tokenizer begins a text with a space that does not show.
  if (trie_->drops_leading_space()) builder.AddLiteral(builder.start(root), " ", begin);
  LS_TRY(AddAnswer(assembly, format, tools, style, begin, builder.end(root)));
  auto grammar = LS_TRY(builder.Finish(root));
  auto masker = std::make_shared<TokenMasker>(std::move(grammar), trie_, end_tokens_);
  LS_TRY(masker->Warm());
  return masker;
}

std::optional<ApiError> OutputGrammars::Find(const OutputFormat& format,
                                             const ToolOptions& tools,
                                             ToolStyle style,
                                             std::shared_ptr<TokenMasker>* out) {
  if (format.kind == OutputFormat::Kind::kText && !tools.enabled()) return std::nullopt;
  const std::string param = tools.enabled() ? "tools" : "response_format";
  const std::string key = KeyOf(format, tools, style);
  if (key.size() > kMaxSchemaBytes) {
    return BadField(param, StrCat("the schemas have ", key.size(), " bytes, expected at most ",
                                  kMaxSchemaBytes, "; make them smaller"));
  }
  std::call_once(trie_made_, [&] { trie_ = std::make_shared<const TokenTrie>(*tokenizer_); });
  const auto find = [&] {
    const auto known = std::find_if(known_.begin(), known_.end(),
                                    [&](const auto& entry) { return entry.first == key; });
    if (known == known_.end()) return false;
    known_.splice(known_.begin(), known_, known);
    *out = known->second;
    return true;
  };
  {
    const std::lock_guard lock(mutex_);
    if (find()) return std::nullopt;
  }
  Result<std::shared_ptr<TokenMasker>> made = Make(format, tools, style);
  if (!made.ok()) {
    ApiError error = BadField(param, made.status().message());
    if (made.status().code() == Code::kUnsupported) error.code = "unsupported_parameter";
    return error;
  }
  const std::lock_guard lock(mutex_);
  if (find()) return std::nullopt;  // another request was quicker
  known_.emplace_front(key, std::move(made).value());
  if (known_.size() > kMaxKnown) known_.pop_back();
  *out = known_.front().second;
  return std::nullopt;
}

}  // namespace lserve
