// Integer handles with a generation: a closed one is told from a live one for ever. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace rolltree {

template <class Item>
class HandleTable {
 public:
  std::int64_t add(Item item) {
    std::uint32_t index;
    if (free_.empty()) {
      index = static_cast<std::uint32_t>(slots_.size());
      slots_.push_back({});
    } else {
      index = free_.back();
      free_.pop_back();
    }
    slots_[index].item = std::move(item);
    slots_[index].used = true;
    return (static_cast<std::int64_t>(slots_[index].generation) << 32) | index;
  }
  /// The item, or nullptr when the handle is closed or was never given out.
  Item* get(std::int64_t handle) {
    const auto index = static_cast<std::uint32_t>(handle & 0xFFFFFFFF);
    if (handle < 0 || index >= slots_.size()) return nullptr;
    Slot& slot = slots_[index];
    return slot.used && slot.generation == static_cast<std::uint32_t>(handle >> 32) ? &slot.item : nullptr;
  }
  void remove(std::int64_t handle) {
    Slot& slot = slots_[static_cast<std::uint32_t>(handle & 0xFFFFFFFF)];
    slot.item = Item{};
    slot.used = false;
    slot.generation = (slot.generation + 1) & 0x7FFFFFFF;
    free_.push_back(static_cast<std::uint32_t>(handle & 0xFFFFFFFF));
  }

  /// Calls `visit(item)` for every item.
  template <class Visit>
  void for_each(Visit&& visit) {
    for (Slot& slot : slots_)
      if (slot.used) visit(slot.item);
  }
  /// Closes all handles; none of them is ever given out again.
  void clear() {
    for (std::size_t i = 0; i < slots_.size(); ++i)
      if (slots_[i].used) remove((static_cast<std::int64_t>(slots_[i].generation) << 32) | static_cast<std::int64_t>(i));
  }
  std::size_t size() const { return slots_.size() - free_.size(); }

 private:
  struct Slot {
    Item item{};
    std::uint32_t generation = 0;
    bool used = false;
  };
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
};

}  // namespace rolltree
