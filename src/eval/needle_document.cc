#include "eval/needle_document.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "base/check.h"
#include "base/rng.h"
#include "base/strings.h"
#include "eval/filler_text.h"

namespace lserve {
namespace {

// {k} is the key, {K} the key with a capital first letter, {v} the value.
struct NeedleForm {
  const char* statement;
  const char* question;
  const char* answer;
};

constexpr NeedleForm kForms[kNumNeedleForms] = {
    {"The access code for {k} is {v}.", "What is the access code for {k}?",
     "The access code for {k} is {v}."},
    {"The secret number of {k} is {v}.", "What is the secret number of {k}?",
     "The secret number of {k} is {v}."},
    {"One of the special magic numbers for {k} is: {v}.",
     "What is the special magic number for {k} mentioned in the provided text?",
     "The special magic number for {k} mentioned in the provided text is {v}."},
    {"The pass key for {k} is {v}. Remember it. {v} is the pass key for {k}.",
     "What is the pass key for {k}?", "The pass key for {k} is {v}."},
    {"{K} keeps its records in room {v}.", "In which room does {k} keep its records?",
     "{K} keeps its records in room {v}."},
    {"The invoice number of {k} is {v}.", "What is the invoice number of {k}?",
     "The invoice number of {k} is {v}."},
};
constexpr int kMagicNumberForm = 2;

// Words of technical manuals, as in the keys that the model was trained on: rare words are many
// tokens each, and how well those are copied is not what is measured here.
constexpr const char* kKeyWords[] = {
    "network",  "packet",   "device",  "driver",   "volume",   "stream",   "branch",  "remote",
    "source",   "target",   "output",  "border",   "window",   "screen",   "editor",  "script",
    "folder",   "server",   "client",  "socket",   "thread",   "signal",   "memory",  "buffer",
    "filter",   "format",   "module",  "object",   "string",   "record",   "report",  "search",
    "change",   "update",   "backup",  "message",  "library",  "package",  "process", "program",
    "section",  "storage",  "support", "version",  "letter",   "table",    "index",   "image",
    "label",    "layer",    "level",   "point",    "query",    "range",    "route",   "shell",
    "state",    "style",    "theme",   "world",    "access",   "action",   "active",  "address",
    "archive",  "array",    "author",  "banner",   "battery",  "binary",   "block",   "board",
    "bottom",   "button",   "cache",   "camera",   "channel",  "chapter",  "circle",  "cluster",
    "color",    "column",   "command", "common",   "compiler", "config",   "console", "control",
    "corner",   "counter",  "country", "cursor",   "custom",   "daily",    "debug",   "default",
    "design",   "desktop",  "detail",  "dialog",   "digital",  "disk",     "display", "domain",
    "double",   "dynamic",  "engine",  "entry",    "error",    "event",    "example", "export",
    "external", "family",   "feature", "field",    "final",    "font",     "frame",   "function",
    "garbage",  "general",  "global",  "graph",    "group",    "guide",    "handle",  "header",
    "height",   "helper",   "history", "host",     "hour",     "icon",     "input",   "install",
    "integer",  "internal", "journal", "kernel",   "keyboard", "language", "latest",  "length",
    "license",  "light",    "limit",   "link",     "linux",    "loader",   "local",   "logic",
    "machine",  "main",     "manager", "manual",   "margin",   "master",   "matrix",  "menu",
    "method",   "middle",   "minute",  "mirror",   "mobile",   "model",    "monitor", "mouse",
    "music",    "native",   "node",    "normal",   "notice",   "office",   "online",  "open",
    "option",   "order",    "origin",  "panel",    "paper",    "parent",   "parser",  "partner",
    "pattern",  "person",   "phone",   "picture",  "plain",    "plugin",   "policy",  "portal",
    "prefix",   "primary",  "print",   "private",  "profile",  "proxy",    "public",  "python",
    "queue",    "quick",    "radio",   "random",   "reader",   "region",   "release", "repair",
    "reset",    "result",   "return",  "right",    "root",     "router",   "rule",    "sample",
    "schema",   "scope",    "sector",  "secure",   "sender",   "series",   "service", "session",
    "shadow",   "shared",   "simple",  "single",   "site",     "size",     "sound",   "space",
    "speed",    "stack",    "staff",   "standard", "static",   "status",   "store",   "student",
    "summary",  "symbol",   "system",  "task",     "template", "tenant",   "timer",   "title",
    "token",    "tool",     "topic",   "total",    "track",    "traffic",  "tree",    "upper",
    "value",    "vector",   "vendor",  "virtual",  "visual",   "voice",    "watch",   "weight",
    "wizard",   "worker",   "writer",
};
constexpr const char* kKeyKinds[] = {"project", "account", "station", "vault", "team", "contract"};

struct Fact {
  std::string statement;
  std::string question;
  std::string answer;
  double depth = 0.0;
};

std::string Capitalised(std::string text) {
  text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

std::string Filled(const char* pattern, const std::string& key, const std::string& value) {
  std::string text;
  for (const char* at = pattern; *at != '\0'; ++at) {
    if (*at != '{') {
      text.push_back(*at);
      continue;
    }
    text += at[1] == 'v' ? value : at[1] == 'K' ? Capitalised(key) : key;
    at += 2;  // to the closing brace
  }
  return text;
}

class NeedleWriter {
 public:
  explicit NeedleWriter(uint64_t seed) : rng_(seed) {}

  std::string NewValue() {
    std::string value;
    do {
      value.clear();
      const uint64_t digits = 4 + rng_.NextBelow(4);
      while (value.size() < digits) value.push_back(static_cast<char>('0' + rng_.NextBelow(10)));
    } while (!values_.insert(value).second);
    return value;
  }

  // Words, hyphenated words or a name: "amber-river", "the Copper Tower vault".
  std::string NewKey() {
    const std::string a = NewWord(), b = NewWord();
    switch (rng_.NextBelow(4)) {
      case 0:
        return StrCat(Capitalised(a), " ", Capitalised(b));
      case 1:
        return StrCat("the ", Capitalised(a), " ", Capitalised(b), " ",
                      kKeyKinds[rng_.NextBelow(std::size(kKeyKinds))]);
      case 2:
        return StrCat(a, "-", b);
      default:
        return StrCat(a, " ", b);
    }
  }

  Fact NewFact(int form_index, double depth) {
    const NeedleForm& form = kForms[form_index];
    const std::string key = NewKey(), value = NewValue();
    return Fact{Filled(form.statement, key, value), Filled(form.question, key, value),
                Filled(form.answer, key, value), depth};
  }

  double Depth() { return rng_.NextDouble(); }
  int Form() { return static_cast<int>(rng_.NextBelow(kNumNeedleForms)); }

 private:
  // No word serves twice in a document: two keys that share one are a harder task.
  const char* NewWord() {
    LS_CHECK_LT(words_.size(), std::size(kKeyWords)) << "too many facts for the list of words";
    const char* word = nullptr;
    do {
      word = kKeyWords[rng_.NextBelow(std::size(kKeyWords))];
    } while (!words_.insert(word).second);
    return word;
  }

  Rng rng_;
  std::set<std::string> words_;
  std::set<std::string> values_;
};

// Adds the facts of a key with several values, and returns the question for all of them.
NeedleQuestion AddValuesOfOneKey(NeedleWriter& writer,
                                 const NeedleOptions& options,
                                 std::vector<Fact>& facts) {
  const int count = options.num_values_of_one_key;
  const std::string key = writer.NewKey();
  std::vector<double> depths = options.value_depths;
  if (depths.empty()) {
    for (int i = 0; i < count; ++i) depths.push_back(writer.Depth());
  }
  LS_CHECK_EQ(depths.size(), static_cast<size_t>(count));
  std::sort(depths.begin(), depths.end());
  std::string answer =
      StrCat("The special magic numbers for ", key, " mentioned in the provided text are ");
  for (int i = 0; i < count; ++i) {
    const std::string value = writer.NewValue();
    facts.push_back(Fact{Filled(kForms[kMagicNumberForm].statement, key, value), "", "",
                         depths[static_cast<size_t>(i)]});
    answer += StrCat(value, i + 2 < count ? ", " : i + 2 == count ? " and " : ".");
  }
  return {StrCat("What are all the special magic numbers for ", key,
                 " mentioned in the provided text?"),
          answer, 1.0};
}

// The numbers of at least four digits, in order.
std::vector<std::string> ValuesOf(std::string_view text) {
  std::vector<std::string> values;
  std::string digits;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && text[i] >= '0' && text[i] <= '9') {
      digits.push_back(text[i]);
      continue;
    }
    if (digits.size() >= 4) values.push_back(digits);
    digits.clear();
  }
  return values;
}

struct Piece {
  std::string text;  // with the white space before it
  int64_t first_token = 0;
};

class DocumentBuilder {
 public:
  explicit DocumentBuilder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  Result<int64_t> CountTokens(const std::string& text) const {
    const EncodeOptions plain = {.add_special_tokens = false, .match_special_tokens = false};
    return static_cast<int64_t>(LS_TRY(tokenizer_.Encode(text, plain)).size());
  }

