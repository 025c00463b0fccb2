#include "loader/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/strings.h"

namespace lserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// A config.json of the given architecture; `more` (",\"key\":value...") comes last.
std::string ConfigOf(const std::string& architecture, const std::string& more) {
  return StrCat("{\"architectures\":[\"", architecture,
                "\"],\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,"
                "\"num_attention_heads\":6,\"head_dim\":16,\"vocab_size\":256,"
                "\"max_position_embeddings\":8192,\"rope_theta\":1e6",
                more, "}");
}

std::string Llama(const std::string& more) {
  return ConfigOf("LlamaForCausalLM", more);
}

ModelConfig Parsed(const std::string& json, const std::string& generation = "") {
  Result<ModelConfig> config = ParseModelConfig(json, generation, "m");
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? std::move(config).value() : ModelConfig();
}

std::string ErrorOf(const std::string& json, const std::string& generation = "") {
  const Result<ModelConfig> config = ParseModelConfig(json, generation, "m");
  EXPECT_FALSE(config.ok()) << json;
  EXPECT_THAT(config.status().message(), Not(HasSubstr("\n")));
  EXPECT_THAT(config.status().message(), HasSubstr("expected"));
  return config.status().message();
}

TEST(ModelConfig, LlamaDefaults) {
  const ModelConfig config = Parsed(Llama(""));
  EXPECT_EQ(config.architecture, Architecture::kLlama);
  EXPECT_EQ(config.num_kv_heads, 6);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_FALSE(config.qkv_bias || config.o_bias || config.mlp_bias || config.qk_norm);
  EXPECT_EQ(config.rope.type, RopeType::kDefault);
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_TRUE(config.eos_token_ids.empty());
  EXPECT_FALSE(config.bos_token_id.has_value());
}

TEST(ModelConfig, HeadDimIsDerivedWhereAbsent) {
  const ModelConfig config = Parsed(
      R"({"architectures":["LlamaForCausalLM"],"hidden_size":96,"intermediate_size":96,
          "num_hidden_layers":2,"num_attention_heads":6,"num_key_value_heads":2,"vocab_size":256,
          "max_position_embeddings":8192,"head_dim":null})");
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.rope.theta, 10000.0);  // old Llama configs do not name it
}

TEST(ModelConfig, BiasesAndNormsFollowTheArchitecture) {
  const ModelConfig llama = Parsed(Llama(",\"attention_bias\":true,\"mlp_bias\":true"));
  EXPECT_TRUE(llama.qkv_bias && llama.o_bias && llama.mlp_bias);
  const ModelConfig qwen2 =
      Parsed(ConfigOf("Qwen2ForCausalLM",
                      ",\"num_key_value_heads\":2,\"sliding_window\":4096,"
                      "\"use_sliding_window\":false,\"max_window_layers\":1"));
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.o_bias || qwen2.mlp_bias || qwen2.qk_norm);
  const ModelConfig qwen3 = Parsed(ConfigOf("Qwen3ForCausalLM", ",\"num_key_value_heads\":2"));
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias || qwen3.o_bias);
  const ModelConfig mistral =
      Parsed(ConfigOf("MistralForCausalLM", ",\"num_key_value_heads\":2,\"sliding_window\":null"));
  EXPECT_FALSE(mistral.qkv_bias || mistral.o_bias || mistral.mlp_bias || mistral.qk_norm);
}

TEST(ModelConfig, TokenIdsMayBeOneOrMany) {
  const ModelConfig one = Parsed(Llama(",\"eos_token_id\":3,\"bos_token_id\":1"));
  EXPECT_THAT(one.eos_token_ids, ElementsAre(3));
  EXPECT_EQ(one.bos_token_id, 1);
  const std::string many = Llama(",\"eos_token_id\":[3,7]");
  EXPECT_THAT(Parsed(many).eos_token_ids, ElementsAre(3, 7));
  EXPECT_THAT(Parsed(many, "{\"eos_token_id\":[9,3]}").eos_token_ids, ElementsAre(9, 3));
  EXPECT_THAT(Parsed(many, "{\"do_sample\":true}").eos_token_ids, ElementsAre(3, 7));
}

TEST(ModelConfig, GenerationDefaults) {
  const ModelConfig config = Parsed(
      Llama(""),
      R"({"do_sample":true,"temperature":0.6,"top_p":0.9,"top_k":50,"repetition_penalty":1.05,
          "num_beams":1,"transformers_version":"4.42.3"})");
  EXPECT_EQ(config.generation.do_sample, true);
  EXPECT_EQ(config.generation.temperature, 0.6);
  EXPECT_EQ(config.generation.top_p, 0.9);
  EXPECT_EQ(config.generation.top_k, 50);
  EXPECT_EQ(config.generation.repetition_penalty, 1.05);
  EXPECT_FALSE(config.generation.min_p.has_value());
}

