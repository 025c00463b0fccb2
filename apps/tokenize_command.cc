#include "apps/tokenize_command.h"

#include <memory>
#include <utility>
#include <vector>

#include "apps/console.h"
#include "apps/token_file.h"
#include "base/mapped_file.h"
#include "base/strings.h"
#include "loader/json_fields.h"
#include "tokenizer/tokenizer.h"

namespace lserve {
namespace {

struct Tokenized {
  std::vector<int32_t> ids;
  std::string text;
};

// An array of messages, or an object with "messages" and, if wanted, "tools",
// "add_generation_prompt" and "chat_template_kwargs" as in a chat completion request.
Result<ChatRequest> ReadChatRequest(const TokenizeOptions& options) {
  const std::string& path = *options.chat_file;
  const std::string text = LS_TRY(ReadTextStream(path));
  Result<Json> parsed = ParseJson(text);
  if (!parsed.ok()) {
    return Status(Code::kInvalidArgument, StrCat(path, ": ", parsed.status().message()));
  }
  const Json json = std::move(parsed).value();
  ChatRequest request;
  request.add_generation_prompt = !options.no_generation_prompt;
  if (options.date_text) request.date = LS_TRY(ParseChatDate(*options.date_text));
  if (json.is_array()) {
    request.messages = json;
    return request;
  }
  if (!json.is_object() || json.Find("messages") == nullptr) {
    return Status(Code::kInvalidArgument,
                  StrCat(path, ": is ", json.TypeName(),
                         ", expected an array of messages or an object with \"messages\"; "
                         "as in [{\"role\": \"user\", \"content\": \"Hello\"}]"));
  }
  for (const auto& [key, value] : json.as_object()) {
    if (key == "messages") {
      request.messages = value;
    } else if (key == "tools") {
      request.tools = value;
    } else if (key == "chat_template_kwargs" && value.is_object()) {
      request.extra = value;
    } else if (key == "add_generation_prompt" && value.is_bool()) {
      request.add_generation_prompt = value.as_bool();
    } else {
      return Status(Code::kInvalidArgument,
                    StrCat(path, ": member ", Quoted(key), " is ", value.TypeName(),
                           ", expected messages, tools, add_generation_prompt or "
                           "chat_template_kwargs; remove it"));
    }
  }
  return request;
}

Result<Tokenized> Tokenize(const TokenizeOptions& options) {
  const std::unique_ptr<Tokenizer> tokenizer = LS_TRY(Tokenizer::Load(options.model_dir));
  Tokenized out;
  if (options.chat_file) {
    RenderedPrompt prompt = LS_TRY(tokenizer->RenderChat(LS_TRY(ReadChatRequest(options))));
    out.ids = LS_TRY(tokenizer->EncodeChat(prompt));
    out.text = std::move(prompt.text);
    return out;
  }
  const std::string where = options.file.value_or("--text");
  const std::string text = options.file ? LS_TRY(ReadTextStream(*options.file)) : *options.text;
  if (options.decode) {
    out.ids = LS_TRY(ParseTokens(text, tokenizer->vocab_size(), where));
    out.text = LS_TRY(tokenizer->Decode(out.ids, options.skip_special_tokens));
    return out;
  }
  EncodeOptions encode;
  encode.add_special_tokens = !options.no_special_tokens;
  encode.match_special_tokens = options.match_special_tokens;
  Result<std::vector<int32_t>> ids = tokenizer->Encode(text, encode);
  if (!ids.ok()) return Status(ids.status().code(), StrCat(where, ": ", ids.status().message()));
  out.ids = std::move(ids).value();
  out.text = text;
  return out;
}

std::string ForPeople(const Tokenized& tokenized, bool decode) {
  if (decode) return tokenized.text + "\n";
  std::string line;
  for (const int32_t id : tokenized.ids) line += StrCat(line.empty() ? "" : " ", id);
  return line + "\n";
}

std::string AsJson(const Tokenized& tokenized) {
  Json::Array ids;
  for (const int32_t id : tokenized.ids) ids.push_back(Json(int64_t{id}));
  const Json json(
      Json::Object{{"token_ids", Json(std::move(ids))}, {"text", Json(tokenized.text)}});
  return WriteJson(json) + "\n";
}

}  // namespace

void AddTokenizeFlags(FlagSet& flags, TokenizeOptions& out) {
  flags.Group("Input (one of these)");
  flags.Text("--text,-p,--prompt", out.text, "TEXT", "text to encode, or ids to decode");
  flags.Text("--file,-f", out.file, "FILE", "the same from a file");
  flags.Text("--chat", out.chat_file, "MESSAGES.json",
             "messages for the model's chat template: an array of {\"role\", \"content\"}");
  flags.Group("How");
  flags.Switch("--decode", out.decode, "the input is token ids: decimal, separated by white space");
  flags.Switch("--no-special-tokens", out.no_special_tokens,
               "add no beginning-of-text or similar token");
  flags.Switch("--match-special-tokens", out.match_special_tokens,
               "text such as <|eot_id|> becomes that token");
  flags.Switch("--skip-special-tokens", out.skip_special_tokens,
               "with --decode: leave special tokens out of the text");
  flags.Switch("--no-generation-prompt", out.no_generation_prompt,
               "with --chat: end after the last message");
  flags.Text("--chat-date", out.date_text, "YYYY-MM-DD",
             "the date that some chat templates write; without it such a template fails");
  flags.Switch("--json", out.json, "print {\"token_ids\": [...], \"text\": ...}");
}

Status FinishTokenizeOptions(const TokenizeOptions& options) {
  const int inputs = (options.text ? 1 : 0) + (options.file ? 1 : 0) + (options.chat_file ? 1 : 0);
  if (inputs != 1) {
    return Status(Code::kInvalidArgument,
                  StrCat("tokenize: got ", inputs,
                         " inputs, expected one of --text, --file and --chat; "
                         "see lserve tokenize --help"));
  }
  if (options.chat_file && options.decode) {
    return Status(Code::kInvalidArgument,
                  "--decode: got --chat as well, expected --text or --file with token ids; "
                  "leave one of them out");
  }
  return Status();
}

int TokenizeCommand(const TokenizeOptions& options) {
  const Result<Tokenized> tokenized = Tokenize(options);
  if (!tokenized.ok()) return ReportError(tokenized.status());
  Output output;
  const Status status = output.Write(options.json ? AsJson(tokenized.value())
                                                  : ForPeople(tokenized.value(), options.decode));
  return status.ok() ? kExitOk : ReportError(status);
}

}  // namespace lserve
