// AlignedArray: scratch memory for kernels, on a cache line, content unspecified.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

namespace lserve {

template <class T>
class AlignedArray {
  static_assert(std::is_trivial_v<T>);

 public:
  explicit AlignedArray(int64_t size)
      : data_(static_cast<T*>(
            ::operator new (static_cast<size_t>(size) * sizeof(T), std::align_val_t{64}))) {}

  T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace lserve