TEST(ModelConfig, RopeInBothSpellings) {
  const std::string yarn =
      "\"type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":2048";
  const ModelConfig scaling = Parsed(Llama(",\"rope_scaling\":{" + yarn + "}"));
  const ModelConfig parameters =
      Parsed(Llama(",\"rope_parameters\":{\"rope_theta\":1e6," + yarn + "}"));
  for (const ModelConfig& config : {scaling, parameters}) {
    EXPECT_EQ(config.rope.type, RopeType::kYarn);
    EXPECT_EQ(config.rope.theta, 1e6);
    EXPECT_EQ(config.rope.factor, 4.0);
    EXPECT_EQ(config.rope.original_max_position_embeddings, 2048);
    EXPECT_EQ(config.rope.beta_fast, 32.0);
    EXPECT_TRUE(config.rope.truncate);
  }
  const ModelConfig llama3 = Parsed(
      Llama(",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
            "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":1024}"));
  EXPECT_EQ(llama3.rope.type, RopeType::kLlama3);
  EXPECT_EQ(llama3.rope.high_freq_factor, 4.0);
  EXPECT_EQ(llama3.rope.original_max_position_embeddings, 1024);
  EXPECT_EQ(Parsed(Llama(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}")).rope.factor, 2.0);
  EXPECT_EQ(Parsed(Llama(",\"rope_parameters\":{\"rope_type\":\"default\"}")).rope.type,
            RopeType::kDefault);
  const ModelConfig dynamic =
      Parsed(Llama(",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}"));
  EXPECT_EQ(dynamic.rope.type, RopeType::kDynamic);
}

TEST(ModelConfig, YarnFactorMayFollowFromTheLengths) {
  const ModelConfig config =
      Parsed(Llama(",\"rope_scaling\":{\"type\":\"yarn\","
                   "\"original_max_position_embeddings\":2048,\"mscale\":1.0}"));
  EXPECT_EQ(config.rope.factor, 4.0);
  EXPECT_EQ(config.rope.mscale, 1.0);
}

struct Bad {
  const char* name;
  std::string json;
  const char* message;
};

class BadConfig : public ::testing::TestWithParam<Bad> {};

TEST_P(BadConfig, IsAnErrorThatNamesTheOption) {
  EXPECT_THAT(ErrorOf(GetParam().json), HasSubstr(GetParam().message));
}

std::vector<Bad> BadConfigs() {
  const auto mistral = [](const std::string& more) {
    return ConfigOf("MistralForCausalLM", ",\"num_key_value_heads\":2" + more);
  };
  const auto qwen2 = [](const std::string& more) {
    return ConfigOf("Qwen2ForCausalLM", ",\"num_key_value_heads\":2" + more);
  };
  const auto rope = [](const std::string& object) {
    return Llama(",\"rope_scaling\":{" + object + "}");
  };
  return {
      {"Empty", "", "no valid JSON"},
      {"Truncated", Llama("").substr(0, 90), "no valid JSON"},
      {"Array", "[]", "expected an object"},
      {"RepeatedName", "{\"a\\nb\":1,\"a\\nb\":2}", "member \"a\\nb\" appears twice"},
      {"Deep", std::string(100000, '['), "no valid JSON"},
      {"NoArchitecture", "{}", "\"architectures\" is missing"},
      {"OtherArchitecture", ConfigOf("MixtralForCausalLM", ""), "\"MixtralForCausalLM\""},
      {"TwoArchitectures", "{\"architectures\":[\"LlamaForCausalLM\",\"LlamaForCausalLM\"]}",
       "not one name"},
      {"NoSizes", "{\"architectures\":[\"LlamaForCausalLM\"]}", "\"hidden_size\" is missing"},
      {"HiddenZero", "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":0}",
       "\"hidden_size\" is 0"},
      {"HiddenHuge", "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":9007199254740993}",
       "\"hidden_size\" is 9007199254740993"},
      {"HiddenString", "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":\"64\"}",
       "\"hidden_size\" is \"64\""},
      {"HeadsNotDivisible", Llama(",\"num_key_value_heads\":4"), "multiple of"},
      {"KvHeadsZero", Llama(",\"num_key_value_heads\":0"), "\"num_key_value_heads\" is 0"},
      {"KvHeadsNegative", Llama(",\"num_key_value_heads\":-2"), "\"num_key_value_heads\" is -2"},
      {"KvHeadsAbsent", ConfigOf("MistralForCausalLM", ""), "\"num_key_value_heads\" is missing"},
      {"EpsNegative", Llama(",\"rms_norm_eps\":-1e-5"), "\"rms_norm_eps\" is -"},
      {"EpsString", Llama(",\"rms_norm_eps\":\"small\""), "\"rms_norm_eps\""},
      {"TieNumber", Llama(",\"tie_word_embeddings\":1"), "true or false"},
      {"EosBeyondVocab", Llama(",\"eos_token_id\":256"), "token ids from 0 to 255"},
      {"EosNegative", Llama(",\"eos_token_id\":[-1]"), "\"eos_token_id\" has -1"},
      {"HiddenAct", Llama(",\"hidden_act\":\"gelu\""), "\"hidden_act\" is \"gelu\""},
      {"MistralWindow", mistral(",\"sliding_window\":4096"), "\"sliding_window\" is 4096"},
      {"MistralBias", mistral(",\"attention_bias\":true"), "\"attention_bias\""},
      {"MistralMlpBias", mistral(",\"mlp_bias\":true"), "\"mlp_bias\""},
      {"QwenWindow", qwen2(",\"use_sliding_window\":true,\"sliding_window\":4096"),
       "\"use_sliding_window\""},
      {"QwenNoBias", qwen2(",\"attention_bias\":false"), "\"attention_bias\""},
      {"LayerTypes", Llama(",\"layer_types\":[\"full_attention\",\"sliding_attention\"]"),
       "\"layer_types\" is \"sliding_attention\""},
      {"LayerTypesLength", Llama(",\"layer_types\":[\"full_attention\"]"), "\"layer_types\""},
      {"Quantized", Llama(",\"quantization_config\":{\"quant_method\":\"gptq\"}"),
       "\"quantization_config\""},
      {"Moe", Llama(",\"num_local_experts\":8"), "\"num_local_experts\" is 8"},
      {"PretrainingTp", Llama(",\"pretraining_tp\":2"), "\"pretraining_tp\" is 2"},
      {"Softcap", Llama(",\"attn_logit_softcapping\":50.0"), "\"attn_logit_softcapping\" is 50"},
      {"Partial", Llama(",\"partial_rotary_factor\":0.5"), "\"partial_rotary_factor\" is 0.5"},
      {"RopePartial", rope("\"type\":\"linear\",\"factor\":2,\"partial_rotary_factor\":0.5"),
       "\"partial_rotary_factor\" is 0.5"},
      {"RopeUnknown", rope("\"rope_type\":\"longrope\""), "\"longrope\""},
      {"RopeTwoTypes", rope("\"rope_type\":\"default\",\"type\":\"mrope\""), "\"mrope\""},
      {"RopeNoObject", Llama(",\"rope_scaling\":4"), "rope_scaling: is 4"},
      {"RopeNoFactor", rope("\"type\":\"linear\""), "\"factor\" is missing"},
      {"RopeFactorSmall", rope("\"type\":\"linear\",\"factor\":0.5"), "\"factor\" is 0.5"},
      {"RopeFactorOfDefault", rope("\"factor\":4"), "\"factor\" is 4"},
      {"RopeForeignOption", rope("\"type\":\"linear\",\"factor\":2,\"beta_fast\":32"),
       "\"beta_fast\""},
      {"RopePerLayer", Llama(",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1.0}}"),
       "\"full_attention\""},
      {"RopeBoth",
       Llama(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},"
             "\"rope_parameters\":{\"rope_type\":\"default\"}"),
       "both"},
      {"RopeThetas", Llama(",\"rope_parameters\":{\"rope_theta\":5e5}"), "\"rope_theta\""},
      {"RopeOriginals",
       Llama(",\"original_max_position_embeddings\":1024,\"rope_scaling\":{\"type\":\"yarn\","
             "\"factor\":8,\"original_max_position_embeddings\":2048}"),
       "\"original_max_position_embeddings\" is 1024 and 2048"},
      {"Llama3NoLow", rope("\"type\":\"llama3\",\"factor\":8"), "\"low_freq_factor\" is missing"},
      {"Llama3Order",
       rope("\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
            "\"high_freq_factor\":4"),
       "\"high_freq_factor\" is 4"},
      {"YarnBetas", rope("\"type\":\"yarn\",\"factor\":8,\"beta_fast\":1,\"beta_slow\":2"),
       "\"beta_fast\" is 1"},
      {"YarnTruncate", rope("\"type\":\"yarn\",\"factor\":8,\"truncate\":1"), "\"truncate\" is 1"},
      {"YarnOriginalZero", rope("\"type\":\"yarn\",\"original_max_position_embeddings\":0"),
       "\"original_max_position_embeddings\" is 0"},
  };
}

