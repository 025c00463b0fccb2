// Tokenizer: text to token ids and back, as the checkpoint's tokenizer.json describes it:
// byte-level BPE (Llama-3, Qwen2/3, GPT-2) and SentencePiece-style BPE (Llama-2, Mistral). What it
// does not implement it refuses by name when loading; it trains nothing. Used by engine and apps.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/rendered_prompt.h"

namespace lserve {

using TokenId = int32_t;

struct EncodeOptions {
  // Adds what the post-processor adds, usually the beginning-of-text token.
  bool add_special_tokens = true;
  // Whether "<|eot_id|>" in the text becomes that token. Keep it off for text from outside.
  bool match_special_tokens = false;
};

struct TokenizerConfig;

// The texts of the files a tokenizer is made of; all but tokenizer.json's may be empty.
struct TokenizerFiles {
  std::string tokenizer_json;
  std::string tokenizer_config_json;
  std::string chat_template_jinja;  // wins over the configuration's "chat_template"
  std::string directory = {};       // begins error messages: "models/x/", or empty
};

// Immutable after loading; all const members are thread-safe.
class Tokenizer {
 public:
  // Reads tokenizer.json and, where present, tokenizer_config.json and chat_template.jinja.
  static Result<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);
  static Result<std::unique_ptr<Tokenizer>> FromFiles(const TokenizerFiles& files);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // `text` must be UTF-8; the error names the offset of the first byte that is not. Time is
  // O(n log n) in the longest stretch without a split, whatever the text.
  Result<std::vector<TokenId>> Encode(std::string_view text,
                                      const EncodeOptions& options = {}) const;
  // Encodes a chat prompt: special tokens are matched outside the user ranges only, and nothing is
  // added, for the template has written its own beginning-of-text token.
  Result<std::vector<TokenId>> EncodeChat(const RenderedPrompt& prompt) const;

  // Always valid UTF-8: bytes that are none become U+FFFD. Ids out of range are an error.
  Result<std::string> Decode(std::span<const TokenId> ids, bool skip_special = true) const;

  // Renders `request` with the checkpoint's own template. Fails if it has none, or one that
  // could not be parsed.
  Result<RenderedPrompt> RenderChat(const ChatRequest& request) const;
  bool has_chat_template() const;
  // The source of the template that RenderChat takes for requests with tools, or "".
  std::string_view ChatTemplateSource() const;

  // One more than the largest id.
  int32_t vocab_size() const;
  std::optional<TokenId> TokenToId(std::string_view token) const;
  // The token as the file spells it ("\u0120the"), or nothing for an id without one.
  std::optional<std::string> IdToToken(TokenId id) const;
  // The bytes that a token adds to a text; a part of a character perhaps. Empty for an id without a
  // token; a special token is as it is spelled.
  const std::string& BytesOf(TokenId id) const;
  // Whether a space at the beginning of a text is dropped (SentencePiece's dummy prefix).
  bool drops_leading_space() const;
  bool IsSpecial(TokenId id) const;
  const std::vector<TokenId>& special_ids() const;  // ascending
  std::optional<TokenId> bos_id() const;            // as tokenizer_config.json declares them
  std::optional<TokenId> eos_id() const;

 private:
  friend class StreamDetokenizer;
  struct Impl;
  static Result<std::unique_ptr<Tokenizer>> Build(const TokenizerFiles& files,
                                                  const TokenizerConfig& config);
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Turns ids into text one by one. The pieces, joined with Finish(), equal Tokenizer::Decode of all
// ids; every piece is complete UTF-8. The tokenizer must outlive it.
class StreamDetokenizer {
 public:
  explicit StreamDetokenizer(const Tokenizer& tokenizer, bool skip_special = true);
  ~StreamDetokenizer();
  StreamDetokenizer(StreamDetokenizer&&) noexcept;
  StreamDetokenizer& operator=(StreamDetokenizer&&) noexcept;

  // The text that `id` completes; often empty inside a character of several tokens.
  Result<std::string> Push(TokenId id);
  // What is left of an incomplete character, as U+FFFD. Ends the stream.
  std::string Finish();

 private:
  struct State;
  const Tokenizer* tokenizer_;
  std::unique_ptr<State> state_;
};

}  // namespace lserve