  // Sentences, paragraphs and headings of `num_tokens` tokens.
  Status AddFiller(uint64_t seed, int64_t num_tokens) {
    FillerText filler(seed);
    Rng rng(seed ^ 0x5bd1e995u);
    uint64_t left_in_paragraph = 0;
    while (num_tokens_ < num_tokens) {
      std::string text;
      if (left_in_paragraph == 0) {
        if (!pieces_.empty()) text = "\n\n";
        if (rng.NextBelow(6) == 0) text += filler.Heading() + "\n\n";
        left_in_paragraph = 3 + rng.NextBelow(5);
      } else {
        text = " ";
      }
      --left_in_paragraph;
      text += filler.Sentence();
      pieces_.push_back({text, num_tokens_});
      num_tokens_ += LS_TRY(CountTokens(text));
    }
    return Status();
  }

  // Each fact follows the sentence at its depth. `facts` are sorted by depth.
  std::string Join(const std::vector<Fact>& facts) const {
    std::string text;
    size_t next = 0;
    for (size_t i = 0; i < pieces_.size(); ++i) {
      text += pieces_[i].text;
      const bool is_last = i + 1 == pieces_.size();
      while (next < facts.size() &&
             (is_last || facts[next].depth * static_cast<double>(num_tokens_) <
                             static_cast<double>(pieces_[i + 1].first_token))) {
        text += " " + facts[next++].statement;
      }
    }
    return text;
  }

