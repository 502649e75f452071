// Hints to the processor about what the ranker is going to read, for several rows at once. They change no result.
#pragma once

#include <array>
#include <cstddef>

#include "automaton.h"
#include "ranker.h"

namespace rolltree {

/// Asks for what a rank reads of one lane, a stage a call: a state's line, its edges, its children and the next suffix. Between
/// two calls memory has time to answer. Reads, and changes nothing.
class Reader {
 public:
  static constexpr int kStages = 5;

  Reader() = default;
  Reader(const Automaton& text, StateId at) : text_(&text), next_(at) { text.expect(at); }
  void go_on() {
    if (now_ != kRoot) text_->expect_children(now_);
    now_ = next_;
    if (now_ == kRoot) return;
    text_->expect_edges(now_);
    next_ = text_->state(now_).link;
    text_->expect(next_);
  }

 private:
  const Automaton* text_ = nullptr;
  StateId now_ = kRoot, next_ = kRoot;
};

/// Readers of several rows side by side.
class ReadAhead {
 public:
  static constexpr std::size_t kMost = 8;  // rows

  void add(const View& view, const Place& place) {
    for (std::size_t lane = 0; lane < 2; ++lane)
      if (view.lanes[lane]) readers_[size_++] = Reader(*view.lanes[lane], place[lane].state);
  }
  void run() {
    for (int stage = 0; stage < Reader::kStages; ++stage)
      for (std::size_t i = 0; i < size_; ++i) readers_[i].go_on();
    size_ = 0;
  }

 private:
  std::array<Reader, 2 * kMost> readers_;
  std::size_t size_ = 0;
};

}  // namespace rolltree