INSTANTIATE_TEST_SUITE_P(ModelConfig,
                         BadConfig,
                         ::testing::ValuesIn(BadConfigs()),
                         [](const auto& param_info) { return param_info.param.name; });

// Missing sizes one by one, and head sizes that are no even number.
TEST(ModelConfig, ImpossibleHeadSizes) {
  const auto with = [](const std::string& heads) {
    return "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":60,\"intermediate_size\":96,"
           "\"num_hidden_layers\":2,\"vocab_size\":256,\"max_position_embeddings\":8192," +
           heads + "}";
  };
  EXPECT_THAT(ErrorOf(with("\"num_attention_heads\":8")), HasSubstr("\"hidden_size\" is 60"));
  EXPECT_THAT(ErrorOf(with("\"num_attention_heads\":4")), HasSubstr("head dimension is 15"));
  EXPECT_THAT(ErrorOf(with("\"num_attention_heads\":4,\"head_dim\":17")),
              HasSubstr("head dimension is 17"));
  EXPECT_THAT(ErrorOf(with("\"num_attention_heads\":4,\"head_dim\":0")),
              HasSubstr("\"head_dim\" is 0"));
  EXPECT_THAT(ErrorOf(ConfigOf("Qwen3ForCausalLM", ",\"num_key_value_heads\":4")),
              HasSubstr("multiple of"));
}

