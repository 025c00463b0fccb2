#include "engine/prefix_tier.h"

#include <algorithm>

#include "base/check.h"

namespace lserve {

void StretchIndex::Insert(const std::string& name, const PrefixSnapshot& snapshot, uint64_t bytes) {
  const std::span<const int32_t> tokens = snapshot.tokens;
  const size_t first = static_cast<size_t>(snapshot.first_token);
  const std::span<const int32_t> own = tokens.subspan(first);
  Entry entry{.bytes = bytes,
              .last_used = ++now_,
              .parent = NameOf(snapshot.family, tokens.first(first)),
              .tokens = {own.begin(), own.end()}};
  // Both are made before either is in, so that none is there without the other.
  decltype(children_) child;
  child.emplace(entry.parent, name);
  decltype(entries_) own_entry;
  own_entry.emplace(name, std::move(entry));
  LS_CHECK(entries_.insert(own_entry.extract(own_entry.begin())).inserted)
      << name << " is there already";
  children_.insert(child.extract(child.begin()));
  bytes_ += bytes;
}

void StretchIndex::Erase(const std::string& name) {
  const auto entry = entries_.find(name);
  if (entry == entries_.end()) return;
  bytes_ -= entry->second.bytes;
  const auto [first, last] = children_.equal_range(entry->second.parent);
  children_.erase(std::find_if(first, last, [&](const auto& c) { return c.second == name; }));
  entries_.erase(entry);
}

std::string StretchIndex::Find(std::string_view family,
                               std::span<const int32_t> prompt,
                               int64_t first_token,
                               int64_t at_least) {
  LS_CHECK_EQ(first_token % kStretchTokens, 0);
  const size_t before = static_cast<size_t>(first_token);
  const std::span<const int32_t> rest = prompt.subspan(before);
  const auto [first, last] = children_.equal_range(NameOf(family, prompt.first(before)));
  Entry* best = nullptr;
  std::string name;
  for (auto child = first; child != last; ++child) {
    Entry& entry = entries_.at(child->second);
    const int64_t common =
        std::mismatch(entry.tokens.begin(), entry.tokens.end(), rest.begin(), rest.end()).first -
        entry.tokens.begin();
    if (common <= at_least) continue;
    at_least = common;
    best = &entry;
    name = child->second;
  }
  if (best != nullptr) best->last_used = ++now_;
  return name;
}

std::string StretchIndex::Oldest() const {
  return std::min_element(
             entries_.begin(), entries_.end(),
             [](const auto& a, const auto& b) { return a.second.last_used < b.second.last_used; })
      ->first;
}

bool Continues(const PrefixSnapshot& snapshot,
               std::string_view family,
               std::span<const int32_t> prompt,
               int64_t first_token) {
  const std::span<const int32_t> before = prompt.first(static_cast<size_t>(first_token));
  return snapshot.family == family && snapshot.first_token == first_token &&
         std::equal(before.begin(), before.end(), snapshot.tokens.begin());
}

}  // namespace lserve
