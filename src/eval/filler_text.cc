#include "eval/filler_text.h"

#include <cctype>
#include <span>

#include "base/strings.h"

namespace lserve {
namespace {

// In a pattern, $x stands for a word of kind x, and $0 for a small number.
constexpr const char* kNouns[] = {
    "archive",   "package",  "directory", "buffer",     "channel",   "printer",  "schedule",
    "terminal",  "compiler", "network",   "server",     "message",   "signal",   "window",
    "document",  "editor",   "library",   "mirror",     "partition", "pipeline", "queue",
    "record",    "register", "report",    "repository", "request",   "resource", "routine",
    "scanner",   "script",   "sensor",    "session",    "shell",     "snapshot", "socket",
    "storage",   "switch",   "symbol",    "table",      "template",  "thread",   "ticket",
    "timer",     "token",    "toolchain", "tunnel",     "variable",  "volume",   "workspace",
    "catalogue", "handler",  "interface", "keyboard",   "ledger",    "manual",   "module",
    "monitor",   "object",   "parser",    "process",
};
constexpr const char* kPlurals[] = {
    "settings",   "entries",  "warnings", "operators", "columns",   "permissions", "arguments",
    "attributes", "counters", "defaults", "devices",   "errors",    "events",      "examples",
    "fields",     "files",    "filters",  "headers",   "images",    "keys",        "labels",
    "limits",     "links",    "lines",    "markers",   "options",   "parameters",  "paths",
    "patterns",   "ports",    "profiles", "results",   "revisions", "rules",       "sections",
    "statements", "streams",  "strings",  "tasks",     "users",     "values",      "versions",
};
constexpr const char* kVerbs[] = {
    "opens",   "closes",    "checks",  "copies",   "creates", "describes",  "discards", "displays",
    "expands", "exports",   "follows", "groups",   "ignores", "imports",    "inserts",  "installs",
    "locks",   "matches",   "moves",   "names",    "parses",  "prepares",   "prints",   "protects",
    "reads",   "refreshes", "removes", "replaces", "reports", "restores",   "reviews",  "scans",
    "selects", "sorts",     "stores",  "updates",  "writes",  "compresses",
};
constexpr const char* kInfinitives[] = {
    "open",   "close",  "check",   "copy",    "create",  "describe", "discard", "display",
    "expand", "export", "follow",  "group",   "ignore",  "import",   "insert",  "install",
    "lock",   "match",  "move",    "parse",   "prepare", "print",    "protect", "read",
    "remove", "rename", "replace", "restore", "review",  "scan",     "select",  "sort",
    "store",  "update", "verify",  "write",
};
constexpr const char* kAdjectives[] = {
    "local",     "remote",   "current",  "previous", "temporary", "shared",
    "default",   "empty",    "external", "hidden",   "internal",  "large",
    "nested",    "optional", "ordinary", "parallel", "partial",   "portable",
    "primary",   "private",  "public",   "recent",   "regular",   "relative",
    "secondary", "selected", "separate", "simple",   "small",     "special",
    "stable",    "standard", "static",   "symbolic", "unused",    "verbose",
};
constexpr const char* kAdverbs[] = {
    "always",
    "usually",
    "rarely",
    "quickly",
    "silently",
    "carefully",
    "automatically",
    "again",
    "in place",
    "on demand",
    "by hand",
    "at once",
    "in the background",
    "later",
    "recursively",
    "in order",
    "safely",
    "twice",
    "without further notice",
};
constexpr const char* kPlaces[] = {
    "on the first page",     "in the next section", "at the end of this chapter",
    "in the home directory", "on most systems",     "during the installation",
    "after the restart",     "before the next run", "in the configuration file",
    "on the command line",   "in the system log",   "under the usual conditions",
    "on slow connections",   "in older releases",   "at the beginning of a line",
    "inside the main menu",  "between two updates", "near the top of the screen",
};
constexpr const char* kPeople[] = {
    "the administrator", "the author", "a maintainer", "the operator", "the reader",
    "a developer",       "every user", "the reviewer", "a translator", "the owner",
};
constexpr const char* kHeadings[] = {
    "About the $a $n",       "Working with $p", "How to $i the $n",      "Notes for $h",
    "The $n and its $p",     "Common problems", "Frequently changed $p", "Preparing a $a $n",
    "What is new in the $n", "Further reading",
};
constexpr const char* kSentences[] = {
    "The $a $n $v the $p $l.",
    "To $i the $n, $h must first $i the $a $p.",
    "If the $n is $a, it $v the $p $d.",
    "Note that the $n $v only the $a $p.",
    "When no $n is given, the $a one is used, and the $p are kept as they are.",
    "This option tells the $n to $i all $p $l.",
    "See the $a $n for a list of the $p that $h may $i.",
    "Some $p can be changed $l, but the $n has to be started again.",
    "A $a $n can hold up to $0 $p.",
    "There are $0 ways to $i a $n, and each of them $v the same $p.",
    "It is possible to $i the $n $d, although $h should keep a copy of the $p.",
    "Both the $n and the $a $n can be used to $i the $p.",
    "By default, the $n $v its $p $d.",
    "The following $p are known to the $n: the $a ones, and those that $h adds $l.",
    "Once the $n has been prepared, the $p appear $l.",
    "In contrast to the $a $n, this one $v nothing $l.",
    "Most $p do not need a $n of their own.",
    "You may also $i the $p with a $a $n, which is faster $l.",
    "For this reason the $n never $v a $n that $h has locked.",
    "Every $n has a name, a type and a set of $a $p.",
    "Do not $i the $n while the $p are being read.",
    "The $p of a $n are separated by commas, and the $a ones come first.",
    "After about $0 minutes the $n $v the $p and writes a short report.",
    "Old $p are not removed; the $n $v them $d.",
    "An example of a $a $n is shown $l.",
    "If this fails, $i the $n $d and compare the $p.",
    "The word $n is used here for anything that $v a $n.",
    "Larger $p take more time, since the $n $v them one by one.",
    "On request, the $a $n also $v the $p of another $n.",
    "Please tell $h about all $p that the $n could not $i.",
    "The default is to $i $0 $p at a time.",
    "Without a $a $n, only the first $0 $p are shown.",
    "What the $n $v is described $l.",
    "Only $h can $i the $a $p.",
    "The $n was written so that $h can $i it without knowing the $p.",
    "As a rule, a $n with many $p should be split into smaller ones.",
    "Such a $n is called $a, because it $v its $p $d.",
    "Sometimes the $p are $a, and then the $n has nothing to do.",
};

std::span<const char* const> PoolOf(char kind) {
  switch (kind) {
    case 'n':
      return kNouns;
    case 'p':
      return kPlurals;
    case 'v':
      return kVerbs;
    case 'i':
      return kInfinitives;
    case 'a':
      return kAdjectives;
    case 'd':
      return kAdverbs;
    case 'l':
      return kPlaces;
    default:
      return kPeople;
  }
}

}  // namespace

const char* FillerText::Word(char kind) {
  const std::span<const char* const> pool = PoolOf(kind);
  return pool[rng_.NextBelow(pool.size())];
}

std::string FillerText::Fill(const char* pattern) {
  std::string text;
  for (const char* at = pattern; *at != '\0'; ++at) {
    if (*at != '$') {
      text.push_back(*at);
      continue;
    }
    ++at;
    std::string word = *at == '0' ? StrCat(2 + rng_.NextBelow(98)) : std::string(Word(*at));
    const bool after_article = text.ends_with(" a ") || text.ends_with("A ") || text == "a ";
    if (after_article && std::string_view("aeiou").find(word[0]) != std::string_view::npos) {
      text.insert(text.size() - 1, "n");
    }
    text += word;
  }
  text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

std::string FillerText::Sentence() {
  return Fill(kSentences[rng_.NextBelow(std::size(kSentences))]);
}

std::string FillerText::Heading() {
  return Fill(kHeadings[rng_.NextBelow(std::size(kHeadings))]);
}

}  // namespace lserve
