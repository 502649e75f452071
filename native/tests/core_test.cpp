// What the property tests do not reach: long degenerate texts, many siblings, handles, calibration, noise.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "../forest.h"
#include "check.h"

using namespace rolltree;
using Tokens = std::vector<std::int32_t>;

namespace {

TreeOptions plain() { return TreeOptions{64, 64, 1.0, 16}; }

TreeStats indexed(const Tokens& text) {
  Forest forest(TreeOptions{64, 64, 1.0, 16});
  const auto tree = forest.add_tree(nullptr, 0, 0);
  const auto session = forest.open(tree, 0, false, true, {});
  forest.append(session, text.data(), text.size(), false);
  CHECK(forest.check(tree).empty());
  return forest.stats(tree);
}

Tokens periodic(std::size_t n, std::int32_t period) {
  Tokens out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<std::int32_t>(i) % period;
  return out;
}
Tokens fibonacci(std::size_t n) {
  Tokens a{0}, b{0, 1};
  while (b.size() < n) {
    Tokens next = b;
    next.insert(next.end(), a.begin(), a.end());
    a = b;
    b = next;
  }
  b.resize(n);
  return b;
}
Tokens de_bruijn(std::int32_t letters, std::size_t order) {  // every word of `order` letters once (Lyndon words)
  Tokens a(static_cast<std::size_t>(letters) * order, 0), out;
  std::function<void(std::size_t, std::size_t)> grow = [&](std::size_t t, std::size_t p) {
    if (t > order) {
      if (order % p == 0) out.insert(out.end(), a.begin() + 1, a.begin() + static_cast<std::ptrdiff_t>(p) + 1);
      return;
    }
    a[t] = a[t - p];
    grow(t + 1, p);
    for (std::int32_t j = a[t - p] + 1; j < letters; ++j) {
      a[t] = j;
      grow(t + 1, t);
    }
  };
  grow(1, 1);
  return out;
}

void degenerate_texts_stay_small() {
  const std::size_t n = 1000000;
  for (const Tokens& text : {periodic(n, 1), periodic(n, 2), periodic(n, 7), fibonacci(n)}) {
    const TreeStats s = indexed(text);
    CHECK(s.tokens == n);
    CHECK(s.states < 2000);
  }
  for (const Tokens& text : {de_bruijn(2, 17), de_bruijn(10, 5)}) {
    const TreeStats s = indexed(text);
    CHECK(s.states <= 2 * text.size() + 1);
    CHECK(s.bytes <= 120 * text.size());
  }
}

void siblings_share() {
  Forest forest(plain());
  const Tokens prompt = periodic(50, 7), rollout = de_bruijn(10, 3);
  const auto tree = forest.add_tree(prompt.data(), prompt.size(), 0);
  std::vector<std::int64_t> sessions;
  for (int i = 0; i < 1024; ++i) sessions.push_back(forest.open(tree, 0, false, true, {}));
  for (std::int32_t token : rollout)
    for (auto s : sessions) forest.append(s, &token, 1, false);
  CHECK(forest.check(tree).empty());
  CHECK(forest.count(tree, rollout.data(), 64) == 1024 * kUnit);
  CHECK(forest.stats(tree).states < 3000);
  for (auto s : sessions) forest.close(s, false);
  CHECK(forest.count(tree, rollout.data(), 64) == 0);
  CHECK(forest.check(tree).empty());
  CHECK(forest.stats(tree).states < 100);  // rebuilt: only the prompt is left
}

void window_bounds_memory() {
  Forest forest(TreeOptions{64, 4, 0.9, 16});
  const auto tree = forest.add_tree(nullptr, 0, 0);
  std::size_t most = 0;
  std::mt19937 random(1);
  for (std::int32_t i = 0; i < 400; ++i) {
    Tokens text(1000);
    for (auto& t : text) t = static_cast<std::int32_t>(random() % 50000);
    const auto s = forest.open(tree, i, false, true, {});
    forest.append(s, text.data(), text.size(), false);
    forest.close(s, true);
    if (i >= 8) most = std::max(most, forest.stats(tree).bytes);
    CHECK(forest.stats(tree).kept <= 4);
  }
  CHECK(forest.check(tree).empty());
  CHECK(most < 4 * 1000 * 70 * 3);  // what is kept, as much dead text, and growth
}

template <class Fault>
bool throws(const std::function<void()>& f) {
  try {
    f();
  } catch (const Fault&) {
    return true;
  }
  return false;
}

void handles_are_never_reused() {
  Forest forest(plain());
  const Tokens good{1, 2, 3}, bad{1, -2, 3};
  const auto tree = forest.add_tree(good.data(), 3, 0);
  const auto session = forest.open(tree, 0, false, true, {});
  CHECK(throws<InputFault>([&] { forest.append(session, bad.data(), 3, false); }));
  CHECK(forest.generated(session) == 0);
  CHECK(throws<InputFault>([&] { forest.remove_tree(tree); }));
  forest.close(session, true);
  CHECK(throws<ClosedFault>([&] { forest.append(session, good.data(), 3, false); }));
  CHECK(forest.open(tree, 0, false, true, {}) != session);
  CHECK(throws<ClosedFault>([&] { forest.close(session, true); }));
  CHECK(throws<ClosedFault>([&] { forest.check(12345); }));
  CHECK(throws<ClosedFault>([&] { forest.check(-1); }));
  CHECK(throws<InputFault>([] { Forest f(TreeOptions{1, 64, 1.0, 16}); }));
}

void versions_weigh() {
  Forest forest(TreeOptions{8, 1000, 0.5, 16});
  const auto tree = forest.add_tree(nullptr, 0, 0);
  for (std::int64_t version = 0; version < 40; ++version) {
    const Tokens text{static_cast<std::int32_t>(version), 99};
    const auto s = forest.open(tree, version, false, true, {});
    forest.append(s, text.data(), 2, false);
    forest.close(s, true);
  }
  CHECK(forest.check(tree).empty());
  auto weight = [&](std::int32_t version) { return forest.count(tree, &version, 1); };
  CHECK(weight(39) == 2 * weight(38) && weight(38) == 2 * weight(37));
  CHECK(weight(0) == 1);
}

Tokens noise(std::mt19937& random, std::size_t n, std::uint32_t vocabulary) {
  Tokens out(n);
  for (auto& t : out) t = static_cast<std::int32_t>(random() % vocabulary);
  return out;
}
void rollout(Forest& forest, std::int64_t tree, const Tokens& text, bool keep = true) {
  const auto s = forest.open(tree, 0, false, true, {});
  forest.append(s, text.data(), text.size(), false);
  forest.close(s, keep);
}

/// Counts have 32 bits: text beyond what they hold is counted in coarser units, and nothing is refused.
void counts_never_overflow() {
  TreeOptions options = plain();
  options.most = 64 * 20000;
  Forest forest(options, 2048);
  const auto tree = forest.add_tree(nullptr, 0, 0);
  std::vector<std::int64_t> live;
  const Tokens text = periodic(3000, 7);
  for (int i = 0; i < 16; ++i) {  // 48,000 tokens of running text, 64 units each
    live.push_back(forest.open(tree, 0, false, true, {}));
    forest.append(live.back(), text.data(), text.size(), false);
    CHECK(forest.check(tree).empty() && forest.check_shared().empty());
  }
  const std::uint32_t counted = forest.count(tree, text.data(), 5), expected = 16 * 64 * (3000 / 7);
  CHECK(counted > expected * 9 / 10 && counted < expected * 11 / 10);
  for (auto s : live) forest.close(s, false);
  forest.finish();
  CHECK(forest.count(tree, text.data(), 5) == 0);
}

/// Neither a long text that leaves nor a rebuild is done in one call; what waits is done in the calls that follow.
void long_work_is_done_in_slices() {
  std::mt19937 random(5);
  Forest forest(plain(), 64);
  const auto tree = forest.add_tree(nullptr, 0, 0);
  const Tokens gone = noise(random, 40000, 5000), kept = noise(random, 30000, 5000), one{1};
  rollout(forest, tree, kept);
  CHECK(forest.count(tree, gone.data(), 3) == 0);
  rollout(forest, tree, gone, false);
  CHECK(forest.stats(tree).pending);
  CHECK(forest.count(tree, gone.data() + 39000, 8) > 0);  // not yet
  const auto live = forest.open(tree, 0, false, true, {});
  int calls = 0;
  for (; forest.stats(tree).pending || forest.shared_stats().pending; ++calls) {
    CHECK(calls < 1000);
    forest.append(live, one.data(), 1, false);
    CHECK(forest.check(tree).empty() && forest.check_shared().empty());
  }
  CHECK(calls > 10);
  CHECK(forest.count(tree, gone.data() + 39000, 8) == 0);
  CHECK(forest.count(tree, kept.data(), 8) == 64);
  CHECK(forest.stats(tree).states < 80000);  // built anew from what stays
}

/// With every prompt closed or running, bytes stay inside their limits, and no tree is left without text for another.
void limits_hold() {
  std::mt19937 random(6);
  const Limits limits{8 << 20, 2 << 20};
  Forest forest(TreeOptions{64, 64, 0.9, 16}, 2048, limits);
  const auto one = forest.add_tree(nullptr, 0, 0);
  const auto reader = forest.open(one, 0, true, true, {});  // never evicted
  std::size_t most_own = 0, most_shared = 0;
  for (int i = 0; i < 300; ++i) {  // 64 rollouts of 8,000 tokens would take 30 MB
    rollout(forest, one, noise(random, 8000, 50000));
    most_own = std::max(most_own, forest.own_bytes());
    most_shared = std::max(most_shared, forest.shared_stats().bytes);
  }
  CHECK(most_own <= limits.own * 105 / 100);
  CHECK(most_shared <= limits.shared * 105 / 100);
  CHECK(forest.stats(one).kept >= 4);
  CHECK(forest.shared_stats().kept >= 1);
  CHECK(forest.check(one).empty() && forest.check_shared().empty());
  forest.close(reader, false);
}

/// Prompts that are all live share the limit: each call of `relieve` starts to make the largest of them smaller.
void live_prompts_share_the_limit() {
  std::mt19937 random(7);
  const Limits limits{6 << 20, 1 << 20};
  Forest forest(plain(), 0, limits);
  std::vector<std::int64_t> trees;
  for (std::int32_t p = 0; p < 8; ++p) {
    trees.push_back(forest.add_tree(&p, 1, 0));
    forest.open(trees.back(), 0, true, true, {});
  }
  const auto running = forest.open(trees[0], 0, false, true, {});
  const Tokens much = noise(random, 300000, 50000);
  forest.append(running, much.data(), much.size(), false);
  CHECK(forest.own_bytes() > 2 * limits.own);
  forest.relieve();  // in vain: running text stays. That must not be remembered when it has left
  forest.close(running, false);
  for (int i = 0; i < 3000 && forest.own_bytes() > limits.own / 2; ++i) rollout(forest, trees[1], {1});
  CHECK(forest.own_bytes() < limits.own / 2);
  std::size_t most = 0;
  for (int i = 0; i < 600; ++i) {
    rollout(forest, trees[random() % trees.size()], noise(random, 1000, 50000));
    if (forest.own_bytes() > limits.own * 95 / 100) forest.relieve();
    most = std::max(most, forest.own_bytes());
  }
  CHECK(most <= limits.own * 105 / 100);
  for (auto tree : trees) CHECK(forest.stats(tree).kept >= 1 && forest.check(tree).empty());
}

/// Forgetting and appending in turns at a state with very many children costs a few steps, not a scan of the children.
void hubs_are_not_scanned_at_every_append() {
  Automaton automaton(8);
  StateId tip = kRoot;
  for (Token t = 0; t < 100000; ++t) tip = automaton.append(kRoot, t, kUnit, 2);
  const std::uint64_t before = automaton.scanned();
  for (Token t = 0; t < 1000; ++t) {
    automaton.append(kRoot, 5, kUnit, 2);
    automaton.subtract(kRoot, 5, kUnit);
    automaton.append(kRoot, t, kUnit, 2);
  }
  CHECK(automaton.scanned() - before < 3000 * 64 + 2 * 100000);
  CHECK(automaton.check().empty());
  (void)tip;
}

/// Many sessions on a noisy periodic text, with drafts of all of them.
struct Batch {
  static constexpr std::size_t kRows = 256, kWidth = 16;
  Forest forest{plain(), 64};
  std::vector<std::int64_t> sessions;
  Tokens tokens = Tokens(kRows * kWidth), parents = tokens, lengths = Tokens(kRows), limits = Tokens(kRows, 16);
  std::vector<float> survival = std::vector<float>(kRows * kWidth);
  std::vector<std::uint8_t> source = std::vector<std::uint8_t>(kRows * kWidth);
  DraftArrays arrays() {
    return {kRows, kWidth, tokens.data(), parents.data(), survival.data(), source.data(), lengths.data()};
  }

