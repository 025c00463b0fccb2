#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <utility>

#include "base/mapped_file.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/decoder.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/post_processor.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer_config.h"
#include "tokenizer/unicode.h"

namespace lserve {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;  // symbol positions are 32 bits wide
// Ids index tables: a file of a few tokens may not claim an id of a million.
constexpr int64_t kMaxIdGap = 65536;

// Pieces repeat; most of a text is encoded by looking its words up.
class PieceCache {
 public:
  const std::pair<size_t, size_t>* Find(std::string_view piece) const {
    const auto found = spans_.find(piece);
    return found == spans_.end() ? nullptr : &found->second;
  }
  bool Accepts(std::string_view piece) const {
    return piece.size() <= kMaxPieceBytes && spans_.size() < kMaxPieces;
  }
  // The ids of `piece` are out[begin, end), which only ever grows.
  void Add(std::string_view piece, size_t begin, size_t end) {
    spans_.emplace(std::string(piece), std::make_pair(begin, end));
  }

 private:
  static constexpr size_t kMaxPieceBytes = 64;
  static constexpr size_t kMaxPieces = 1 << 16;
  std::unordered_map<std::string, std::pair<size_t, size_t>, StringHash, std::equal_to<>> spans_;
};

// The parts of `ranges` inside `window`, relative to its beginning.
std::vector<ByteRange> Clip(const std::vector<ByteRange>& ranges, ByteRange window) {
  std::vector<ByteRange> clipped;
  auto range = std::upper_bound(ranges.begin(), ranges.end(), window.begin,
                                [](size_t at, const ByteRange& r) { return at < r.end; });
  for (; range != ranges.end() && range->begin < window.end; ++range) {
    clipped.push_back({std::max(range->begin, window.begin) - window.begin,
                       std::min(range->end, window.end) - window.begin});
  }
  return clipped;
}

Status CheckText(std::string_view text) {
  if (text.size() > kMaxTextBytes) {
    return Status(
        Code::kInvalidArgument,
        StrCat("text has ", text.size(), " bytes; expected at most ", kMaxTextBytes, "; split it"));
  }
  const size_t invalid = FindInvalidUtf8(text);
  if (invalid == text.size()) return {};
  const int byte = static_cast<unsigned char>(text[invalid]);
  return Status(Code::kInvalidArgument, StrCat("text is no UTF-8 at byte ", invalid, " (value ",
                                               byte, "); expected UTF-8; convert the text"));
}

Json NullIfMissing(const Json& json, std::string_view name) {
  const Json* value = json.Find(name);
  return value == nullptr ? Json() : *value;
}

}  // namespace

struct Tokenizer::Impl {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  BpeModel model;
  PostProcessor post_processor;
  Decoder decoder;
  TokenMatcher raw_matcher;         // before normalization
  TokenMatcher normalized_matcher;  // after it

  std::vector<std::optional<std::string>> tokens;  // by id, as the file spells them
  std::vector<TokenText> texts;                    // by id
  std::vector<bool> special;                       // by id
  StringToId added_ids;
  // Added tokens that normalization changes are decoded in their changed form.
  std::unordered_map<TokenId, std::string> decoded_as;
  std::vector<TokenId> special_ids;
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;

  // Templates by name; one that could not be parsed keeps its error for whoever asks for it.
  std::vector<std::pair<std::string, Result<ChatTemplate>>> templates;

  Status ReadAddedTokens(const Json& json, const TokenizerConfig& config);
  Status AddToken(const AddedToken& token);
  Status SetToken(std::string_view token, int32_t id);
  Status BuildTables();
  void ReadTemplates(const TokenizerConfig& config, const TokenizerFiles& files);
  std::optional<TokenId> Find(std::string_view token) const;
  // Null if there is none.
  const Result<ChatTemplate>* FindTemplate(bool with_tools) const;
  // What the decoder gets for `id`. REQUIRES: it has a token.
  const std::string& SpellingOf(size_t id) const {
    const auto changed = decoded_as.find(static_cast<TokenId>(id));
    return changed == decoded_as.end() ? *tokens[id] : changed->second;
  }

