#include "engine/prefix_tree.h"

#include <algorithm>

#include "attention/policy.h"
#include "base/check.h"

namespace lserve {
namespace {

int64_t CommonTokens(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

// The streaming pages that a prompt resumed at `position` needs: all before `sink`, and those from
// `window` on; everything if `sink` reaches it.
struct NeededStreaming {
  PageIdx sink = 0;
  PageIdx window = 0;
};
NeededStreaming StreamingAt(const AttentionSettings& settings, int64_t position) {
  const int64_t keep_from = StreamingKeepFrom(settings, position, /*in_prompt=*/true);
  const PageIdx window = static_cast<PageIdx>(keep_from / kPageTokens);
  return {.sink = std::min(NumPages(StreamingSinkEnd(settings)), window), .window = window};
}

}  // namespace

bool PrefixTree::TokensLess::operator()(std::span<const int32_t> a,
                                        std::span<const int32_t> b) const {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

bool PrefixTree::Node::in_use() const {
  return std::any_of(std::begin(pages), std::end(pages),
                     [](const PageRef& page) { return page && page.shared(); });
}

PrefixTree::Root* PrefixTree::FindRoot(const PrefixKey& key) const {
  const auto of_salt = roots_.find(key.salt);
  if (of_salt == roots_.end()) return nullptr;
  const std::string prefill_key = PrefillKey(key.settings);
  for (const auto& root : of_salt->second) {
    if (root->prefill_key == prefill_key) return root.get();
  }
  return nullptr;
}

void PrefixTree::BecomeLeaf(Node* node) {
  node->leaf.value() = {node->last_used, node};
  leaves_.insert(std::move(node->leaf));
}

void PrefixTree::BecomeInner(Node* node) {
  node->leaf = leaves_.extract({node->last_used, node});
}

void PrefixTree::Touch(Node* node) {
  const bool is_leaf = node->children.empty();
  if (is_leaf) BecomeInner(node);
  node->last_used = now_;
  if (is_leaf) BecomeLeaf(node);
}

PrefixTree::Node* PrefixTree::AddChild(Node* parent, std::span<const int32_t> tokens) {
  auto node = std::make_unique<Node>();
  Leaves place;
  place.insert({0, nullptr});
  node->leaf = place.extract(place.begin());
  node->last_used = now_;
  node->parent = parent;
  const bool was_leaf = parent->children.empty() && parent->parent != nullptr;
  const auto child =
      parent->children.emplace(std::vector<int32_t>(tokens.begin(), tokens.end()), std::move(node))
          .first;
  child->second->place = child;
  if (was_leaf) BecomeInner(parent);
  BecomeLeaf(child->second.get());
  ++num_nodes_;
  return child->second.get();
}

std::vector<int64_t> ResumePoints(const AttentionSettings& settings,
                                  int64_t kept,
                                  int64_t first,
                                  int64_t done) {
  // The next question about the same document is about that long, and differs from its start on.
  constexpr int64_t kQuestionTokens = 256;
  std::vector<int64_t> points = {
      ResumePosition(settings,
                     std::max<int64_t>(0, kept - kQuestionTokens) / kTileTokens * kTileTokens),
      ResumePosition(settings, kept)};
  for (int64_t p = (first / kResumeTokens + 1) * kResumeTokens; p <= done; p += kResumeTokens)
    points.push_back(p);
  std::erase_if(points, [&](int64_t point) { return point <= first || point > done; });
  return points;
}

void PrefixTree::Add(std::span<const int32_t> prompt,
                     int64_t num_tokens,
                     const PrefixKey& key,
                     const PageSource& source,
                     StreamingPages streaming_pages) {
  if (num_tokens == 0) return;
  Root* root = FindRoot(key);
  if (root == nullptr) {
    auto& of_salt = roots_[key.salt];
    of_salt.push_back(std::make_unique<Root>());
    root = of_salt.back().get();
    root->prefill_key = PrefillKey(key.settings);
  }
  ++now_;
  const NeededStreaming needed = StreamingAt(key.settings, num_tokens);
  Node* node = &root->node;
  for (PageIdx page = 0; page < NumPages(num_tokens); ++page) {
    const int64_t first = int64_t{page} * kPageTokens;
    const std::span<const int32_t> tokens =
        prompt.subspan(static_cast<size_t>(first),
                       static_cast<size_t>(std::min<int64_t>(kPageTokens, num_tokens - first)));
    const auto child = node->children.find(tokens);
    if (child == node->children.end()) {
      PageRef retrieval = source(Way::kRetrieval, page);
      if (!retrieval && pool_->page_bytes(Way::kRetrieval) > 0) break;
      node = AddChild(node, tokens);
      node->pages[Index(Way::kRetrieval)] = std::move(retrieval);
    } else {
      node = child->second.get();
    }
    PageRef& streaming = node->pages[Index(Way::kStreaming)];
    const bool all = streaming_pages == StreamingPages::kAll;
    if (!streaming && (all || page < needed.sink || page >= needed.window))
      streaming = source(Way::kStreaming, page);
    Touch(node);
  }
  if (root->node.children.empty()) DropRoot(&root->node);
}

PrefixTree::Path PrefixTree::Walk(Root* root, std::span<const int32_t> prompt) {
  Path path;
  Node* node = &root->node;
  for (;;) {
    const std::span<const int32_t> rest = prompt.subspan(static_cast<size_t>(path.common));
    const std::span<const int32_t> page =
        rest.first(std::min<size_t>(rest.size(), static_cast<size_t>(kPageTokens)));
    // The best match is the first child not below the page, or the last one below it. Of equal
    // ones, that which can be resumed.
    Node* best = nullptr;
    int64_t most = 0;
    const auto consider = [&](const Children::iterator& child) {
      const int64_t common = CommonTokens(page, child->first);
      const bool streams = static_cast<bool>(child->second->pages[Index(Way::kStreaming)]);
      if (common == 0 || common < most || (common == most && !streams)) return;
      most = common;
      best = child->second.get();
    };
    const auto above = node->children.lower_bound(page);
    if (above != node->children.end()) consider(above);
    if (above != node->children.begin()) consider(std::prev(above));
    if (best == nullptr) break;
    if (most < kPageTokens && !best->pages[Index(Way::kStreaming)]) {
      const auto tail = node->children.find(page.first(static_cast<size_t>(most)));
      if (tail != node->children.end()) best = tail->second.get();
    }
    path.nodes.push_back(best);
    path.common += most;
    node = best;
    if (most < kPageTokens) break;
  }
  if (path.nodes.empty()) return path;
  // The prefix that goes on from here: down to its end along what was used last.
  path.nearest = static_cast<int64_t>(path.nodes.size() - 1) * kPageTokens +
                 static_cast<int64_t>(node->tokens().size());
  while (!node->children.empty()) {
    const auto newest = std::max_element(
        node->children.begin(), node->children.end(),
        [](const auto& a, const auto& b) { return a.second->last_used < b.second->last_used; });
    node = newest->second.get();
    path.nearest += static_cast<int64_t>(node->tokens().size());
  }
  return path;
}

// The last position up to `limit` where a prompt that shares `path` may be resumed; 0: none.
int64_t PrefixTree::Resumable(const Path& path,
                              int64_t limit,
                              const AttentionSettings& settings) const {
  const bool streams = pool_->page_bytes(Way::kStreaming) > 0;
  // first_whole[i]: the first page from which on every streaming page up to page i is there.
  std::vector<PageIdx> first_whole;
  PageIdx first = 0, sink = 0;  // sink: pages from the start on
  for (PageIdx i = 0; i < static_cast<PageIdx>(path.nodes.size()); ++i) {
    const bool held = !streams || path.nodes[static_cast<size_t>(i)]->pages[Index(Way::kStreaming)];
    if (!held) first = i + 1;
    if (held && sink == i) ++sink;
    first_whole.push_back(first);
  }
  for (int64_t position = ResumePosition(settings, limit); position > 0;) {
    const NeededStreaming needed = StreamingAt(settings, position);
    const PageIdx last = NumPages(position) - 1;
    if (first_whole[static_cast<size_t>(last)] <= needed.window && sink >= needed.sink)
      return position;
    position = ResumePosition(settings, (position - 1) / kPageTokens * kPageTokens);
  }
  return 0;
}

SequenceCache PrefixTree::Share(const Path& path,
                                int64_t num_tokens,
                                const AttentionSettings& settings) {
  std::vector<PageRef> pages[kNumWays];
  const PageIdx count = NumPages(num_tokens);
  const NeededStreaming needed = StreamingAt(settings, num_tokens);
  const auto streaming = [&](PageIdx i) -> const PageRef& {
    return path.nodes[static_cast<size_t>(i)]->pages[Index(Way::kStreaming)];
  };
  bool whole = true;  // then it is all given, for whoever wants to look at it
  for (PageIdx i = 0; i < count; ++i) whole = whole && static_cast<bool>(streaming(i));
  for (PageIdx i = 0; i < count; ++i) {
    const PageRef& retrieval = path.nodes[static_cast<size_t>(i)]->pages[Index(Way::kRetrieval)];
    pages[Index(Way::kRetrieval)].push_back(retrieval ? retrieval.Share() : PageRef());
    const bool wanted = streaming(i) && (whole || i < needed.sink || i >= needed.window);
    pages[Index(Way::kStreaming)].push_back(wanted ? streaming(i).Share() : PageRef());
  }
  return SequenceCache::FromPages(pool_, storage_, num_tokens, std::move(pages));
}

PrefixTree::Found PrefixTree::Find(std::span<const int32_t> prompt, const PrefixKey& key) {
  Found found{.cache = SequenceCache(pool_, storage_), .match = {}};
  const auto of_salt = roots_.find(key.salt);
  if (of_salt == roots_.end()) return found;
  const std::string prefill_key = PrefillKey(key.settings);
  Path path;
  int64_t elsewhere = 0;  // what prefixes of other settings have in common
  for (const auto& root : of_salt->second) {
    Path other = Walk(root.get(), prompt);
    if (root->prefill_key == prefill_key) {
      path = std::move(other);
    } else {
      elsewhere = std::max(elsewhere, other.common);
    }
  }
  const int64_t size = static_cast<int64_t>(prompt.size());
  const int64_t usable = Resumable(path, std::min(path.common, size - 1), key.settings);
  PrefixMatch& match = found.match;
  match.common = path.common;
  match.nearest = path.nearest;
  if (elsewhere > path.common) {
    match.end = PrefixEnd::kSettings;
    match.common = match.nearest = elsewhere;
  } else if (path.common == 0) {
    match.end = PrefixEnd::kNone;
  } else if (path.common == size) {
    match.end = PrefixEnd::kWhole;
  } else {
    match.end = path.nearest > path.common ? PrefixEnd::kDiffers : PrefixEnd::kEnds;
  }
  if (usable == 0) return found;
  ++now_;
  for (size_t i = 0; i < static_cast<size_t>(NumPages(usable)); ++i) Touch(path.nodes[i]);
  found.cache = Share(path, usable, key.settings);
  return found;
}

int64_t PrefixTree::Common(std::span<const int32_t> prompt, const PrefixKey& key) const {
  Root* root = FindRoot(key);
  return root == nullptr ? 0 : Walk(root, prompt).common;
}

std::vector<std::array<PageRef, kNumWays>> PrefixTree::SharePages(std::span<const int32_t> prompt,
                                                                  int64_t first_token,
                                                                  int64_t num_tokens,
                                                                  const PrefixKey& key) const {
  std::vector<std::array<PageRef, kNumWays>> pages;
  Root* root = FindRoot(key);
  if (root == nullptr) return pages;
  const Path path = Walk(root, prompt.first(static_cast<size_t>(num_tokens)));
  if (path.common < num_tokens) return pages;
  for (PageIdx i = static_cast<PageIdx>(first_token / kPageTokens); i < NumPages(num_tokens); ++i) {
    pages.emplace_back();
    for (const Way way : kWays) {
      const PageRef& page = path.nodes[static_cast<size_t>(i)]->pages[Index(way)];
      if (page) pages.back()[static_cast<size_t>(Index(way))] = page.Share();
    }
  }
  return pages;
}

void PrefixTree::Remove(Node* node) {
  Node* parent = node->parent;
  leaves_.erase({node->last_used, node});
  --num_nodes_;
  parent->children.erase(node->place);  // the node is gone
  if (!parent->children.empty()) return;
  if (parent->parent != nullptr) {
    BecomeLeaf(parent);
    return;
  }
  DropRoot(parent);
}

void PrefixTree::DropRoot(const Node* node) {
  for (auto of_salt = roots_.begin(); of_salt != roots_.end(); ++of_salt) {
    if (std::erase_if(of_salt->second, [&](const auto& root) { return &root->node == node; }) == 0)
      continue;
    if (of_salt->second.empty()) roots_.erase(of_salt);
    return;
  }
}

bool PrefixTree::EvictOne() {
  for (const auto& [last_used, node] : leaves_) {
    if (node->in_use()) continue;
    Remove(node);
    return true;
  }
  return false;
}

// Leaf by leaf: a chain of nodes is as long as a prompt, too deep for recursive destruction.
void PrefixTree::Clear() {
  while (!leaves_.empty()) Remove(leaves_.begin()->second);
}

}  // namespace lserve
