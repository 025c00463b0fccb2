// Prompts: from documents and questions to token ids, and the part that all questions share. Used
// by `lserve run`, the demo and the retrieval tests.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "tokenizer/tokenizer.h"

namespace lserve {

// An error that names `source` and the byte, unless `text` is UTF-8.
Status CheckUtf8(const std::string& source, const std::string& text);

// Bytes [begin, end) of a joined text come from one file, which had `skipped` bytes before them (a
// byte order mark). Without a source: typed in.
struct DocumentPart {
  std::optional<std::string> source;
  size_t begin = 0;
  size_t end = 0;
  size_t skipped = 0;
};
struct Documents {
  std::string text;
  std::vector<DocumentPart> parts;
};

// The documents, read and joined by a blank line. Each must be a readable file or pipe of UTF-8
// text that is more than white space.
Result<Documents> ReadDocumentParts(const std::vector<std::string>& paths);
Result<std::string> ReadDocuments(const std::vector<std::string>& paths);

// What surrounds a question.
struct Conversation {
  std::string document;  // may be empty: the question stands alone
  std::optional<std::string> system;
  std::optional<ChatDate> date;
};

// The chat prompt of one user turn: document, blank line, question.
Result<std::vector<int32_t>> MakePrompt(const Tokenizer& tokenizer,
                                        const Conversation& conversation,
                                        const std::string& question);

// How many tokens all prompts begin with, but less than any of them: a request must compute one.
int64_t CommonPrefix(std::span<const std::vector<int32_t>> prompts);

// The common prefix of `prompt` and of questions nobody knows yet: some made-up ones, whose first
// characters are of different kinds, stand for them.
Result<int64_t> PrefixForAnyQuestion(const Tokenizer& tokenizer,
                                     const Conversation& conversation,
                                     const std::vector<int32_t>& prompt);

}  // namespace lserve
