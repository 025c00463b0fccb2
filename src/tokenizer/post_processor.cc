#include "tokenizer/post_processor.h"

#include "tokenizer/bpe.h"
#include "tokenizer/json_fields.h"

namespace lserve {
namespace {

constexpr int kMaxDepth = 8;
constexpr size_t kMaxAdded = 64;

Status AppendSpecial(const Json& json,
                     const Json& item,
                     std::string_view where,
                     std::vector<int32_t>& out) {
  const std::string name = LS_TRY(StringField(item, where, "id"));
  const Json* table = json.Find("special_tokens");
  const Json* entry = table == nullptr ? nullptr : table->Find(name);
  if (entry == nullptr) return BadField(where, StrCat("\"", name, "\""), "one of special_tokens");
  const Json::Array* ids = LS_TRY(ArrayField(*entry, where, "ids"));
  for (const Json& id : *ids) {
    if (!id.is_int() || id.as_int() < 0 || id.as_int() > kMaxTokenId || out.size() >= kMaxAdded) {
      return BadField(StrCat(where, ".ids"), WriteJson(id), StrCat("ids up to ", kMaxTokenId));
    }
    out.push_back(static_cast<int32_t>(id.as_int()));
  }
  return {};
}

Status AddTemplate(const Json& json, std::string_view where, PostProcessor& out) {
  const Json::Array* single = LS_TRY(ArrayField(json, where, "single"));
  PostProcessor added;
  int num_texts = 0;
  for (size_t i = 0; i < single->size(); ++i) {
    const Json& item = (*single)[i];
    const std::string item_where = StrCat(where, ".single[", i, "]");
    if (item.Find("Sequence") != nullptr) {
      ++num_texts;
    } else if (const Json* special = item.Find("SpecialToken")) {
      LS_TRY(
          AppendSpecial(json, *special, item_where, num_texts == 0 ? added.prefix : added.suffix));
    } else {
      return BadField(item_where, item.TypeName(), "a Sequence or a SpecialToken");
    }
  }
  if (num_texts != 1) return BadField(StrCat(where, ".single"), StrCat(num_texts, " texts"), "one");
  out.prefix.insert(out.prefix.begin(), added.prefix.begin(), added.prefix.end());
  out.suffix.insert(out.suffix.end(), added.suffix.begin(), added.suffix.end());
  return {};
}

Status Add(const Json& json, std::string_view where, int depth, PostProcessor& out) {
  const std::string type = LS_TRY(StringField(json, where, "type"));
  if (type == "ByteLevel") return {};  // moves offsets only
  if (type == "TemplateProcessing") return AddTemplate(json, where, out);
  if (type != "Sequence") {
    return Unsupported(where, type, "Sequence, ByteLevel or TemplateProcessing");
  }
  if (depth >= kMaxDepth) return BadField(where, "nested too deep", "at most 8 levels");
  const Json::Array* steps = LS_TRY(ArrayField(json, where, "processors"));
  for (size_t i = 0; i < steps->size(); ++i) {
    LS_TRY(Add((*steps)[i], StrCat(where, ".processors[", i, "]"), depth + 1, out));
  }
  return {};
}

}  // namespace

Result<PostProcessor> PostProcessor::FromJson(const Json& json) {
  PostProcessor out;
  if (!json.is_null()) LS_TRY(Add(json, "post_processor", 0, out));
  return out;
}

}  // namespace lserve
