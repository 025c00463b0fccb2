#include "server/shared_fields.h"

#include <charconv>
#include <cmath>

#include "base/strings.h"

namespace lserve {

// null, false, "", [], {} and 0 ask for nothing.
bool AsksForNothing(const Json& value) {
  if (value.is_null()) return true;
  if (value.is_bool()) return !value.as_bool();
  if (value.is_string()) return value.as_string().empty();
  if (value.is_array()) return value.as_array().empty();
  if (value.is_object()) return value.as_object().empty();
  return value.as_double() == 0;
}

ApiError NotImplemented(std::string_view name, std::string_view instead) {
  return {.http_status = 400,
          .message = StrCat(name, " is not implemented in this version: ", instead),
          .code = "unsupported_parameter",
          .param = std::string(name)};
}

namespace {

void ReadLogitBias(BodyFields& fields, GenerationParams* out) {
  const Json* bias = fields.Find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object() || bias->as_object().size() > kMaxLogitBias) {
    return fields.Wrong("logit_bias", *bias,
                        StrCat("an object of at most ", kMaxLogitBias, " token ids and numbers"));
  }
  for (const auto& [name, value] : bias->as_object()) {
    int32_t token = 0;
    const std::from_chars_result end =
        std::from_chars(name.data(), name.data() + name.size(), token);
    const bool is_token =
        end.ec == std::errc() && end.ptr == name.data() + name.size() && token >= 0;
    if (!is_token || !value.is_number() || !(std::abs(value.as_double()) <= 100)) {
      return fields.Fail(
          "logit_bias", StrCat("logit_bias holds ", ShownValue(Json(name)), ": ", ShownValue(value),
                               ", expected a token id and a number from -100 to 100"));
    }
    out->logit_bias.emplace_back(token, static_cast<float>(value.as_double()));
  }
}

}  // namespace

void ReadSparse(BodyFields& fields, GenerationParams* out) {
  const Json* value = fields.Find("sparse");
  if (value == nullptr) return;
  if (value->is_bool()) {
    out->attention = value->as_bool() ? AttentionMode::kSparse : AttentionMode::kDense;
    return;
  }
  BodyFields sparse(*value, "sparse.");
  if (const std::optional<std::string> mode = sparse.String("attention")) {
    out->attention = ParseAttentionMode(*mode);
    if (!out->attention) {
      sparse.Wrong("attention", *sparse.Find("attention"), "\"auto\", \"dense\" or \"sparse\"");
    }
  }
  // AttentionSettings::Problems() knows the exact range; the engine checks it.
  if (const auto budget = sparse.Int("token_budget", 1, INT32_MAX))
    out->token_budget = static_cast<int>(*budget);
  if (sparse.ok() && value->is_object()) {
    for (const auto& [name, member] : value->as_object()) {
      if (name == "attention" || name == "token_budget") continue;
      // Our own field: an unknown name is a typing error that would go unnoticed.
      sparse.Fail("", StrCat("sparse.", ShownValue(Json(name)),
                             " is unknown, expected attention or token_budget"));
    }
  }
  if (sparse.error()) fields.Fail(*sparse.error());
}

void ReadSampling(BodyFields& fields, GenerationParams* out) {
  out->temperature = fields.Number("temperature", 0, 2);
  out->top_p = fields.Number("top_p", 0, 1);
  out->min_p = fields.Number("min_p", 0, 1);
  out->presence_penalty = fields.Number("presence_penalty", -2, 2);
  out->frequency_penalty = fields.Number("frequency_penalty", -2, 2);
  out->repetition_penalty = fields.Number("repetition_penalty", 0, 100);
  if (!out->repetition_penalty) out->repetition_penalty = fields.Number("repeat_penalty", 0, 100);
  out->top_k = fields.Int("top_k", -1, INT32_MAX);
  // vLLM's and llama.cpp's spelling of "off".
  if (out->top_k == -1) out->top_k = 0;
  out->seed = fields.Int("seed", INT64_MIN, INT64_MAX);
  ReadLogitBias(fields, out);
}

void RefuseOtherInputs(BodyFields& fields) {
  for (const char* name : {"prompt_embeds", "input_embeds", "image_data", "video_data",
                           "audio_data", "multi_modal_data", "mm_processor_kwargs"}) {
    const Json* value = fields.Find(name);
    if (value == nullptr || AsksForNothing(*value)) continue;
    fields.Fail(NotImplemented(
        name, "prompts are text or token ids; no tensor is read and nothing is fetched"));
  }
}

// The text of a message's content: a string, null, or text parts.
std::optional<std::string> ContentText(const Json* content, std::string* why) {
  if (content == nullptr || content->is_null()) return "";
  if (content->is_string()) return content->as_string();
  if (!content->is_array()) {
    *why =
        StrCat("content is ", content->TypeName(), ", expected a string or a list of text parts");
    return std::nullopt;
  }
  std::string text;
  for (const Json& part : content->as_array()) {
    const Json* type = part.Find("type");
    const Json* piece = part.Find("text");
    const bool is_text = type != nullptr && (*type == Json("text") || *type == Json("input_text") ||
                                             *type == Json("output_text"));
    if (!is_text || piece == nullptr || !piece->is_string()) {
      *why = StrCat("content has a part of type ", type == nullptr ? "null" : ShownValue(*type),
                    ", expected {\"type\":\"text\",\"text\":...}; this server reads text only");
      return std::nullopt;
    }
    text += piece->as_string();
  }
  return text;
}

void ReadServing(BodyFields& fields, GenerationParams* out) {
  out->priority = fields.Int("priority", INT32_MIN, INT32_MAX).value_or(0);
  out->cache_salt = fields.String("cache_salt").value_or("");
  if (out->cache_salt.size() <= kMaxCacheSaltBytes) return;
  fields.Fail("cache_salt", StrCat("cache_salt has ", out->cache_salt.size(),
                                   " bytes, expected at most ", kMaxCacheSaltBytes));
}

void CheckEndsItself(BodyFields& fields, const char* name, const GenerationParams& params) {
  if (!params.ignore_eos && params.min_tokens == 0) return;
  fields.Fail(name, StrCat(name,
                           " is given beside ignore_eos or min_tokens, expected it alone: it says "
                           "where the answer ends"));
}

}  // namespace lserve