  Status EncodeInto(std::string_view text,
                    const MatchRules& rules,
                    std::vector<TokenId>& out) const;
  Status EncodeStretch(MarkedText text,
                       bool at_start,
                       const MatchRules& rules,
                       PieceCache& cache,
                       std::vector<TokenId>& out) const;
  Status EncodePieces(std::string text,
                      bool at_start,
                      PieceCache& cache,
                      std::vector<TokenId>& out) const;
  Status PushId(TokenId id, bool skip_special, TextAssembler& assembler, std::string& out) const;
};

std::optional<TokenId> Tokenizer::Impl::Find(std::string_view token) const {
  if (const auto found = added_ids.find(token); found != added_ids.end()) return found->second;
  const auto found = model.vocab().find(token);
  return found == model.vocab().end() ? std::nullopt : std::optional<TokenId>(found->second);
}

Status Tokenizer::Impl::SetToken(std::string_view token, int32_t id) {
  std::optional<std::string>& slot = tokens[static_cast<size_t>(id)];
  if (slot.has_value() && *slot != token) {
    return BadField(StrCat("token id ", id), StrCat("both \"", *slot, "\" and \"", token, "\""),
                    "one token per id");
  }
  slot = token;
  return {};
}

Status Tokenizer::Impl::AddToken(const AddedToken& token) {
  const auto known = model.vocab().find(token.content);
  if (known != model.vocab().end() && known->second != token.id) {
    return BadField(StrCat("added token \"", token.content, "\""), StrCat("id ", token.id),
                    StrCat("id ", known->second, " as in the vocabulary"));
  }
  const auto [listed, is_new] = added_ids.emplace(token.content, token.id);
  if (!is_new) {
    if (listed->second == token.id) return {};  // in both files
    // Hugging Face keeps the first id and leaves the other without a token: the model could say
    // what nobody can read. Neither id is known to be the model's, so neither is taken.
    return BadField(StrCat("added token \"", Shown(token.content),
                           "\" of tokenizer.json or "
                           "tokenizer_config.json"),
                    StrCat("both id ", listed->second, " and id ", token.id), "one id per token");
  }
  if (token.special) special_ids.push_back(token.id);
  if (token.normalized) {
    MarkedText content{token.content, {}};
    LS_TRY(normalizer.Run(content));
    normalized_matcher.Add(token, content.text);
    if (content.text != token.content) decoded_as.emplace(token.id, content.text);
  } else {
    raw_matcher.Add(token, token.content);
  }
  return {};
}

Status Tokenizer::Impl::ReadAddedTokens(const Json& json, const TokenizerConfig& config) {
  std::vector<AddedToken> added;
  if (const Json* list = json.Find("added_tokens"); list != nullptr && !list->is_null()) {
    const Json::Array* entries = LS_TRY(ArrayField(json, "tokenizer.json", "added_tokens"));
    for (size_t i = 0; i < entries->size(); ++i) {
      added.push_back(LS_TRY(ParseAddedToken((*entries)[i], StrCat("added_tokens[", i, "]"))));
    }
  }
  added.insert(added.end(), config.added_tokens.begin(), config.added_tokens.end());
  for (AddedToken& token : added) {
    // What the configuration calls its beginning or end of text is special, whatever the flag says.
    for (const auto& [name, content] : config.named_tokens) {
      if (content == token.content) token.special = true;
    }
    LS_TRY(AddToken(token));
  }
  std::sort(special_ids.begin(), special_ids.end());
  return {};
}

Status Tokenizer::Impl::BuildTables() {
  int64_t last = -1;
  for (const auto& [token, id] : model.vocab()) last = std::max<int64_t>(last, id);
  for (const auto& [token, id] : added_ids) last = std::max<int64_t>(last, id);
  const int64_t count = static_cast<int64_t>(model.vocab().size() + added_ids.size());
  if (last >= 2 * count + kMaxIdGap) {
    return BadField("largest token id", StrCat(last), StrCat("about the ", count, " tokens"));
  }
  for (const std::vector<int32_t>* ids : {&post_processor.prefix, &post_processor.suffix}) {
    for (const int32_t id : *ids) {
      if (id > last) return BadField("post_processor id", StrCat(id), StrCat("0 to ", last));
    }
  }
  const size_t size = static_cast<size_t>(last + 1);
  tokens.resize(size);
  texts.resize(size);
  special.resize(size);
  for (const auto& [token, id] : model.vocab()) LS_TRY(SetToken(token, id));
  for (const auto& [token, id] : added_ids) LS_TRY(SetToken(token, id));
  for (size_t id = 0; id < size; ++id) {
    if (tokens[id].has_value()) texts[id] = decoder.TextOf(SpellingOf(id));
  }
  for (const TokenId id : special_ids) special[static_cast<size_t>(id)] = true;
  return {};
}

