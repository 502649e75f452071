// A device and its stream for tests of steps: threads that play both. No Python is near.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "../step.h"
#include "check.h"

namespace played {

using namespace rolltree;
using Tokens = std::vector<std::int32_t>;

constexpr std::size_t kRows = 5, kWidth = 4, kStride = 256, kTurns = 4;
constexpr StepCost kCost{1.0, 0.0, 0.02, 0.0, 0.0, 0.0};
const Tokens kStart{1, 2, 3};

/// What the model says next: by the text, now and then something else.
inline std::int32_t next_of(const std::int32_t* text, std::size_t n) { return (text[n - 1] * 3 + text[n - 2] + static_cast<std::int32_t>(n % 17 == 0)) % 11; }

/// Runs what it is given, in order, on a thread of its own, as a stream of a device does.
class Stream {
 public:
  Stream() : thread_([this] { serve(); }) {}
  ~Stream() {
    launch(nullptr, nullptr);
    thread_.join();
  }
  void launch(void (*function)(void*), void* data) {
    {
      std::lock_guard lock(mutex_);
      queue_.emplace_back(function, data);
    }
    wake_.notify_one();
  }

 private:
  void serve() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return !queue_.empty(); });
      const auto [function, data] = queue_.front();
      queue_.pop_front();
      if (!function) return;
      lock.unlock();
      function(data);
      lock.lock();
    }
  }
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::pair<void (*)(void*), void*>> queue_;
  std::thread thread_;
};

/// A device with `kRows` requests: verifies the drafts of the turn before and writes what it samples.
struct Device {
  Tokens text = Tokens(kRows * kStride), lengths = Tokens(kRows, static_cast<std::int32_t>(kStart.size()));
  Tokens drafts = Tokens(kRows * (kWidth + 1));
  void compute(Turn& turn) {
    for (std::size_t b = 0; b < kRows; ++b) {
      std::int32_t* row = text.data() + b * kStride;
      const std::int32_t* draft = drafts.data() + b * (kWidth + 1);
      auto n = static_cast<std::size_t>(lengths[b]);
      std::int32_t count = 0;
      do row[n] = next_of(row, n);
      while (++n, ++count, count <= draft[0] && draft[count] == row[n - 1]);
      turn.counts[b] = count;
      turn.lengths[b] = lengths[b] = static_cast<std::int32_t>(n);
    }
  }
  /// The copy of the drafts, behind the turn.
  void fetch(const Turn& turn) { std::copy_n(turn.drafts, drafts.size(), drafts.begin()); }
};

/// A forest, its requests, their steps.
struct Engine {
  Forest forest{TreeOptions{16, 8, 0.9, 16}, 64};
  std::int64_t tree = forest.add_tree(kStart.data(), kStart.size(), 0);
  Tokens buffers = Tokens(kTurns * Step::buffer_size(kRows, kWidth));
  Step step{forest, kRows, kWidth, kTurns, buffers.data()};
  Device device;
  std::vector<std::int64_t> sessions = std::vector<std::int64_t>(kRows);
  Tokens ends = Tokens(kRows, static_cast<std::int32_t>(kStride)), stops{};
  bool budget = true;
  std::size_t room = 9;

  Engine() {
    for (std::size_t b = 0; b < kRows; ++b) {
      sessions[b] = open();
      std::copy(kStart.begin(), kStart.end(), device.text.begin() + static_cast<std::ptrdiff_t>(b * kStride));
      device.text[b * kStride + 2] = static_cast<std::int32_t>(3 + b % 2);
    }
  }
  std::int64_t open() { return forest.open(tree, 0, false, true, {}); }
  /// Fills the next turn in and hands it over.
  Turn& prepare() {
    Turn* turn = step.next();
    CHECK(turn);
    turn->sessions = sessions;
    turn->ends = ends;
    turn->stops.clear();
    for (std::size_t b = 0; b < kRows; ++b) {
      turn->slots[b] = static_cast<std::int32_t>(b);
      turn->prompts[b] = static_cast<std::int32_t>(kStart.size());
      turn->limits[b] = b == 3 ? 0 : static_cast<std::int32_t>(kWidth);
      turn->stops.insert(turn->stops.end(), stops.begin(), stops.end());
      turn->stop_ends[b] = static_cast<std::int32_t>(turn->stops.size());
    }
    StepPlan plan;
    plan.rows = kRows;
    plan.text = device.text.data();
    plan.slots = kRows;
    plan.stride = kStride;
    plan.vocabulary = 11;
    plan.room = room;
    plan.budget = budget;
    plan.cost = kCost;
    step.hand_over(plan);
    return *turn;
  }
  /// One step on this thread.
  Turn& play() {
    Turn& turn = prepare();
    device.compute(turn);
    step.run(turn);
    device.fetch(turn);
    return turn;
  }
  std::int64_t known(std::size_t b) { return static_cast<std::int64_t>(kStart.size() + forest.generated(sessions[b])); }
};

}  // namespace played
