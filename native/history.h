// A prompt's earlier rollouts as a tree of their own, built beside any forest and without its lock; `Forest::adopt` takes it.
//
// For one thread at a time. Text is added as to a forest, one rollout after the other, the oldest first. Nothing waits in
// slices here: what its weights or its window ask for is done at once.
#pragma once

#include <cstdint>
#include <memory>

#include "errors.h"
#include "prompt_tree.h"

namespace rolltree {

class History {
 public:
  History(const TreeOptions& options, std::int64_t version, const std::int32_t* prompt, std::size_t n)
      : tree_(options, version, prompt, n) {}

  /// Begins a rollout after the prompt, or, with `from_prompt` false, at the root; the one before has ended.
  void open(std::int64_t version, bool from_prompt) {
    check();
    end();
    tree_.announce(version);
    settle();
    running_ = tree_.open(version, false, from_prompt);
  }
  /// Appends checked tokens to the rollout that was begun last. O(n * depth) at worst.
  void append(const std::int32_t* tokens, std::size_t n, bool context) {
    if (running_) tree_.append(*running_, tokens, n, context);
  }
  /// Ends the last rollout; the tree is what `Forest::adopt` may take, once.
  PromptTree& whole() {
    check();
    end();
    return tree_;
  }
  /// Says that the tree was taken.
  void taken() { taken_ = true; }

 private:
  void check() const {
    if (taken_) throw ClosedFault("the history was adopted: begin a new one");
  }
  void end() {
    if (running_) tree_.close(running_, true);
    running_ = nullptr;
    settle();
  }
  void settle() {
    std::unique_ptr<Automaton> old;
    if (tree_.worn() && !tree_.building()) tree_.begin_build();
    while (tree_.pending()) tree_.work(UINT64_MAX, old);
  }

  PromptTree tree_;
  Sequence* running_ = nullptr;
  bool taken_ = false;
};

}  // namespace rolltree
