// Steps in a stream while the host runs ahead, under the thread sanitizer: two turns in flight, sessions that the host opens,
// closes and looks at meanwhile. Text and drafts are as in one thread.
#include <cstdio>

#include "played.h"

using namespace played;

namespace {

constexpr std::size_t kSteps = 40;

/// What the host launches for a step: the device's work, the turn, the copy of its drafts.
struct Launch {
  Engine* engine;
  Turn* turn;
  static void compute(void* at) {
    auto* launch = static_cast<Launch*>(at);
    launch->engine->device.compute(*launch->turn);
  }
  static void fetch(void* at) {
    auto* launch = static_cast<Launch*>(at);
    launch->engine->device.fetch(*launch->turn);
  }
};

void launch(Stream& stream, Launch& one) {
  stream.launch(&Launch::compute, &one);
  stream.launch(&Step::enter, one.turn);
  stream.launch(&Launch::fetch, &one);
}

/// At most `kTurns - 1` steps ahead, as an engine that waits for the oldest of its outputs.
void wait_for(const Step& step, std::uint64_t number) {
  while (step.done() < number) std::this_thread::yield();
}

void a_host_that_runs_ahead_has_the_same_text() {
  Engine alone, streamed;
  std::vector<Tokens> taken;
  for (std::size_t i = 0; i < kSteps; ++i) taken.push_back(alone.play().tokens);
  std::vector<Launch> launches(kSteps);
  {
    Stream stream;
    for (std::size_t i = 0; i < kSteps; ++i) {
      if (i >= kTurns) {
        wait_for(streamed.step, i - kTurns + 1);
        CHECK(streamed.step.result(i - kTurns + 1).tokens == taken[i - kTurns]);  // read before it is filled in anew
      }
      launches[i] = {&streamed, &streamed.prepare()};
      launch(stream, launches[i]);
      (void)streamed.forest.bytes();  // the host works on the same trees meanwhile
    }
    wait_for(streamed.step, kSteps);
  }
  CHECK(alone.device.text == streamed.device.text);
  CHECK(streamed.step.sums().accepted > 10 && streamed.step.sums().failed == 0);
}

/// Whatever moment a session is closed at, its row has no text from then on, and no turn fails.
void sessions_are_closed_and_opened_in_flight() {
  Engine engine;
  engine.budget = false;
  std::vector<Launch> launches(kSteps);
  {
    Stream stream;
    for (std::size_t i = 0; i < kSteps; ++i) {
      if (i >= kTurns) wait_for(engine.step, i - kTurns + 1);
      launches[i] = {&engine, &engine.prepare()};
      launch(stream, launches[i]);
      const std::size_t row = i % kRows;
      engine.forest.close(engine.sessions[row], i % 2);
      engine.sessions[row] = engine.open();
    }
    wait_for(engine.step, kSteps);
  }
  for (std::size_t b = 0; b < kRows; ++b) engine.play();
  CHECK(engine.step.sums().failed == 0);
  for (std::size_t b = 0; b < kRows; ++b) CHECK(engine.known(b) == engine.device.lengths[b]);
  CHECK(engine.forest.check(engine.tree).empty());
}

}  // namespace

int main() {
  a_host_that_runs_ahead_has_the_same_text();
  for (int i = 0; i < 20; ++i) sessions_are_closed_and_opened_in_flight();
  std::printf("stream_test: 2 passed, 0 failed\n");
  return 0;
}
