#include "tokenizer/tokenizer_config.h"

#include <charconv>

#include "tokenizer/json_fields.h"

namespace lserve {
namespace {

Status ReadNamedTokens(const Json& json, TokenizerConfig& config) {
  for (const auto& [name, value] : json.as_object()) {
    if (!name.ends_with("_token")) continue;
    const Json* content = value.is_object() ? value.Find("content") : &value;
    if (content != nullptr && content->is_string()) {
      config.named_tokens.emplace_back(name, content->as_string());
    }
  }
  return {};
}

Status ReadAddedTokens(const Json& json, TokenizerConfig& config) {
  const Json* added = json.Find("added_tokens_decoder");
  if (added == nullptr || added->is_null()) return {};
  if (!added->is_object()) {
    return BadField("added_tokens_decoder", added->TypeName(), "an object");
  }
  for (const auto& [key, value] : added->as_object()) {
    AddedToken token = LS_TRY(ParseAddedToken(value, StrCat("added_tokens_decoder.", key)));
    const auto end = std::from_chars(key.data(), key.data() + key.size(), token.id);
    if (end.ec != std::errc() || end.ptr != key.data() + key.size() || token.id < 0) {
      return BadField("added_tokens_decoder", StrCat("keyed by \"", key, "\""), "token ids");
    }
    config.added_tokens.push_back(std::move(token));
  }
  return {};
}

Status ReadTemplates(const Json& json, TokenizerConfig& config) {
  const Json* value = json.Find("chat_template");
  if (value == nullptr || value->is_null()) return {};
  if (value->is_string()) {
    config.chat_templates.emplace_back("default", value->as_string());
    return {};
  }
  if (!value->is_array()) return BadField("chat_template", value->TypeName(), "a string or array");
  for (size_t i = 0; i < value->as_array().size(); ++i) {
    const Json& entry = value->as_array()[i];
    const std::string where = StrCat("chat_template[", i, "]");
    config.chat_templates.emplace_back(LS_TRY(StringField(entry, where, "name")),
                                       LS_TRY(StringField(entry, where, "template")));
  }
  return {};
}

}  // namespace

Result<TokenizerConfig> TokenizerConfig::Parse(std::string_view text) {
  TokenizerConfig config;
  if (text.empty()) return config;
  const Json json = LS_TRY(ParseFileObject(text));
  LS_TRY(ReadNamedTokens(json, config));
  LS_TRY(ReadAddedTokens(json, config));
  LS_TRY(ReadTemplates(json, config));
  config.add_bos = LS_TRY(BoolField(json, "tokenizer_config", "add_bos_token", false));
  config.add_eos = LS_TRY(BoolField(json, "tokenizer_config", "add_eos_token", false));
  return config;
}

const std::string* TokenizerConfig::FindNamed(std::string_view name) const {
  for (const auto& [key, value] : named_tokens) {
    if (key == name) return &value;
  }
  return nullptr;
}

}  // namespace lserve