 private:
  const Tokenizer& tokenizer_;
  std::vector<Piece> pieces_;
  int64_t num_tokens_ = 0;
};

}  // namespace

Result<NeedleDocument> MakeNeedleDocument(const Tokenizer& tokenizer,
                                          const NeedleOptions& options) {
  NeedleWriter writer(options.seed);
  NeedleDocument document;
  std::vector<Fact> facts;
  int form = writer.Form();
  for (const double depth : options.depths) {
    facts.push_back(writer.NewFact(options.form.value_or(form++ % kNumNeedleForms), depth));
    document.questions.push_back({facts.back().question, facts.back().answer, depth});
  }
  for (int i = 0; i < options.num_distractors; ++i) {
    const double depth = writer.Depth();
    const int drawn = writer.Form();
    facts.push_back(writer.NewFact(options.form.value_or(drawn), depth));
  }
  if (options.num_values_of_one_key > 0) {
    document.all_values.push_back(AddValuesOfOneKey(writer, options, facts));
  }
  std::stable_sort(facts.begin(), facts.end(),
                   [](const Fact& a, const Fact& b) { return a.depth < b.depth; });

  DocumentBuilder builder(tokenizer);
  int64_t fact_tokens = 0;
  for (const Fact& fact : facts) fact_tokens += LS_TRY(builder.CountTokens(" " + fact.statement));
  LS_TRY(builder.AddFiller(options.seed, options.num_tokens - fact_tokens));
  document.text = builder.Join(facts);
  document.num_tokens = LS_TRY(builder.CountTokens(document.text));
  return document;
}

bool HasSameValues(std::string_view answer, std::string_view expected) {
  return ValuesOf(answer) == ValuesOf(expected);
}

double ValueScore(std::string_view answer, std::string_view expected) {
  const std::vector<std::string> stated = ValuesOf(answer);
  const std::vector<std::string> wanted = ValuesOf(expected);
  if (wanted.empty()) return stated.empty() ? 1.0 : 0.0;
  std::multiset<std::string> left(stated.begin(), stated.end());
  int right = 0;
  for (const std::string& value : wanted) {
    const auto found = left.find(value);
    if (found == left.end()) continue;
    left.erase(found);
    ++right;
  }
  return static_cast<double>(right) / static_cast<double>(std::max(stated.size(), wanted.size()));
}

NeedleQuestion AskBoth(const NeedleQuestion& first, const NeedleQuestion& second) {
  return {StrCat(first.question, " ", second.question), StrCat(first.answer, " ", second.answer),
          first.depth};
}

}  // namespace lserve
