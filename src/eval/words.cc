#include "eval/words.h"

#include <set>
#include <utility>

#include "base/strings.h"

namespace lserve {
namespace {

constexpr std::string_view kAdjectives =
    "able amber ancient arctic autumn bitter blank bold brave brief bright broad broken busy calm "
    "careful cheap civil clean clear clever cold common complex cool crisp curious daily damp dark "
    "decent deep dense distant double dull eager early eastern easy elder empty equal even exact "
    "faint fair famous fancy fast fierce final firm flat fluffy formal fresh frosty full gentle "
    "giant glad golden grand gray green happy hard heavy hidden high hollow honest huge humble icy "
    "idle inner jolly keen kind large late lazy level light little lively local lonely long loose "
    "loud low loyal lucky major merry middle mild minor modern modest narrow neat new nimble noble "
    "northern odd old open orange outer pale patient plain polite proud pure quick quiet rapid "
    "rare "
    "ready red remote rich ripe rough round royal rural rusty safe salty sandy secret sharp shiny "
    "short shy silent silver simple slim slow small smooth soft solid southern spare square stable "
    "steady steep still strange strict strong sunny sweet swift tall tame tender thick thin tidy "
    "tiny tough urban vast vivid warm weary western wet white wide wild wise wooden yellow young";
constexpr std::string_view kNouns =
    "acorn actor anchor apple apron arrow artist attic badge bakery balloon bamboo banjo barn "
    "barrel basket beacon beaver bell berry bicycle blanket blossom boat bottle bowl branch bread "
    "breeze brick bridge broom brush bucket bugle butter button cabin cactus camel candle canoe "
    "canvas canyon carpet carrot castle cedar cellar chain chalk cherry chest chimney circus cliff "
    "cloak clock cloud clover coast cobra coffee comet compass coral cotton cradle crane crater "
    "crayon cricket crown curtain cushion dagger dahlia daisy desert diamond dolphin donkey dragon "
    "drawer drum eagle easel ember engine falcon farmer feather fence fern ferry fiddle finch "
    "flute forest fossil fountain fox garden garlic gate geyser ginger glacier globe glove goblet "
    "granite grape guitar hammer harbor hazel hedge helmet heron hill honey horn hotel iceberg "
    "island ivory jacket jaguar jewel jungle kettle kitten ladder lagoon lamp lantern lemon letter "
    "lily lizard lobster locket magnet mango maple marble market meadow melon mirror mitten monk "
    "mountain muffin museum needle nest oasis ocean olive onion orchard otter oyster paddle palace "
    "panda parrot pebble pencil pepper piano pigeon pillow pine pirate planet plum pocket pony "
    "poppy prairie puppet quarry quilt rabbit raccoon radish raven ribbon river robin rocket "
    "saddle "
    "salmon sapphire school shadow shovel shrine sketch spider spoon squirrel statue stove summit "
    "sunset swan table teapot temple thistle thunder ticket tiger timber tomato torch tower "
    "trumpet "
    "tulip tunnel turtle valley vase velvet village violin volcano wagon walnut water whale "
    "whistle willow window winter wizard wolf yogurt zebra";
constexpr std::string_view kVerbs =
    "admire advise agree arrive bake balance borrow bounce build carry chase climb collect compare "
    "count decide deliver dream employ escape explore fetch follow forget gather guess harvest "
    "hurry imagine invent invite juggle knock laugh learn listen measure mention notice obey offer "
    "paint perform polish praise predict promise protect publish question reach receive remember "
    "repair rescue reply search settle share shout sing smile solve squeeze stretch suggest "
    "surprise teach travel trust unlock visit wander whisper wonder";

std::vector<std::string> SplitWords(std::string_view text) {
  std::vector<std::string> words;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    words.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return words;
}

std::string MadeUpWord(Rng& rng) {
  constexpr std::string_view kConsonants = "bdfgklmnprstvz";
  constexpr std::string_view kVowels = "aeiou";
  std::string word;
  const uint64_t syllables = 3 + rng.NextBelow(2);
  for (uint64_t i = 0; i < syllables; ++i) {
    word.push_back(kConsonants[rng.NextBelow(kConsonants.size())]);
    word.push_back(kVowels[rng.NextBelow(kVowels.size())]);
  }
  return word;
}

}  // namespace

std::string RandomAdjectiveNoun(Rng& rng) {
  static const std::vector<std::string> adjectives = SplitWords(kAdjectives);
  static const std::vector<std::string> nouns = SplitWords(kNouns);
  const std::string& adjective = adjectives[rng.NextBelow(adjectives.size())];
  return StrCat(adjective, "-", nouns[rng.NextBelow(nouns.size())]);
}

std::string RandomNumber(Rng& rng, int num_digits) {
  std::string number(1, static_cast<char>('1' + rng.NextBelow(9)));
  while (static_cast<int>(number.size()) < num_digits) {
    number.push_back(static_cast<char>('0' + rng.NextBelow(10)));
  }
  return number;
}

std::string RandomUuid(Rng& rng) {
  std::string uuid;
  for (int i = 0; i < 32; ++i) {
    if (i == 8 || i == 12 || i == 16 || i == 20) uuid.push_back('-');
    uint64_t digit = rng.NextBelow(16);
    if (i == 12) digit = 4;              // the version
    if (i == 16) digit = 8 + digit % 4;  // the variant
    uuid.push_back("0123456789abcdef"[digit]);
  }
  return uuid;
}

std::string RandomLetters(Rng& rng, int count, char first_letter) {
  std::string letters;
  for (int i = 0; i < count; ++i) {
    letters.push_back(static_cast<char>(first_letter + static_cast<char>(rng.NextBelow(26))));
  }
  return letters;
}

std::vector<std::string> DistinctWords(Rng& rng, int64_t count) {
  std::set<std::string> seen;
  std::vector<std::string> words;
  for (const std::string_view list : {kNouns, kAdjectives, kVerbs}) {
    for (std::string& word : SplitWords(list)) {
      if (seen.insert(word).second) words.push_back(std::move(word));
    }
  }
  while (static_cast<int64_t>(words.size()) < count) {
    std::string word = MadeUpWord(rng);
    if (seen.insert(word).second) words.push_back(std::move(word));
  }
  Shuffle(words, rng);
  words.resize(static_cast<size_t>(count));
  return words;
}

}  // namespace lserve
