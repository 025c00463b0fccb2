// WithinMemory: where std::bad_alloc becomes a Status. Used by the engine, around what it does for
// requests, by threads that work for it, and where state has to be put back; what else lies below
// only has to stay whole when it is left.
#pragma once

#include <new>

#include "base/status.h"

namespace lserve {

// What `f`, which returns a Status, says; kOutOfMemory if it could not allocate.
template <class F>
Status WithinMemory(F&& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    return Status(Code::kOutOfMemory,
                  "the system gives this process no more memory, expected some beside the KV "
                  "cache; lower --kv-cache-bytes or --max-num-seqs, or free memory");
  }
}

}  // namespace lserve
