#include "apps/prompts.h"

#include <algorithm>

#include "base/mapped_file.h"
#include "base/strings.h"
#include "tokenizer/unicode.h"

namespace lserve {

Status CheckUtf8(const std::string& source, const std::string& text) {
  const size_t bad = FindInvalidUtf8(text);
  if (bad == text.size()) return Status();
  return Status(Code::kInvalidArgument, StrCat(source, ": byte ", bad,
                                               " is not UTF-8, expected UTF-8 text; convert it "
                                               "(iconv -f LATIN1 -t UTF-8) or extract the text"));
}

Result<Documents> ReadDocumentParts(const std::vector<std::string>& paths) {
  Documents joined;
  for (const std::string& path : paths) {
    if (path.empty()) {
      return Status(Code::kInvalidArgument,
                    "--document: got an empty name, expected a file; is a variable unset?");
    }
    std::string text = LS_TRY(ReadTextStream(path));
    const size_t mark = text.starts_with("\xef\xbb\xbf") ? 3 : 0;  // byte order mark
    text.erase(0, mark);
    if (text.find_first_not_of(" \t\r\n\f\v") == std::string::npos) {
      return Status(Code::kInvalidArgument,
                    StrCat(path, ": the document is empty (", text.size(),
                           " bytes without a word), expected text; is this the right file?"));
    }
    LS_TRY(CheckUtf8(path, text));
    if (!joined.text.empty()) joined.text += "\n\n";
    const size_t begin = joined.text.size();
    joined.text += text;
    joined.parts.push_back(
        {.source = path, .begin = begin, .end = joined.text.size(), .skipped = mark});
  }
  return joined;
}

Result<std::string> ReadDocuments(const std::vector<std::string>& paths) {
  return LS_TRY(ReadDocumentParts(paths)).text;
}

Result<std::vector<int32_t>> MakePrompt(const Tokenizer& tokenizer,
                                        const Conversation& conversation,
                                        const std::string& question) {
  const auto message = [](const char* role, std::string content) {
    return Json(Json::Object{{"role", Json(role)}, {"content", Json(std::move(content))}});
  };
  Json::Array messages;
  if (conversation.system) messages.push_back(message("system", *conversation.system));
  messages.push_back(message("user", conversation.document.empty()
                                         ? question
                                         : StrCat(conversation.document, "\n\n", question)));
  ChatRequest request;
  request.messages = Json(std::move(messages));
  request.date = conversation.date;
  return tokenizer.EncodeChat(LS_TRY(tokenizer.RenderChat(request)));
}

int64_t CommonPrefix(std::span<const std::vector<int32_t>> prompts) {
  if (prompts.empty() || prompts[0].empty()) return 0;
  size_t common = prompts[0].size() - 1;
  for (const std::vector<int32_t>& prompt : prompts) {
    const size_t limit = std::min(common, prompt.empty() ? 0 : prompt.size() - 1);
    const auto end = prompt.begin() + static_cast<std::ptrdiff_t>(limit);
    common = static_cast<size_t>(std::mismatch(prompt.begin(), end, prompts[0].begin()).first -
                                 prompt.begin());
  }
  return static_cast<int64_t>(common);
}

Result<int64_t> PrefixForAnyQuestion(const Tokenizer& tokenizer,
                                     const Conversation& conversation,
                                     const std::vector<int32_t>& prompt) {
  // A capital letter, a digit, a quotation mark.
  std::vector<std::vector<int32_t>> prompts = {prompt};
  for (const char* question : {"Xylophone?", "7?", "\"?\""}) {
    prompts.push_back(LS_TRY(MakePrompt(tokenizer, conversation, question)));
  }
  return CommonPrefix(prompts);
}

}  // namespace lserve