  Batch() {
    std::mt19937 random(7);
    for (std::int32_t p = 0; p < 32; ++p) {
      const auto tree = forest.add_tree(&p, 1, 0);
      for (std::size_t i = 0; i < kRows / 32; ++i) {
        sessions.push_back(forest.open(tree, 0, false, true, {i % 2 == 0 ? SamplerNoise::Hash::rolltree : SamplerNoise::Hash::none, random()}, i % 4 == 0));
        Tokens text;
        for (std::int32_t t = 0; t < 200; ++t) text.push_back(random() % 10 ? t % 23 : static_cast<std::int32_t>(random() % 23));
        forest.append(sessions.back(), text.data(), text.size(), false);
      }
    }
  }
  void draft(bool tree, std::size_t threads) {
    DraftOptions rule;
    rule.tree = tree;
    rule.min_survival = 0.001f;
    forest.set_threads(threads);
    forest.draft_batch(sessions.data(), limits.data(), rule, arrays());
  }
};

void clear_keeps_handles_and_sums() {
  Batch batch;
  batch.draft(false, 1);
  Tokens emitted(Batch::kRows, 3), offsets(Batch::kRows + 1), rows(Batch::kRows), accepted(Batch::kRows);
  for (std::size_t b = 0; b < Batch::kRows; ++b) rows[b] = static_cast<std::int32_t>(b), offsets[b + 1] = static_cast<std::int32_t>(b + 1);
  Forest& forest = batch.forest;
  forest.settle(batch.sessions.data(), Batch::kRows, batch.arrays(), rows.data(), batch.lengths.data(), emitted.data(), emitted.size(), offsets.data(), accepted.data());
  CHECK(throws<InputFault>([&] { forest.clear(); }));
  for (auto s : batch.sessions) forest.close(s, true);
  std::uint64_t before = 0, after = 0;
  for (const SourceSums& s : forest.source_sums()) before += s.drafted;
  forest.clear();
  for (const SourceSums& s : forest.source_sums()) after += s.drafted;
  CHECK(before > 0 && before == after);
  CHECK(forest.own_bytes() == 0 && forest.learned() == 0);
  const auto tree = forest.add_tree(nullptr, 0, 0);
  for (int i = 0; i < 300; ++i) {
    const auto s = forest.open(tree, 0, false, true, {});
    CHECK(std::find(batch.sessions.begin(), batch.sessions.end(), s) == batch.sessions.end());
  }
  for (auto s : batch.sessions) CHECK(throws<ClosedFault>([&] { forest.close(s, true); }));
}

void threads_agree() {
  Batch batch;
  for (const bool tree : {false, true}) {
    batch.draft(tree, 1);
    const auto tokens = batch.tokens, lengths = batch.lengths;
    const auto survival = batch.survival;
    for (const std::size_t threads : {2, 3, 4}) {
      std::fill(batch.lengths.begin(), batch.lengths.end(), -1);
      batch.draft(tree, threads);
      CHECK(batch.lengths == lengths && batch.tokens == tokens && batch.survival == survival);
    }
  }
}

void ranker_is_calibrated() {
  Forest forest(plain());
  std::mt19937 random(3);
  DraftOptions rule;
  rule.min_survival = 0.0f;
  std::int32_t token, parent, length, limit = 1, row = 0, accepted;
  float survival;
  std::uint8_t source;
  const DraftArrays d{1, 1, &token, &parent, &survival, &source, &length};
  double claimed = 0, hits = 0, drafts = 0;
  for (int rollout = 0; rollout < 60; ++rollout) {
    const auto tree = forest.add_tree(nullptr, 0, 0);
    const auto s = forest.open(tree, 0, false, true, {});
    for (std::int32_t t = 0; t < 400; ++t) {  // a cycle of 11 with one token in four at random
      const std::int32_t emitted = random() % 4 ? t % 11 : static_cast<std::int32_t>(random() % 11);
      forest.draft_batch(&s, &limit, rule, d);
      if (rollout >= 30 && length) claimed += survival, hits += token == emitted, ++drafts;
      const std::int32_t offsets[2] = {0, 1};
      forest.settle(&s, 1, d, &row, &length, &emitted, 1, offsets, &accepted);
    }
    forest.close(s, true);
  }
  CHECK(drafts > 8000);
  CHECK(hits / drafts > 0.55);  // 0.77 after a token of the cycle, less after a stray one
  CHECK(std::abs(claimed - hits) / drafts < 0.02);
}

/// A history that is built beside the forest and adopted counts as if its rollouts had been generated in the tree, whatever
/// the tree took in meanwhile.
void histories_are_adopted() {
  std::mt19937 random(5);
  const Tokens prompt{1, 2, 3};
  auto text = [&] {
    Tokens out(40 + random() % 400);
    for (auto& token : out) token = static_cast<std::int32_t>(random() % 7);
    return out;
  };
  for (int round = 0; round < 40; ++round) {
    const std::uint32_t window = 2 + static_cast<std::uint32_t>(random() % 12);
    TreeOptions options{8, window, 1.0, 16};
    Forest direct(options, 0, Limits{0, 0, 1 + random() % 200}), forest(options, 0, Limits{0, 0, 1 + random() % 200});
    const auto right = direct.add_tree(prompt.data(), prompt.size(), 0), tree = forest.add_tree(prompt.data(), prompt.size(), 3);
    History history = forest.history(prompt.data(), prompt.size(), 0);
    auto both = [&](const Tokens& rollout, std::int64_t version) {
      const auto a = direct.open(right, version, false, true, {});
      direct.append(a, rollout.data(), rollout.size(), false);
      direct.close(a, true);
      history.open(version, true);
      history.append(rollout.data(), rollout.size(), false);
    };
    const std::size_t old = 1 + random() % window;
    for (std::size_t i = 0; i < old; ++i) both(text(), static_cast<std::int64_t>(std::min<std::size_t>(3, i)));
    const Tokens begun = text(), ended = text(), rest = text();
    std::int64_t sessions[2] = {direct.open(right, 3, false, true, {}), forest.open(tree, 3, false, true, {})};
    for (Forest* each : {&direct, &forest}) {
      const auto where = each == &direct ? right : tree;
      const auto done = each->open(where, 3, false, true, {});
      each->append(done, ended.data(), ended.size(), false);
      each->close(done, true);
      each->append(sessions[each == &forest], begun.data(), begun.size(), false);
    }
    forest.adopt(tree, history);
    for (Forest* each : {&direct, &forest}) each->append(sessions[each == &forest], rest.data(), rest.size(), false);
    CHECK(forest.check(tree).empty());
    direct.finish();
    forest.finish();
    CHECK(forest.check(tree).empty());
    CHECK(forest.stats(tree).kept == direct.stats(right).kept);
    CHECK(forest.stats(tree).tokens == direct.stats(right).tokens);
    for (std::size_t i = 0; i + 5 < rest.size(); ++i)
      for (const Tokens* from : {&begun, &ended, &rest})
        if (i + 5 < from->size()) CHECK(forest.count(tree, from->data() + i, 5) == direct.count(right, from->data() + i, 5));
    bool refused = false;
    try {
      forest.adopt(tree, history);
    } catch (const ClosedFault&) {
      refused = true;
    }
    CHECK(refused);
  }
}

}  // namespace

int main() {
  degenerate_texts_stay_small();
  siblings_share();
  window_bounds_memory();
  handles_are_never_reused();
  versions_weigh();
  counts_never_overflow();
  long_work_is_done_in_slices();
  limits_hold();
  live_prompts_share_the_limit();
  clear_keeps_handles_and_sums();
  hubs_are_not_scanned_at_every_append();
  threads_agree();
  histories_are_adopted();
  ranker_is_calibrated();
  std::printf("core_test: 14 passed, 0 failed\n");
  return 0;
}
