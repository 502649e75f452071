// A step as one call: the drafts are those of the single calls, a failure costs a step its drafts, what it missed is caught
// up, nothing enters behind an end.
#include <cstdio>
#include <functional>

#include "played.h"

using namespace played;

namespace {

constexpr std::size_t kSteps = 60;

/// The same by the calls of the forest: drafts must be equal in every step.
void drafts_are_those_of_the_single_calls() {
  Engine engine;
  Forest other(TreeOptions{16, 8, 0.9, 16}, 64);
  const auto tree = other.add_tree(kStart.data(), kStart.size(), 0);
  std::vector<std::int64_t> sessions;
  for (std::size_t b = 0; b < kRows; ++b) sessions.push_back(other.open(tree, 0, false, true, {}));
  Tokens tokens(kRows * kWidth), parents(kRows * kWidth), lengths(kRows), verified(kRows), rows(kRows, -1), accepted(kRows);
  std::vector<float> survival(kRows * kWidth);
  std::vector<std::uint8_t> source(kRows * kWidth);
  const DraftArrays d{kRows, kWidth, tokens.data(), parents.data(), survival.data(), source.data(), lengths.data()};
  for (std::size_t i = 0; i < kSteps && engine.device.lengths[0] < 200; ++i) {
    const Tokens before = engine.device.lengths;
    const Turn& turn = engine.play();
    Tokens emitted, offsets{0};
    for (std::size_t b = 0; b < kRows; ++b) {
      const auto row = engine.device.text.begin() + static_cast<std::ptrdiff_t>(b * kStride);
      emitted.insert(emitted.end(), row + before[b], row + engine.device.lengths[b]);
      offsets.push_back(static_cast<std::int32_t>(emitted.size()));
      CHECK(turn.taken[b] == engine.device.lengths[b] - before[b]);
    }
    CHECK(turn.tokens == emitted);
    other.settle(sessions.data(), kRows, d, rows.data(), verified.data(), emitted.data(), emitted.size(), offsets.data(), accepted.data());
    other.draft_batch(sessions.data(), turn.limits.data(), DraftOptions{}, d);
    double first = 0;
    for (std::size_t b = 0; b < kRows; ++b) first += lengths[b] ? static_cast<double>(survival[b * kWidth]) : 0.0;
    CHECK(turn.gain[0] == first);
    allocate(survival.data(), lengths.data(), kRows, kWidth, kCost, verified.data());
    std::size_t sum = 0, ours = 0;
    for (std::size_t b = 0; b < kRows; ++b) {
      rows[b] = static_cast<std::int32_t>(b);
      const std::int32_t* mine = turn.drafts + b * (kWidth + 1);
      sum += static_cast<std::size_t>(verified[b]);
      ours += static_cast<std::size_t>(mine[0]);
      CHECK(mine[0] <= verified[b]);
      verified[b] = mine[0];
      CHECK(std::equal(mine + 1, mine + 1 + mine[0], tokens.data() + b * kWidth));
    }
    CHECK(ours == std::min<std::size_t>(sum, 9));
  }
  CHECK(engine.step.sums().accepted > 20);
  CHECK(engine.step.sums().failed == 0);
  CHECK(engine.forest.check(engine.tree).empty());
}

/// A turn that fails before anything has changed has no drafts, and the next one has its text.
void a_failure_costs_a_step_its_drafts() {
  Engine engine;
  for (std::size_t i = 0; i < 10; ++i) engine.play();
  Turn& turn = engine.prepare();
  turn.slots[0] = 99;
  engine.device.compute(turn);
  engine.step.run(turn);
  CHECK(turn.outcome == StepOutcome::unchanged && turn.error[0]);
  CHECK(turn.tokens.size() == 0 || engine.step.sums().failed == 1);
  for (std::size_t b = 0; b < kRows; ++b) CHECK(turn.drafts[b * (kWidth + 1)] == 0 && engine.known(b) < engine.device.lengths[b]);
  engine.device.fetch(turn);
  const Turn& next = engine.play();
  CHECK(next.outcome == StepOutcome::whole);
  for (std::size_t b = 0; b < kRows; ++b) CHECK(next.taken[b] > next.counts[b] && engine.known(b) == next.lengths[b]);
  CHECK(engine.step.sums().failed == 1);
  CHECK(engine.forest.check(engine.tree).empty());
}

/// Neither text nor a draft for a session that was closed; the others have theirs.
void a_closed_session_costs_nothing() {
  Engine engine;
  for (std::size_t i = 0; i < 20; ++i) engine.play();
  engine.forest.close(engine.sessions[2], false);
  std::size_t drafted = 0;
  for (std::size_t i = 0; i < 5; ++i) {
    const Turn& turn = engine.play();
    CHECK(turn.outcome == StepOutcome::whole && turn.taken[2] == 0 && turn.drafts[2 * (kWidth + 1)] == 0);
    for (std::size_t b = 0; b < kRows; ++b) drafted += static_cast<std::size_t>(turn.drafts[b * (kWidth + 1)]);
  }
  CHECK(drafted > 0);
  engine.sessions[2] = engine.open();  // anew: its whole text comes in with the next turn
  CHECK(engine.play().taken[2] == engine.device.lengths[2] - static_cast<std::int32_t>(kStart.size()));
}

/// Text ends with the first stop token that counts, or at its end; a row that has ended has no draft, in no later turn.
void nothing_enters_behind_an_end() {
  Engine engine;
  engine.stops = {4, 7};
  engine.ends[1] = 40;
  for (std::size_t i = 0; i < 40; ++i) {
    Turn& turn = engine.prepare();
    turn.least[0] = 30;
    engine.device.compute(turn);
    engine.step.run(turn);
    engine.device.fetch(turn);
    for (std::size_t b = 0; b < kRows; ++b) {
      const std::int32_t* text = engine.device.text.data() + b * kStride;
      std::int64_t end = 3;
      const auto counts = [&](std::int64_t n) { return n > 3 && n >= turn.least[b] && (text[n - 1] == 4 || text[n - 1] == 7); };
      while (end < turn.lengths[b] && end < engine.ends[b] && !counts(end)) ++end;
      CHECK(engine.known(b) == end);
      CHECK(((turn.marks[b] & kEnded) != 0) == counts(end));
      if (counts(end) || end == engine.ends[b]) CHECK(turn.drafts[b * (kWidth + 1)] == 0);
    }
  }
  CHECK(engine.known(0) >= 30 && engine.known(1) <= 40);
}

/// A text that is much behind comes in over several turns, a bounded part in each, and is not drafted for meanwhile.
void catching_up_is_bounded() {
  constexpr std::size_t kLong = 6000;
  Forest forest(TreeOptions{16, 8, 0.9, 16});
  const auto tree = forest.add_tree(kStart.data(), kStart.size(), 0);
  Tokens buffers(Step::buffer_size(2, kWidth)), text(2 * kLong);
  for (std::size_t i = 2; i < text.size(); ++i) text[i] = next_of(text.data(), i);
  Step step(forest, 2, kWidth, 1, buffers.data());
  const std::vector<std::int64_t> sessions{forest.open(tree, 0, false, true, {}), forest.open(tree, 0, false, true, {})};
  std::size_t turns = 0;
  for (std::int32_t length = 5000; forest.generated(sessions[0]) < 4997; ++length, ++turns) {
    Turn& turn = *step.next();
    turn.sessions = sessions;
    turn.slots = {0, 1};
    turn.prompts = {3, 3};
    turn.ends = turn.limits = {static_cast<std::int32_t>(kLong), static_cast<std::int32_t>(kLong)};
    StepPlan plan;
    plan.rows = plan.slots = 2;
    plan.text = text.data();
    plan.stride = kLong;
    plan.vocabulary = 11;
    plan.room = 9;
    step.hand_over(plan);
    turn.counts[0] = turn.counts[1] = 1;
    turn.lengths[0] = length;
    turn.lengths[1] = static_cast<std::int32_t>(4 + turns);
    step.run(turn);
    CHECK(turn.tokens.size() <= Step::kCatchUp + 2 * (1 + kWidth));
    CHECK(turn.taken[1] == 1 && (turns < 4 || turn.drafts[1 + kWidth] > 0));
    CHECK(turn.drafts[0] == 0 || forest.generated(sessions[0]) + 3 == static_cast<std::uint64_t>(length));
  }
  CHECK(turns == 5);
}

/// The ring: no turn while all are in flight, none out of its order, none to read that is not done or is in flight again.
void the_rules_of_the_ring_are_checked() {
  Engine engine;
  const auto refused = [](const std::function<void()>& call) {
    try {
      call();
    } catch (const InputFault&) {
      return true;
    }
    return false;
  };
  std::vector<Turn*> turns;
  for (std::size_t i = 0; i < kTurns; ++i) turns.push_back(&engine.prepare());
  CHECK(!engine.step.next());
  CHECK(refused([&] { engine.step.hand_over({}); }));
  CHECK(refused([&] { (void)engine.step.result(1); }));
  engine.step.take_back();
  CHECK(engine.step.next() == turns[3]);
  engine.prepare();
  for (Turn* turn : turns) engine.device.compute(*turn);
  engine.step.run(*turns[1]);  // before turn 1
  CHECK(turns[1]->outcome == StepOutcome::unchanged && engine.step.sums().failed == 1);
  CHECK(refused([&] { (void)engine.step.result(0); }));
  CHECK(&engine.step.result(1) == turns[0]);
  engine.prepare();
  CHECK(refused([&] { (void)engine.step.result(1); }));
}

}  // namespace

int main() {
  drafts_are_those_of_the_single_calls();
  a_failure_costs_a_step_its_drafts();
  a_closed_session_costs_nothing();
  nothing_enters_behind_an_end();
  catching_up_is_bounded();
  the_rules_of_the_ring_are_checked();
  std::printf("step_test: 6 passed, 0 failed\n");
  return 0;
}
