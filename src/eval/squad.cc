#include "eval/squad.h"

#include <map>
#include <utility>

#include "base/json.h"
#include "base/strings.h"

namespace lserve {
namespace {

// Walks the file; `place` names where it is ("data[0].paragraphs[2]").
class SquadReader {
 public:
  explicit SquadReader(std::string source) : source_(std::move(source)) {}

  Status ReadFile(const Json& root) {
    const Json* data = LS_TRY(Member(root, "the file", "data", "an array", &Json::is_array));
    for (size_t i = 0; i < data->as_array().size(); ++i) {
      const std::string place = StrCat("data[", i, "]");
      const Json* paragraphs =
          LS_TRY(Member(data->as_array()[i], place, "paragraphs", "an array", &Json::is_array));
      for (size_t j = 0; j < paragraphs->as_array().size(); ++j) {
        LS_TRY(ReadParagraph(paragraphs->as_array()[j], StrCat(place, ".paragraphs[", j, "]")));
      }
    }
    if (!data_.questions.empty()) return Status();
    return Status(Code::kInvalidArgument,
                  StrCat(source_,
                         ": has no question with an answer, expected at least one; is it "
                         "a SQuAD file?"));
  }

  SquadData Take() { return std::move(data_); }

 private:
  using Is = bool (Json::*)() const;

  Result<const Json*> Member(
      const Json& json, const std::string& place, const char* name, const char* type, Is is) const {
    const Json* found = json.Find(name);
    if (found != nullptr && (found->*is)()) return found;
    return Status(Code::kInvalidArgument,
                  StrCat(source_, ": \"", name, "\" of ", place, " is ",
                         found == nullptr ? "missing" : found->TypeName(), ", expected ", type,
                         "; the format is SQuAD's: data, paragraphs, context, qas"));
  }

  Status ReadParagraph(const Json& paragraph, const std::string& place) {
    const Json* context = LS_TRY(Member(paragraph, place, "context", "a string", &Json::is_string));
    const auto [known, is_new] =
        document_of_.try_emplace(context->as_string(), data_.documents.size());
    if (is_new) data_.documents.push_back(context->as_string());
    const Json* qas = LS_TRY(Member(paragraph, place, "qas", "an array", &Json::is_array));
    for (size_t i = 0; i < qas->as_array().size(); ++i) {
      LS_TRY(ReadQuestion(qas->as_array()[i], StrCat(place, ".qas[", i, "]"), known->second));
    }
    return Status();
  }

  Status ReadQuestion(const Json& qa, const std::string& place, size_t document) {
    const Json* impossible = qa.Find("is_impossible");
    if (impossible != nullptr && impossible->is_bool() && impossible->as_bool()) return Status();
    SquadQuestion question;
    question.document = document;
    question.question =
        LS_TRY(Member(qa, place, "question", "a string", &Json::is_string))->as_string();
    const Json* answers = LS_TRY(Member(qa, place, "answers", "an array", &Json::is_array));
    for (const Json& answer : answers->as_array()) {
      const Json* text =
          LS_TRY(Member(answer, place + ".answers", "text", "a string", &Json::is_string));
      question.answers.push_back(text->as_string());
    }
    if (!question.answers.empty()) data_.questions.push_back(std::move(question));
    return Status();
  }

  std::string source_;
  SquadData data_;
  std::map<std::string, size_t> document_of_;
};

}  // namespace

Result<SquadData> ParseSquad(std::string_view text, const std::string& source) {
  const Result<Json> root = ParseJson(text);
  if (!root.ok()) {
    return Status(Code::kInvalidArgument,
                  StrCat(source, ": is no JSON (", root.status().message(),
                         "), expected a file in SQuAD's format; is it complete?"));
  }
  SquadReader reader(source);
  LS_TRY(reader.ReadFile(root.value()));
  return reader.Take();
}

}  // namespace lserve