void Tokenizer::Impl::ReadTemplates(const TokenizerConfig& config, const TokenizerFiles& files) {
  Json::Object variables;
  for (const auto& [name, content] : config.named_tokens) variables.emplace_back(name, content);
  const auto add = [&](const std::string& name, const std::string& source,
                       const std::string& where) {
    templates.emplace_back(
        name, ChatTemplate::Parse(source, Json(variables), {}, StrCat(files.directory, where)));
  };
  if (!files.chat_template_jinja.empty()) {
    add("default", files.chat_template_jinja, "chat_template.jinja");
    return;
  }
  for (const auto& [name, source] : config.chat_templates) {
    const bool only = config.chat_templates.size() == 1 && name == "default";
    add(name, source,
        StrCat("tokenizer_config.json: chat_template",
               only ? std::string() : StrCat(" \"", Shown(name), "\"")));
  }
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::FromFiles(const TokenizerFiles& files) {
  const auto named = [&](const char* file, const Status& status) {
    return Status(status.code(), StrCat(files.directory, file, ": ", status.message()));
  };
  const Result<TokenizerConfig> config = TokenizerConfig::Parse(files.tokenizer_config_json);
  if (!config.ok()) return named("tokenizer_config.json", config.status());
  Result<std::unique_ptr<Tokenizer>> tokenizer = Build(files, config.value());
  if (!tokenizer.ok()) return named("tokenizer.json", tokenizer.status());
  return tokenizer;
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::Build(const TokenizerFiles& files,
                                                    const TokenizerConfig& config) {
  const Json json = LS_TRY(ParseFileObject(files.tokenizer_json));
  auto impl = std::make_unique<Impl>();
  impl->normalizer = LS_TRY(Normalizer::FromJson(NullIfMissing(json, "normalizer")));
  impl->pre_tokenizer = LS_TRY(PreTokenizer::FromJson(NullIfMissing(json, "pre_tokenizer")));
  const Json* model = json.Find("model");
  if (model == nullptr || !model->is_object()) {
    return BadField("model", model == nullptr ? "missing" : model->TypeName(), "an object");
  }
  impl->model = LS_TRY(BpeModel::FromJson(*model, impl->pre_tokenizer.byte_level()));
  impl->decoder = LS_TRY(Decoder::FromJson(NullIfMissing(json, "decoder")));
  impl->post_processor = LS_TRY(PostProcessor::FromJson(NullIfMissing(json, "post_processor")));
  LS_TRY(impl->ReadAddedTokens(json, config));
  LS_TRY(impl->BuildTables());
  if (const std::string* bos = config.FindNamed("bos_token")) impl->bos = impl->Find(*bos);
  if (const std::string* eos = config.FindNamed("eos_token")) impl->eos = impl->Find(*eos);
  PostProcessor& added = impl->post_processor;
  if (added.prefix.empty() && added.suffix.empty()) {
    if (config.add_bos && impl->bos.has_value()) added.prefix.push_back(*impl->bos);
    if (config.add_eos && impl->eos.has_value()) added.suffix.push_back(*impl->eos);
  }
  impl->ReadTemplates(config, files);
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  const auto read_optional = [&](const char* name, std::string* out) -> Status {
    Result<std::string> text = ReadTextFile(StrCat(model_dir, "/", name));
    if (!text.ok()) return text.status().code() == Code::kNotFound ? Status() : text.status();
    *out = std::move(text).value();
    return Status();
  };
  TokenizerFiles files;
  files.directory = StrCat(model_dir, "/");
  files.tokenizer_json = LS_TRY(ReadTextFile(StrCat(model_dir, "/tokenizer.json")));
  LS_TRY(read_optional("tokenizer_config.json", &files.tokenizer_config_json));
  LS_TRY(read_optional("chat_template.jinja", &files.chat_template_jinja));
  return FromFiles(files);
}

Status Tokenizer::Impl::EncodePieces(std::string text,
                                     bool at_start,
                                     PieceCache& cache,
                                     std::vector<TokenId>& out) const {
  const SplitText pieces = LS_TRY(pre_tokenizer.Run(std::move(text), at_start));
  BpeModel::Scratch scratch;
  for (size_t i = 0; i < pieces.num_pieces(); ++i) {
    const std::string_view piece = pieces.piece(i);
    if (const auto* span = cache.Find(piece)) {
      const auto [begin, end] = *span;
      for (size_t k = begin; k < end; ++k) out.push_back(TokenId{out[k]});
      continue;
    }
    const size_t begin = out.size();
    model.EncodePiece(piece, scratch, out);
    if (cache.Accepts(piece)) cache.Add(piece, begin, out.size());
  }
  return {};
}

Status Tokenizer::Impl::EncodeStretch(MarkedText text,
                                      bool at_start,
                                      const MatchRules& rules,
                                      PieceCache& cache,
                                      std::vector<TokenId>& out) const {
  LS_TRY(normalizer.Run(text));
  if (normalized_matcher.empty()) return EncodePieces(std::move(text.text), at_start, cache, out);
  const MatchRules inner{rules.special, rules.user == nullptr ? nullptr : &text.user};
  for (const Stretch& stretch : normalized_matcher.Cut(text.text, inner)) {
    if (stretch.id >= 0) {
      out.push_back(stretch.id);
      continue;
    }
    const size_t size = stretch.range.end - stretch.range.begin;
    LS_TRY(EncodePieces(text.text.substr(stretch.range.begin, size),
                        at_start && stretch.range.begin == 0, cache, out));
  }
  return {};
}

Status Tokenizer::Impl::EncodeInto(std::string_view text,
                                   const MatchRules& rules,
                                   std::vector<TokenId>& out) const {
  PieceCache cache;
  for (const Stretch& stretch : raw_matcher.Cut(text, rules)) {
    if (stretch.id >= 0) {
      out.push_back(stretch.id);
      continue;
    }
    const auto [begin, end] = stretch.range;
    MarkedText inner{std::string(text.substr(begin, end - begin)), {}};
    if (rules.user != nullptr) inner.user = Clip(*rules.user, stretch.range);
    LS_TRY(EncodeStretch(std::move(inner), begin == 0, rules, cache, out));
  }
  return {};
}

Result<std::vector<TokenId>> Tokenizer::Encode(std::string_view text,
                                               const EncodeOptions& options) const {
  LS_TRY(CheckText(text));
  std::vector<TokenId> ids;
  if (options.add_special_tokens) ids = impl_->post_processor.prefix;
  LS_TRY(impl_->EncodeInto(text, {options.match_special_tokens, nullptr}, ids));
  if (options.add_special_tokens) {
    const std::vector<int32_t>& suffix = impl_->post_processor.suffix;
    ids.insert(ids.end(), suffix.begin(), suffix.end());
  }
  return ids;
}

Result<std::vector<TokenId>> Tokenizer::EncodeChat(const RenderedPrompt& prompt) const {
  LS_TRY(CheckText(prompt.text));
  size_t end = 0;
  for (const ByteRange& range : prompt.user_ranges) {
    if (range.begin < end || range.end <= range.begin || range.end > prompt.text.size()) {
      return Status(Code::kInvalidArgument,
                    StrCat("user range ", range.begin, " to ", range.end,
                           " is out of order; expected ascending, disjoint ranges inside the ",
                           prompt.text.size(), " bytes of the prompt; sort them"));
    }
    end = range.end;
  }
  std::vector<TokenId> ids;
  LS_TRY(impl_->EncodeInto(prompt.text, {true, &prompt.user_ranges}, ids));
  return ids;
}

Status Tokenizer::Impl::PushId(TokenId id,
                               bool skip_special,
                               TextAssembler& assembler,
                               std::string& out) const {
  if (id < 0 || static_cast<size_t>(id) >= tokens.size()) {
    return Status(
        Code::kInvalidArgument,
        StrCat("token id ", id, " is out of range; expected 0 to ",
               static_cast<int64_t>(tokens.size()) - 1, "; check the model's vocabulary"));
  }
  const size_t index = static_cast<size_t>(id);
  // Models pad their vocabulary: an id without a token has no text.
  if (!tokens[index].has_value() || (skip_special && special[index])) return {};
  if (assembler.at_start()) {
    assembler.Push(decoder.FirstTextOf(SpellingOf(index)), out);
  } else {
    assembler.Push(texts[index], out);
  }
  return {};
}

Result<std::string> Tokenizer::Decode(std::span<const TokenId> ids, bool skip_special) const {
  TextAssembler assembler(impl_->decoder);
  std::string text;
  for (const TokenId id : ids) LS_TRY(impl_->PushId(id, skip_special, assembler, text));
  assembler.Finish(text);
  return text;
}

const Result<ChatTemplate>* Tokenizer::Impl::FindTemplate(bool with_tools) const {
  const Result<ChatTemplate>* chosen = nullptr;
  for (const auto& [name, chat_template] : templates) {
    const bool for_tools = name == "tool_use" && with_tools;
    if (for_tools || (name == "default" && chosen == nullptr)) chosen = &chat_template;
  }
  return chosen;
}

Result<RenderedPrompt> Tokenizer::RenderChat(const ChatRequest& request) const {
  const Result<ChatTemplate>* chosen = impl_->FindTemplate(!request.tools.is_null());
  if (chosen == nullptr) {
    return Status(Code::kUnsupported,
                  "checkpoint has no chat template; expected chat_template in "
                  "tokenizer_config.json; give a plain prompt");
  }
  if (!chosen->ok()) return chosen->status();
  return chosen->value().Render(request);
}

bool Tokenizer::has_chat_template() const {
  return !impl_->templates.empty();
}
std::string_view Tokenizer::ChatTemplateSource() const {
  const Result<ChatTemplate>* chosen = impl_->FindTemplate(/*with_tools=*/true);
  return chosen == nullptr || !chosen->ok() ? std::string_view() : chosen->value().source();
}
const std::string& Tokenizer::BytesOf(TokenId id) const {
  static const std::string kNone;
  const bool known = id >= 0 && static_cast<size_t>(id) < impl_->texts.size();
  return known ? impl_->texts[static_cast<size_t>(id)].text : kNone;
}
bool Tokenizer::drops_leading_space() const {
  return impl_->decoder.drops_leading_space();
}
int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(impl_->tokens.size());
}
std::optional<TokenId> Tokenizer::TokenToId(std::string_view token) const {
  return impl_->Find(token);
}
std::optional<std::string> Tokenizer::IdToToken(TokenId id) const {
  if (id < 0 || static_cast<size_t>(id) >= impl_->tokens.size()) return std::nullopt;
  return impl_->tokens[static_cast<size_t>(id)];
}
bool Tokenizer::IsSpecial(TokenId id) const {
  return id >= 0 && static_cast<size_t>(id) < impl_->special.size() &&
         impl_->special[static_cast<size_t>(id)];
}
const std::vector<TokenId>& Tokenizer::special_ids() const {
  return impl_->special_ids;
}
std::optional<TokenId> Tokenizer::bos_id() const {
  return impl_->bos;
}
std::optional<TokenId> Tokenizer::eos_id() const {
  return impl_->eos;
}

struct StreamDetokenizer::State {
  TextAssembler assembler;
  bool skip_special;
};

StreamDetokenizer::StreamDetokenizer(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer),
      state_(new State{TextAssembler(tokenizer.impl_->decoder), skip_special}) {}
StreamDetokenizer::~StreamDetokenizer() = default;
StreamDetokenizer::StreamDetokenizer(StreamDetokenizer&&) noexcept = default;
StreamDetokenizer& StreamDetokenizer::operator=(StreamDetokenizer&&) noexcept = default;

Result<std::string> StreamDetokenizer::Push(TokenId id) {
  std::string piece;
  LS_TRY(tokenizer_->impl_->PushId(id, state_->skip_special, state_->assembler, piece));
  return piece;
}

std::string StreamDetokenizer::Finish() {
  std::string rest;
  state_->assembler.Finish(rest);
  return rest;
}

}  // namespace lserve
