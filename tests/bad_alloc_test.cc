// std::bad_alloc at every allocation that the engine's thread makes for requests: whoever it
// strikes ends with an error or does not notice, the others' answers are right, no page is lost.
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>

#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace {
// Allocations of this thread; the one that brings `left` to 0 fails.
struct Allocations {
  bool counts = false;
  int64_t made = 0;
  int64_t left = 0;  // 0: none fails
};
// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables): operator new has no arguments
thread_local Allocations allocations;

void* Allocate(size_t bytes, size_t alignment) {
  if (allocations.counts) {
    ++allocations.made;
    if (allocations.left > 0 && --allocations.left == 0) throw std::bad_alloc();
  }
  const size_t whole = (std::max<size_t>(1, bytes) + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, whole);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

// The library's own, replaced. Not inlined: the compiler would see free() where it knows of a new.
[[gnu::noinline]] void* operator new(size_t bytes) {
  return Allocate(bytes, alignof(std::max_align_t));
}
[[gnu::noinline]] void* operator new(size_t bytes, std::align_val_t alignment) {
  return Allocate(bytes, static_cast<size_t>(alignment));
}
[[gnu::noinline]] void* operator new[](size_t bytes) {
  return Allocate(bytes, alignof(std::max_align_t));
}
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t& /*tag*/) noexcept {
  try {
    return Allocate(bytes, alignof(std::max_align_t));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
[[gnu::noinline]] void operator delete[](void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete[](void* memory, size_t /*bytes*/) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, const std::nothrow_t& /*tag*/) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t /*bytes*/) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t /*alignment*/) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory,
                                       size_t /*bytes*/,
                                       std::align_val_t /*alignment*/) noexcept {
  std::free(memory);
}

namespace lserve {
namespace {

class BadAlloc : public testing::Test {
 protected:
  BadAlloc() {
    EngineConfig config;
    config.model_dir = checkpoint_.dir();
    config.device = "cpu";
    config.num_threads = 1;  // the backend's own allocations are this thread's
    config.kv_cache_bytes = size_t{8} << 20;
    config.kv_host_bytes = size_t{8} << 20;
    config.max_num_batched_tokens = 512;
    config.attention.mode = AttentionMode::kSparse;
    config.attention.token_budget = 256;
    config.attention.recent_tokens = 64;
    config.attention.prefill_min_position = 256;
    engine_ = MakeEngine(config);
  }
  static RandomModelShape Shape() {
    RandomModelShape shape;
    shape.layers = 1;
    shape.kinds = {1, 0};
    return shape;
  }
  static Request Ask(int64_t length, uint64_t seed, int64_t max_tokens) {
    Request request;
    request.prompt = RandomTokens(length, 97, seed);
    request.keep_prefix = length;
    request.sampling.temperature = 0.5;
    request.sampling.frequency_penalty = 0.1;
    request.sampling.seed = seed;
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    return request;
  }
  static constexpr size_t kRequests = 4;
  // The third begins like the first, which is kept by then; the last is cancelled.
  static Request Number(size_t i) {
    if (i == 1) return Ask(200, 2, 5);
    Request request = Ask(i == 2 ? 540 : 500, 1, 3);
    if (i == 2) std::copy_n(Ask(500, 1, 3).prompt.begin(), 500, request.prompt.begin());
    return request;
  }

  struct Ended {
    std::vector<int32_t> tokens;
    Status error;
    int ends = 0;
  };
  // Counts allocations inside the engine only; the `failing`-th of them fails, 0: none.
  std::vector<Ended> Run(int64_t failing) {
    allocations = {.left = failing};
    std::vector<Ended> ended(kRequests);
    std::map<RequestId, size_t> index;
    const auto add = [&](size_t i) {
      Request request = Number(i);
      allocations.counts = true;
      const Result<RequestId> id = engine_->Add(std::move(request));
      allocations.counts = false;
      if (id.ok()) {
        index[id.value()] = i;
        if (i != 3) return;
        allocations.counts = true;
        engine_->Cancel(id.value());
        allocations.counts = false;
      } else {
        ended[i].error = id.status();
        ++ended[i].ends;
      }
    };
    add(0);
    add(1);
    for (int step = 0; step <= 4 || engine_->has_work(); ++step) {
      EXPECT_LT(step, 100) << "no progress";
      if (step >= 100) break;
      if (step == 3) add(2);
      if (step == 4) add(3);
      allocations.counts = true;
      Result<std::vector<RequestEvent>> events = engine_->Step();
      allocations.counts = false;
      EXPECT_TRUE(events.ok()) << events.status().message();
      if (!events.ok()) break;
      for (const RequestEvent& event : events.value()) {
        Ended& end = ended[index.at(event.id)];
        if (event.token) end.tokens.push_back(*event.token);
        if (!event.finished) continue;
        ++end.ends;
        end.error = event.error;
      }
    }
    made_ = allocations.made;
    return ended;
  }

  RandomCheckpoint checkpoint_{Shape()};
  std::unique_ptr<Engine> engine_;
  int64_t made_ = 0;
};

TEST_F(BadAlloc, AtAnyAllocationOneRequestFailsAtMost) {
  Run(0);  // makes what lasts
  engine_->DropPrefixes();
  const std::vector<Ended> right = Run(0);
  engine_->DropPrefixes();
  EXPECT_EQ(engine_->kv_bytes_in_use(), 0u);
  ASSERT_GT(made_, 100);
  int64_t failures = 0;
  // Every one of the first, where requests come and prompts are read, then every fifth.
  const int64_t made = made_;
  for (int64_t failing = 1; failing <= made; failing += failing < 200 ? 1 : 5) {
    SCOPED_TRACE(failing);
    const std::vector<Ended> ended = Run(failing);
    int failed = 0;
    for (size_t i = 0; i < kRequests; ++i) {
      EXPECT_EQ(ended[i].ends, 1) << "request " << i;
      if (ended[i].error.ok()) {
        EXPECT_EQ(ended[i].tokens, right[i].tokens) << "request " << i;
      } else {
        ++failed;
        EXPECT_EQ(ended[i].error.code(), Code::kOutOfMemory);
      }
    }
    EXPECT_LE(failed, 1);
    failures += failed;
    engine_->DropPrefixes();
    EXPECT_EQ(engine_->kv_bytes_in_use(), 0u);
    if (HasFailure()) return;
  }
  EXPECT_GT(failures, 0);
  const std::vector<Ended> after = Run(0);
  for (size_t i = 0; i < kRequests; ++i) EXPECT_EQ(after[i].tokens, right[i].tokens);
}

}  // namespace
}  // namespace lserve
