// What all trees take in memory, and the work that waits in them: text to subtract, automata to rebuild, pages to give back.
//
// Every call that changes a tree does a slice of what waits, in the order in which it came up: `kSlice` states, and
// `kShare` for each state that the call itself visited. New text asks for at most about twice its own work later, so what
// waits is worked off faster than it comes up, and no call takes long. Slices are counted in states, never in time: the
// same calls have the same effect on any machine. Not thread-safe.
//
// Limits. The shared tree is rebuilt smaller when it passes `kHigh` of its limit, both automata together staying inside
// it. The same holds for a prompt's own tree and the limit of all own trees; evicting whole trees is the caller's business.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <new>
#include <vector>

#include "prompt_tree.h"

namespace rolltree {

/// A tree and what upkeep notes of it.
struct KeptTree : PromptTree {
  using PromptTree::PromptTree;
  static constexpr std::size_t kParts = 8;
  std::size_t part = 0;           // in which rows that are appended at once are taken apart; 0: the shared tree's
  bool shared = false;            // among all prompts
  bool queued = false;            // work waits
  std::size_t noted = 0;          // bytes in the sum
  std::size_t noted_running = 0;  // bytes in the sum over trees with live sequences
};

class Upkeep {
 public:
  static constexpr std::uint64_t kSlice = 12288;               // states: about 1 ms
  static constexpr std::uint64_t kShare = 4;
  static constexpr std::size_t kRelease = std::size_t{4} << 20;  // bytes given back in a call: about 0.3 ms
  static constexpr std::size_t kSmall = 16384;                 // bytes: a tree that is never made smaller
  static constexpr std::size_t kRoom = 40;  // of the limit of own trees: its part that a new automaton may take on top
  static constexpr double kHigh = 0.55, kLow = 0.25;           // of a limit: where to rebuild a tree smaller, and how small

  /// Bytes that all own trees, and the shared one, may take; 0: any. States of a slice, 1 or more.
  void set_limits(std::size_t own, std::size_t shared, std::uint64_t slice) {
    own_limit_ = own;
    shared_limit_ = shared;
    slice_ = std::max<std::uint64_t>(1, slice);
  }

  /// States that a call visits for work that waits.
  std::uint64_t slice() const { return slice_; }
  std::size_t own_bytes() const { return own_; }
  std::size_t shared_bytes() const { return shared_; }
  /// Bytes of old automata that have not been given back yet.
  std::size_t releasing() const { return releasing_; }

  /// Call after every change of a tree.
  void touched(KeptTree& t) { touched(t, waits(t)); }
  /// The same; `waits` as it was right after a change.
  void touched(KeptTree& t, bool waits) {
    (t.shared ? shared_ : own_) += t.bytes() - t.noted;
    t.noted = t.bytes();
    const std::size_t running = t.live() && !t.shared ? t.noted : 0;
    running_ += running - t.noted_running;
    t.noted_running = running;
    if (t.queued || !waits) return;
    waiting_.push_back(&t);
    t.queued = true;
  }
  /// Whether there is work to do in a tree. Reads that tree alone.
  bool waits(const KeptTree& t) const { return t.pending() || wants_build(t); }
  /// Call before a tree is destroyed.
  void removed(KeptTree& t) {
    (t.shared ? shared_ : own_) -= t.noted;
    running_ -= t.noted_running;
    if (t.queued) waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &t));
    std::vector<std::unique_ptr<Automaton>> parts;
    t.surrender(parts);
    for (auto& part : parts) retire(std::move(part));
  }
  /// Starts to rebuild the largest of `trees` with live sequences that can become much smaller: for a caller whose limit is
  /// passed by prompts that all have live sequences. Tries again when another hundredth has come on top.
  template <class Trees>
  void relieve(Trees&& trees) {
    if (own_ < tried_at_ + tried_at_ / 100) return;
    KeptTree* largest = nullptr;
    bool busy = false;  // one at a time: what is being built takes memory, too
    trees([&](KeptTree& t) {
      busy |= t.building();
      if (t.noted > kSmall && (!largest || t.noted > largest->noted) && t.shrinks_to(smallest_room(t))) largest = &t;
    });
    if (!busy) tried_at_ = own_;
    if (busy || !largest) return;
    largest->begin_build(smallest_room(*largest));
    tried_at_ = 0;
    touched(*largest);
  }

  /// Takes an automaton that is of no more use, to give its memory back slowly.
  void retire(std::unique_ptr<Automaton> automaton) {
    if (automaton->bytes() < Memory::kMapped) return;  // freed here
    releasing_ += automaton->bytes();
    old_.push_back(std::move(automaton));
  }

  /// Does a slice of what waits; `visited` states were visited by the call itself.
  void run(std::uint64_t visited) {
    const std::uint64_t quota = slice_ + kShare * visited;
    for (std::uint64_t spent = 0; spent < quota && !waiting_.empty();) spent += work(*waiting_.front(), quota - spent);
    tried_at_ = std::min(tried_at_, own_);  // what could not be made smaller then may be gone
    release();
  }
  /// Does all that waits.
  void finish() {
    while (!waiting_.empty()) work(*waiting_.front(), UINT64_MAX);
    old_.clear();
    releasing_ = 0;
  }

 private:
  std::size_t limit(const KeptTree& t) const { return t.shared ? shared_limit_ : own_limit_; }
  static std::size_t part(double share, std::size_t of) { return static_cast<std::size_t>(share * static_cast<double>(of)); }
  bool high(const KeptTree& t) const { return limit(t) && t.bytes() > std::max(kSmall, part(kHigh, limit(t))); }
  bool wants_build(const KeptTree& t) const {
    return !t.building() && (t.worn() || (high(t) && t.shrinks_to(part(kLow, limit(t)))));
  }
  /// Bytes that a new automaton of `t` may take beside the old one.
  std::size_t room(const KeptTree& t) const {
    if (limit(t) == 0) return PromptTree::kNoLimit;
    if (high(t)) return part(kLow, limit(t));
    if (t.shared) return limit(t) / 3;
    return std::max(limit(t) / kRoom, limit(t) - std::min(limit(t), running_));
  }
  std::size_t smallest_room(const KeptTree& t) const { return std::min(t.noted / 2, limit(t) / kRoom); }

  std::uint64_t work(KeptTree& t, std::uint64_t quota) {
    std::unique_ptr<Automaton> old;
    std::uint64_t spent = 1;
    try {
      if (wants_build(t) && !t.pending()) t.begin_build(room(t));
      spent += t.work(quota, old);
    } catch (const std::bad_alloc&) {  // the tree goes on with what it has; it is tried again after its next change
      t.abandon_build();
      t.queued = false;
      waiting_.pop_front();
      return quota;
    }
    if (old) retire(std::move(old));
    if (!t.pending() && !wants_build(t)) {
      t.queued = false;
      waiting_.pop_front();
    }
    touched(t);
    return spent;
  }

  void release() {
    if (old_.empty()) return;
    Automaton& oldest = *old_.front();
    releasing_ -= oldest.bytes();
    if (oldest.give_back(kRelease)) {
      releasing_ += oldest.bytes();
      return;
    }
    old_.pop_front();
  }

  std::size_t own_limit_ = 0, shared_limit_ = 0;
  std::uint64_t slice_ = kSlice;
  std::size_t own_ = 0, shared_ = 0, running_ = 0, releasing_ = 0, tried_at_ = 0;
  std::deque<KeptTree*> waiting_;
  std::deque<std::unique_ptr<Automaton>> old_;
};

}  // namespace rolltree
