#include "loader/rope_config.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "base/strings.h"

namespace lserve {
namespace {

// transformers' default where an old Llama config is silent.
constexpr double kLlamaTheta = 10000.0;
constexpr double kMinTheta = 1.000001;  // log(theta) divides in YaRN
constexpr double kMaxTheta = 1e15;
constexpr double kMaxFactor = 1e6;
constexpr int64_t kMaxPositions = int64_t{1} << 30;
constexpr std::string_view kSupported = "default, linear, llama3, dynamic or yarn";

constexpr std::array<std::string_view, 6> kCommonKeys = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
    "factor"};
constexpr std::array<std::string_view, 2> kLlama3Keys = {"low_freq_factor", "high_freq_factor"};
// "finetuned" is a remark that early YaRN checkpoints carry; it changes no computation.
constexpr std::array<std::string_view, 7> kYarnKeys = {
    "beta_fast",      "beta_slow", "attention_factor", "mscale",
    "mscale_all_dim", "truncate",  "finetuned"};

template <class Keys>
bool Contains(const Keys& keys, std::string_view key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

std::optional<RopeType> FindRopeType(std::string_view name) {
  for (const RopeType type : {RopeType::kDefault, RopeType::kLinear, RopeType::kLlama3,
                              RopeType::kDynamic, RopeType::kYarn}) {
    if (Name(type) == name) return type;
  }
  return std::nullopt;
}

Result<RopeType> ParseRopeType(const JsonFields& rope) {
  const std::optional<std::string> rope_type = LS_TRY(rope.String("rope_type"));
  const std::optional<std::string> type = LS_TRY(rope.String("type"));
  if (rope_type && type && *rope_type != *type) {
    return Status(
        Code::kUnsupported,
        StrCat(rope.where(), ": \"rope_type\" is ", Quoted(*rope_type), " but \"type\" is ",
               Quoted(*type), ", expected one of them or the same in both; fix the file"));
  }
  if (!rope_type && !type) return RopeType::kDefault;
  const std::string& name = rope_type ? *rope_type : *type;
  const std::optional<RopeType> found = FindRopeType(name);
  if (!found) {
    return Status(Code::kUnsupported,
                  StrCat(rope.where(), ": RoPE type is ", Quoted(name), ", expected ", kSupported,
                         "; this model needs a kind of RoPE that lserve does not implement"));
  }
  return *found;
}

// A member that the type has no use for is an error: it would be an option silently ignored.
Status CheckKeys(const Json& object, RopeType type, const std::string& where) {
  for (const auto& [key, value] : object.as_object()) {
    if (value.is_null() || Contains(kCommonKeys, key)) continue;
    if (type == RopeType::kLlama3 && Contains(kLlama3Keys, key)) continue;
    if (type == RopeType::kYarn && Contains(kYarnKeys, key)) continue;
    return Status(Code::kUnsupported, StrCat(where, ": option ", Quoted(key), " is ", Shown(value),
                                             ", expected only options of RoPE type \"", Name(type),
                                             "\"; remove it if the model does not need it"));
  }
  return Status();
}

Status ParseFactor(const JsonFields& rope, int64_t max_positions, RopeConfig& config) {
  const std::optional<double> factor = LS_TRY(rope.Number("factor", 1.0, kMaxFactor));
  if (config.type == RopeType::kDefault) {
    if (factor.value_or(1.0) == 1.0) return Status();
    return Status(Code::kUnsupported,
                  StrCat(rope.where(), ": \"factor\" is ", *factor,
                         " for RoPE type \"default\", expected no factor; name the RoPE type"));
  }
  const bool derivable = config.type == RopeType::kYarn && !factor;
  if (derivable && config.original_max_position_embeddings < max_positions) {
    config.factor = static_cast<double>(max_positions) /
                    static_cast<double>(config.original_max_position_embeddings);
    return Status();
  }
  config.factor = LS_TRY(rope.RequiredNumber("factor", 1.0, kMaxFactor));
  return Status();
}

Status ParseLlama3(const JsonFields& rope, RopeConfig& config) {
  config.low_freq_factor = LS_TRY(rope.RequiredNumber("low_freq_factor", 1e-6, kMaxFactor));
  config.high_freq_factor = LS_TRY(rope.RequiredNumber("high_freq_factor", 1e-6, kMaxFactor));
  if (config.high_freq_factor > config.low_freq_factor) return Status();
  return Status(Code::kCorruptModel,
                StrCat(rope.where(), ": \"high_freq_factor\" is ", config.high_freq_factor,
                       ", expected more than \"low_freq_factor\" (", config.low_freq_factor,
                       "); fix the file or download it again"));
}

Status ParseYarn(const JsonFields& rope, RopeConfig& config) {
  config.beta_fast = LS_TRY(rope.Number("beta_fast", 1e-6, kMaxFactor)).value_or(32.0);
  config.beta_slow = LS_TRY(rope.Number("beta_slow", 1e-6, kMaxFactor)).value_or(1.0);
  config.attention_factor = LS_TRY(rope.Number("attention_factor", 1e-6, kMaxFactor));
  config.mscale = LS_TRY(rope.Number("mscale", 0.0, kMaxFactor));
  config.mscale_all_dim = LS_TRY(rope.Number("mscale_all_dim", 0.0, kMaxFactor));
  config.truncate = LS_TRY(rope.Bool("truncate")).value_or(true);
  if (config.beta_fast >= config.beta_slow) return Status();
  return Status(Code::kCorruptModel, StrCat(rope.where(), ": \"beta_fast\" is ", config.beta_fast,
                                            ", expected at least \"beta_slow\" (", config.beta_slow,
                                            "); fix the file or download it again"));
}

// The object of whichever spelling the file uses, or nullptr; `where` gets its name.
Result<const Json*> FindRopeObject(const JsonFields& fields, std::string& where) {
  const Json* scaling = fields.Find("rope_scaling");
  const Json* parameters = fields.Find("rope_parameters");
  if (scaling != nullptr && parameters != nullptr && !(*scaling == *parameters)) {
    return Status(Code::kUnsupported,
                  StrCat(fields.where(),
                         ": has both \"rope_scaling\" and \"rope_parameters\" and "
                         "they differ, expected one of them; remove one"));
  }
  const Json* object = parameters != nullptr ? parameters : scaling;
  where = StrCat(fields.where(), ": ", parameters != nullptr ? "rope_parameters" : "rope_scaling");
  if (object != nullptr && !object->is_object()) {
    return Status(Code::kCorruptModel,
                  StrCat(where, ": is ", Shown(*object), ", expected an object; fix the file"));
  }
  return object;
}

Result<double> ParseTheta(const JsonFields& fields,
                          const JsonFields& rope,
                          Architecture architecture) {
  const std::optional<double> outer = LS_TRY(fields.Number("rope_theta", kMinTheta, kMaxTheta));
  const std::optional<double> inner = LS_TRY(rope.Number("rope_theta", kMinTheta, kMaxTheta));
  if (outer && inner && *outer != *inner) {
    return Status(Code::kUnsupported,
                  StrCat(fields.where(), ": \"rope_theta\" is ", *outer, " and ", *inner,
                         " inside the RoPE object, expected one value; remove one"));
  }
  if (inner) return *inner;
  if (outer) return *outer;
  // The other architectures' defaults changed between versions of transformers: no guessing.
  if (architecture == Architecture::kLlama) return kLlamaTheta;
  return fields.RequiredNumber("rope_theta", kMinTheta, kMaxTheta);
}

}  // namespace

std::string_view Name(RopeType type) {
  switch (type) {
    case RopeType::kDefault:
      return "default";
    case RopeType::kLinear:
      return "linear";
    case RopeType::kLlama3:
      return "llama3";
    case RopeType::kDynamic:
      return "dynamic";
    case RopeType::kYarn:
      return "yarn";
  }
  return "?";
}

Result<RopeConfig> ParseRopeConfig(const JsonFields& fields, const ModelConfig& config) {
  std::string where;
  const Json* object = LS_TRY(FindRopeObject(fields, where));
  const Json empty{Json::Object{}};
  if (object == nullptr) object = &empty;
  const JsonFields rope(*object, where);
  RopeConfig result;
  result.type = LS_TRY(ParseRopeType(rope));
  LS_TRY(CheckKeys(*object, result.type, where));
  const double partial =
      LS_TRY(rope.Number("partial_rotary_factor", 0.0, kMaxFactor)).value_or(1.0);
  if (partial != 1.0) {
    return Status(Code::kUnsupported, StrCat(where, ": \"partial_rotary_factor\" is ", partial,
                                             ", expected 1; partial rotation is not implemented"));
  }
  result.theta = LS_TRY(ParseTheta(fields, rope, config.architecture));
  constexpr std::string_view kOriginal = "original_max_position_embeddings";
  const std::optional<int64_t> outer = LS_TRY(fields.Int(kOriginal, 1, kMaxPositions));
  const std::optional<int64_t> inner = LS_TRY(rope.Int(kOriginal, 1, kMaxPositions));
  if (inner && outer && *inner != *outer) {
    return Status(Code::kUnsupported,
                  StrCat(fields.where(), ": \"", kOriginal, "\" is ", *outer, " and ", *inner,
                         " inside the RoPE object, expected one value; remove one"));
  }
  result.original_max_position_embeddings =
      inner.value_or(outer.value_or(config.max_position_embeddings));
  LS_TRY(ParseFactor(rope, config.max_position_embeddings, result));
  if (result.type == RopeType::kLlama3) LS_TRY(ParseLlama3(rope, result));
  if (result.type == RopeType::kYarn) LS_TRY(ParseYarn(rope, result));
  return result;
}

}  // namespace lserve
