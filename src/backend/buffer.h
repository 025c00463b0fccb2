// Buffer: memory that a backend's ops may touch, with whoever keeps it alive. Copying a Buffer
// shares the memory. A buffer may also be a view of a mapped file.
#pragma once

#include <cstddef>
#include <memory>

namespace lserve {

struct Buffer {
  std::shared_ptr<void> data;
  size_t bytes = 0;

  template <class T>
  T* as() const {
    return static_cast<T*>(data.get());
  }
};

}  // namespace lserve
