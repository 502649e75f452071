// A growable array of trivially copyable items that knows its exact size in bytes.
//
// std::vector doubles and cannot realloc; trees are memory-bound, so this grows by a quarter and lets the C allocator
// move pages instead of copying them. Not thread-safe. Never shrinks except by `shrink_to_fit` and `clear`.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

namespace rolltree {

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
  ~PodVector() { std::free(data_); }

  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  const T* data() const { return data_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  std::size_t bytes() const { return capacity_ * sizeof(T); }

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
  void clear() {
    std::free(data_);
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
    void* moved = std::realloc(static_cast<void*>(data_), capacity * sizeof(T));
    if (!moved) throw std::bad_alloc();
    data_ = static_cast<T*>(moved);
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
