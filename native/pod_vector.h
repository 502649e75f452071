// A growable array of trivially copyable items that knows its exact size in bytes.
//
// std::vector doubles and cannot realloc; trees are memory-bound, so this grows by a quarter. On Linux large arrays are
// mapped pages of their own: they grow by moving pages instead of copying, and what is given back leaves the process at
// once, so that the size claimed is the size resident. Not thread-safe. Never shrinks except when asked to.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rolltree {

/// Raw memory that can be resized: malloc below `kMapped` bytes, pages of its own from there on. Throws std::bad_alloc.
struct Memory {
  static constexpr std::size_t kMapped = std::size_t{2} << 20;  // few enough maps for a cache of many gigabytes
  static constexpr std::size_t kHeader = 16;  // what malloc adds to a block

#if defined(__linux__)
  static constexpr bool mapped(std::size_t bytes) { return bytes >= kMapped; }
#else
  static constexpr bool mapped(std::size_t) { return false; }
#endif

  /// Moves a block of `before` bytes (null: none) to one of `after` > 0 bytes. (The kernel rounds up to whole pages.)
  static void* resize(void* block, std::size_t before, std::size_t after) {
#if defined(__linux__)
    if (mapped(before) || mapped(after)) {
      if (mapped(before) && mapped(after)) return valid(mremap(block, before, after, MREMAP_MAYMOVE));
      void* made = mapped(after) ? valid(mmap(nullptr, after, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))
                                 : checked(std::malloc(after));
      if (block) std::memcpy(made, block, std::min(before, after));
      release(block, before);
      return made;
    }
#endif
    return checked(std::realloc(block, after));
  }
  static void release(void* block, std::size_t bytes) noexcept {
#if defined(__linux__)
    if (block && mapped(bytes)) return void(munmap(block, bytes));
#endif
    (void)bytes;
    std::free(block);
  }

 private:
  static void* checked(void* block) {
    if (!block) throw std::bad_alloc();
    return block;
  }
#if defined(__linux__)
  static void* valid(void* block) {
    if (block == MAP_FAILED) throw std::bad_alloc();
    return block;
  }
#endif
};

template <class T>
class PodVector {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  PodVector() = default;
  PodVector(const PodVector&) = delete;
  PodVector& operator=(const PodVector&) = delete;
  PodVector(PodVector&& other) noexcept { swap(other); }
  PodVector& operator=(PodVector&& other) noexcept {
    swap(other);
    return *this;
  }
  ~PodVector() { Memory::release(data_, capacity_ * sizeof(T)); }

  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  const T* data() const { return data_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  std::size_t bytes() const { return capacity_ * sizeof(T) + (capacity_ ? Memory::kHeader : 0); }

  void push_back(const T& item) {
    if (size_ == capacity_) {
      const T copy = item;  // `item` may live in this array
      reserve(grown(size_ + 1));
      data_[size_++] = copy;
      return;
    }
    data_[size_++] = item;
  }

  /// Appends `count` items, returns the index of the first; the new items are uninitialised.
  std::size_t extend(std::size_t count) {
    const std::size_t first = size_;
    if (size_ + count > capacity_) reserve(grown(size_ + count));
    size_ += count;
    return first;
  }

  void resize_down(std::size_t size) { size_ = size; }
  void shrink_to_fit() {
    if (size_ < capacity_) reallocate(size_);
  }
  /// Gives up to `bytes` of memory back, from the end, whatever is stored there; returns whether anything is left.
  bool give_back(std::size_t bytes) {
    const std::size_t items = bytes / sizeof(T);
    if (items >= capacity_ || !Memory::mapped((capacity_ - items) * sizeof(T))) {
      clear();
      return false;
    }
    reallocate(capacity_ - items);
    size_ = std::min(size_, capacity_);
    return true;
  }
  void clear() {
    Memory::release(data_, capacity_ * sizeof(T));
    data_ = nullptr;
    size_ = capacity_ = 0;
  }
  void reserve(std::size_t capacity) {
    if (capacity > capacity_) reallocate(capacity);
  }

 private:
  static std::size_t grown(std::size_t needed) { return needed < 8 ? 8 : needed + needed / 4; }

  void reallocate(std::size_t capacity) {
    if (capacity == 0) return clear();
    data_ = static_cast<T*>(Memory::resize(data_, capacity_ * sizeof(T), capacity * sizeof(T)));
    capacity_ = capacity;
  }
  void swap(PodVector& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

  T* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace rolltree
