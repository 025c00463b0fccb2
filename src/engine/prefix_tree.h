// PrefixTree: the prefixes of earlier prompts that stay in the cache, so that a prompt that begins
// like one of them starts where they part. A radix tree over pages: a node is one page of tokens
// and the references to its K/V and statistics, so common beginnings are held once. Used by the
// scheduler (lookup, eviction) and the engine (what to keep). Engine thread only.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention/attention_settings.h"
#include "kv/two_way_cache.h"
#include "lserve/request.h"

namespace lserve {

// A prompt is made resumable at multiples of this, beside its end: there the sink and window pages
// of the streaming way stay (design: the prefix rule). Each point costs a window, a nearer one
// saves half the distance on average.
inline constexpr int64_t kResumeTokens = 2048;

// Where a prompt of which `kept` tokens are kept is made resumable, of (first, done].
std::vector<int64_t> ResumePoints(const AttentionSettings& settings,
                                  int64_t kept,
                                  int64_t first,
                                  int64_t done);

// What a prefix is kept under: prompts share pages only if all of it is the same. Of the settings
// counts what PrefillKey() says.
struct PrefixKey {
  const AttentionSettings& settings;
  const std::string& salt;
};

// Invariants: what lies above a node is never dropped before it, a page that a sequence uses is
// never dropped, and the tokens of a node are compared, not hashed. When memory runs out
// (std::bad_alloc from Add or Find) the tree is whole, with what was added so far; to drop
// something takes no memory.
class PrefixTree {
 public:
  // Both must outlive the tree.
  PrefixTree(PagePool* pool, PageStorage* storage) : pool_(pool), storage_(storage) {}
  ~PrefixTree() { Clear(); }
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // A page that may be kept; empty if there is none.
  using PageSource = std::function<PageRef(Way, PageIdx)>;
  enum class StreamingPages : uint8_t { kNeeded, kAll };
  // Keeps the first `num_tokens` of `prompt`, resumable at `num_tokens`: all retrieval pages, and
  // the streaming pages that a query there still sees, or all that `source` has. It ends before a
  // page whose retrieval part neither `source` nor the tree has. REQUIRES: `num_tokens` is a
  // ResumePosition of the settings.
  void Add(std::span<const int32_t> prompt,
           int64_t num_tokens,
           const PrefixKey& key,
           const PageSource& source,
           StreamingPages streaming_pages = StreamingPages::kNeeded);

  struct Found {
    // With as many leading tokens of the prompt as a kept prefix can give: never all of them (the
    // last one's logits are needed), and cut where the prompt may be resumed, which is a
    // ResumePosition whose streaming window is there.
    SequenceCache cache;
    PrefixMatch match;
  };
  Found Find(std::span<const int32_t> prompt, const PrefixKey& key);

  // Leading tokens of the prompt that are held, resumable or not. Counts as no use.
  int64_t Common(std::span<const int32_t> prompt, const PrefixKey& key) const;
  // The pages of positions [first_token, num_tokens), which begins with a page: one for each, or
  // none if some retrieval page is not held.
  std::vector<std::array<PageRef, kNumWays>> SharePages(std::span<const int32_t> prompt,
                                                        int64_t first_token,
                                                        int64_t num_tokens,
                                                        const PrefixKey& key) const;

  // Drops the page that was used longest ago of those that nothing lies behind and no sequence
  // uses; false if there is none.
  bool EvictOne();
  // Drops everything.
  void Clear();

  int64_t num_nodes() const { return num_nodes_; }

 private:
  struct Node;
  // Lexicographic, so that the child with the longest common beginning is a neighbour of the place
  // where the prompt's own page would be.
  struct TokensLess {
    using is_transparent = void;  // NOLINT(readability-identifier-naming): the library's name
    bool operator()(std::span<const int32_t> a, std::span<const int32_t> b) const;
  };
  using Leaves = std::set<std::pair<uint64_t, Node*>>;  // by last use
  using Children = std::map<std::vector<int32_t>, std::unique_ptr<Node>, TokensLess>;
  struct Node {
    Node* parent = nullptr;         // null: a root
    Children::iterator place = {};  // in the parent's children; its tokens are the key
    PageRef pages[kNumWays];
    Children children;
    uint64_t last_used = 0;
    Leaves::node_type leaf;  // its place in leaves_ while it is not there; empty: a root, or there

    std::span<const int32_t> tokens() const { return place->first; }
    bool in_use() const;
  };
  struct Root {
    std::string prefill_key;
    Node node;
  };
  // What a prompt and a tree have in common.
  struct Path {
    std::vector<Node*> nodes;  // the last may share only some of its tokens
    int64_t common = 0;        // tokens
    int64_t nearest = 0;       // tokens of the kept prefix that goes on from there
  };

  Root* FindRoot(const PrefixKey& key) const;
  static Path Walk(Root* root, std::span<const int32_t> prompt);
  int64_t Resumable(const Path& path, int64_t limit, const AttentionSettings& settings) const;
  SequenceCache Share(const Path& path, int64_t num_tokens, const AttentionSettings& settings);
  // A child of `parent` with these tokens, which it has not; a leaf.
  Node* AddChild(Node* parent, std::span<const int32_t> tokens);
  void Touch(Node* node);
  // Puts a node that nothing lies behind among the leaves; takes one from them.
  void BecomeLeaf(Node* node);
  void BecomeInner(Node* node);
  void Remove(Node* node);
  void DropRoot(const Node* node);

  PagePool* pool_;
  PageStorage* storage_;
  std::map<std::string, std::vector<std::unique_ptr<Root>>> roots_;  // by salt
  Leaves leaves_;
  uint64_t now_ = 0;
  int64_t num_nodes_ = 0;
};

}  // namespace lserve
