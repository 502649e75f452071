// A step as one call, with threads that play host and stream: the drafts are those of the single calls, a failure costs a
// step its drafts, what it missed is caught up. No Python is near.
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "../step.h"
#include "check.h"

using namespace rolltree;
using Tokens = std::vector<std::int32_t>;

namespace {

constexpr std::size_t kRows = 5, kWidth = 4, kSteps = 60, kStride = 256;
constexpr StepCost kCost{1.0, 0.0, 0.02, 0.0, 0.0, 0.0};
const Tokens kPrompt{1, 2, 3};

/// What the model says next: by the text, now and then something else.
std::int32_t next_of(const std::int32_t* text, std::size_t n) { return (text[n - 1] * 3 + text[n - 2] + static_cast<std::int32_t>(n % 17 == 0)) % 11; }

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

/// A device with `kRows` requests: verifies drafts and writes what it samples.
struct Device {
  Step& step;
  Tokens text = Tokens(kRows * kStride);
  void compute() {
    for (std::size_t b = 0; b < kRows; ++b) {
      std::int32_t* row = text.data() + b * kStride;
      const std::int32_t* draft = step.drafts.data() + b * (kWidth + 1);
      auto n = static_cast<std::size_t>(step.lengths[b]);
      std::int32_t count = 0;
      do row[n] = next_of(row, n);
      while (++n, ++count, count <= draft[0] && draft[count] == row[n - 1]);
      step.counts[b] = count;
      step.lengths[b] = static_cast<std::int32_t>(n);
    }
  }
};

void run_the_steps(const std::function<void(Forest&, Step&, Device&)>& play) {
  Forest forest(TreeOptions{16, 8, 0.9, 16}, 64);
  const auto tree = forest.add_tree(kPrompt.data(), kPrompt.size(), 0);
  Step step(forest, kRows, kWidth);
  Device device{step};
  for (std::size_t b = 0; b < kRows; ++b) {
    step.sessions[b] = forest.open(tree, 0, false, true, {});
    step.slots[b] = static_cast<std::int32_t>(b);
    step.known[b] = step.lengths[b] = static_cast<std::int32_t>(kPrompt.size());
    step.ends[b] = static_cast<std::int32_t>(kStride);
    step.limits[b] = b == 3 ? 0 : static_cast<std::int32_t>(kWidth);
    std::copy(kPrompt.begin(), kPrompt.end(), device.text.begin() + static_cast<std::ptrdiff_t>(b * kStride));
    device.text[b * kStride + 2] = static_cast<std::int32_t>(3 + b % 2);
  }
  Step::Plan plan;
  plan.rows = kRows;
  plan.text = device.text.data();
  plan.slots = kRows;
  plan.stride = kStride;
  plan.vocabulary = 11;
  plan.room = 9;
  plan.budget = true;
  plan.cost = kCost;
  step.begin(plan);
  play(forest, step, device);
  CHECK(forest.check(tree).empty());
}

/// The same by the calls of the forest: drafts must be equal in every step.
void drafts_are_those_of_the_single_calls() {
  run_the_steps([](Forest&, Step& step, Device& device) {
    Forest other(TreeOptions{16, 8, 0.9, 16}, 64);
    const auto tree = other.add_tree(kPrompt.data(), kPrompt.size(), 0);
    std::vector<std::int64_t> sessions;
    for (std::size_t b = 0; b < kRows; ++b) sessions.push_back(other.open(tree, 0, false, true, {}));
    Tokens tokens(kRows * kWidth), parents(kRows * kWidth), lengths(kRows), verified(kRows), rows(kRows, -1), accepted(kRows);
    std::vector<float> survival(kRows * kWidth);
    std::vector<std::uint8_t> source(kRows * kWidth);
    const DraftArrays d{kRows, kWidth, tokens.data(), parents.data(), survival.data(), source.data(), lengths.data()};
    for (std::size_t i = 0; i < kSteps && step.lengths[0] < 200; ++i) {
      const Tokens before = step.lengths;
      device.compute();
      Tokens emitted, offsets{0};
      for (std::size_t b = 0; b < kRows; ++b) {
        const auto row = device.text.begin() + static_cast<std::ptrdiff_t>(b * kStride);
        emitted.insert(emitted.end(), row + before[b], row + step.lengths[b]);
        offsets.push_back(static_cast<std::int32_t>(emitted.size()));
      }
      other.settle(sessions.data(), kRows, d, rows.data(), verified.data(), emitted.data(), emitted.size(), offsets.data(), accepted.data());
      DraftOptions rule;
      other.draft_batch(sessions.data(), step.limits.data(), rule, d);
      allocate(survival.data(), lengths.data(), kRows, kWidth, kCost, verified.data());
      step.run();
      std::size_t sum = 0, ours = 0;
      for (std::size_t b = 0; b < kRows; ++b) {
        rows[b] = static_cast<std::int32_t>(b);
        const std::int32_t* mine = step.drafts.data() + b * (kWidth + 1);
        sum += static_cast<std::size_t>(verified[b]);
        ours += static_cast<std::size_t>(mine[0]);
        CHECK(mine[0] <= verified[b]);
        verified[b] = mine[0];
        CHECK(std::equal(mine + 1, mine + 1 + mine[0], tokens.data() + b * kWidth));
      }
      CHECK(ours == std::min<std::size_t>(sum, 9));
    }
    CHECK(step.sums().accepted > 20);
    CHECK(step.sums().failed == 0);
  });
}

/// The host hands steps over and looks at what came out only later; text and drafts are as in one thread.
void a_stream_runs_the_steps() {
  Tokens alone, streamed;
  run_the_steps([&](Forest&, Step& step, Device& device) {
    for (std::size_t i = 0; i < 30; ++i) device.compute(), step.run();
    alone = device.text;
  });
  run_the_steps([&](Forest& forest, Step& step, Device& device) {
    {
      Stream stream;
      for (std::size_t i = 0; i < 30; ++i) {
        stream.launch([](void* d) { static_cast<Device*>(d)->compute(); }, &device);
        stream.launch(&Step::enter, &step);
        (void)forest.bytes();  // the host works on the same trees meanwhile
      }
      while (step.done() < 30) std::this_thread::yield();
    }
    streamed = device.text;
    CHECK(step.sums().failed == 0);
  });
  CHECK(alone == streamed);
}

/// A closed session fails its step: no drafts; when it is gone the others catch up, nothing is missing or twice.
void a_failure_costs_a_step_its_drafts() {
  run_the_steps([](Forest& forest, Step& step, Device& device) {
    for (std::size_t i = 0; i < 10; ++i) device.compute(), step.run();
    const std::int64_t closed = step.sessions[2];
    forest.close(closed, false);
    device.compute();
    step.run();
    CHECK(step.sums().failed == 1);
    for (std::size_t b = 0; b < kRows; ++b) CHECK(step.drafts[b * (kWidth + 1)] == 0);
    step.sessions[2] = -1;
    for (std::size_t i = 0; i < 10; ++i) device.compute(), step.run();
    CHECK(step.sums().failed == 1);
    for (std::size_t b = 0; b < kRows; ++b) {
      if (b == 2) continue;
      CHECK(step.known[b] == step.lengths[b]);
      CHECK(forest.generated(step.sessions[b]) == static_cast<std::uint64_t>(step.lengths[b]) - kPrompt.size());
    }
    step.slots[0] = 99;
    device.compute();
    step.run();
    CHECK(step.sums().failed == 2);
  });
}

}  // namespace

int main() {
  drafts_are_those_of_the_single_calls();
  a_stream_runs_the_steps();
  a_failure_costs_a_step_its_drafts();
  std::printf("step_test: 3 passed, 0 failed\n");
  return 0;
}