TEST(ModelConfig, AWindowAsLongAsTheContextIsNone) {
  Parsed(ConfigOf("MistralForCausalLM", ",\"num_key_value_heads\":2,\"sliding_window\":8192"));
}

TEST(ModelConfig, RefusesGenerationOptions) {
  EXPECT_THAT(ErrorOf(Llama(""), "{\"num_beams\":4}"), HasSubstr("\"num_beams\" is 4"));
  EXPECT_THAT(ErrorOf(Llama(""), "{\"suppress_tokens\":[3]}"), HasSubstr("\"suppress_tokens\""));
  EXPECT_THAT(ErrorOf(Llama(""), "{\"temperature\":-1}"), HasSubstr("\"temperature\" is -1"));
  EXPECT_THAT(ErrorOf(Llama(""), "{\"eos_token_id\":\"</s>\"}"), HasSubstr("\"eos_token_id\""));
  EXPECT_THAT(ErrorOf(Llama(""), "{"), HasSubstr("generation_config.json"));
}

TEST(LoadModelConfig, ReadsTheBundledModel) {
  const Result<ModelConfig> config =
      LoadModelConfig(std::string(LS_SOURCE_DIR) + "/models/needle/");
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config.value().name, "needle");
  EXPECT_EQ(config.value().num_layers, 6);
  EXPECT_EQ(config.value().rms_norm_eps, 1e-5);
  EXPECT_TRUE(config.value().tie_word_embeddings);
  EXPECT_THAT(config.value().eos_token_ids, ElementsAre(4081, 4084));
  EXPECT_EQ(config.value().generation.do_sample, false);
  EXPECT_EQ(config.value().torch_dtype, "bfloat16");
}

// Configurations that transformers reads, of every architecture and RoPE type.
TEST(LoadModelConfig, ReadsTheGoldenCheckpoints) {
  const std::string goldens = std::string(LS_SOURCE_DIR) + "/tests/goldens/models/";
  struct Case {
    const char* name;
    Architecture architecture;
    RopeType rope;
  };
  for (const Case& c : {Case{"llama_mha", Architecture::kLlama, RopeType::kDefault},
                        Case{"mistral", Architecture::kMistral, RopeType::kDefault},
                        Case{"qwen2", Architecture::kQwen2, RopeType::kDefault},
                        Case{"qwen3", Architecture::kQwen3, RopeType::kDefault},
                        Case{"qwen3_bias_parameters", Architecture::kQwen3, RopeType::kDefault},
                        Case{"rope_linear", Architecture::kLlama, RopeType::kLinear},
                        Case{"rope_llama3", Architecture::kLlama, RopeType::kLlama3},
                        Case{"rope_dynamic", Architecture::kLlama, RopeType::kDynamic},
                        Case{"rope_yarn", Architecture::kQwen2, RopeType::kYarn},
                        Case{"rope_yarn_mscale", Architecture::kLlama, RopeType::kYarn}}) {
    const Result<ModelConfig> config = LoadModelConfig(goldens + c.name);
    ASSERT_TRUE(config.ok()) << config.status().message();
    EXPECT_EQ(config.value().name, c.name);
    EXPECT_EQ(config.value().architecture, c.architecture) << c.name;
    EXPECT_EQ(config.value().rope.type, c.rope) << c.name;
  }
}

TEST(LoadModelConfig, SaysWhichFileIsMissing) {
  const Result<ModelConfig> config = LoadModelConfig("/nonexistent");
  ASSERT_FALSE(config.ok());
  EXPECT_THAT(config.status().message(), HasSubstr("/nonexistent/config.json"));
}

}  // namespace
}  // namespace lserve
