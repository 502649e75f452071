// Random operations on a forest, judged by the integrity walk and by naive substring counts. Most trials work off what
// waits in slices of a few states, so that every call meets half-built automata; some have limits that bite.
// Usage: fuzz [operations] [seed]. Exit 1 and a reproducible seed on the first fault.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../forest.h"

using namespace rolltree;
using Tokens = std::vector<std::int32_t>;

namespace {

struct Live {
  std::int64_t handle;
  Tokens text;
  bool from_prompt;
};

struct Trial {
  std::mt19937_64 random;
  std::uint32_t depth, window, vocabulary;
  double decay;
  Limits limits;
  Forest forest;
  Tokens prompt;
  std::int64_t tree, version = 0;
  std::vector<Live> live;
  std::vector<Live> kept;

  explicit Trial(std::uint64_t seed)
      : random(seed), depth(pick(2, 12)), window(pick(0, 6)), vocabulary(pick(0, 2) ? pick(1, 5) : 200),
        decay(pick(0, 2) ? 1.0 : 0.7), limits(some_limits()), forest(TreeOptions{depth, window, decay, 16}, pick(0, 1) * 3, limits), prompt(word(pick(0, 30))),
        tree(forest.add_tree(prompt.data(), prompt.size(), 0)) {}

  Limits some_limits() {
    Limits out;
    if (pick(0, 3)) out.slice = pick(0, 1) ? pick(1, 20) : pick(100, 2000);
    if (pick(0, 3) == 0) out.own = out.shared = pick(20000, 200000);
    return out;
  }
  std::uint32_t pick(std::uint32_t low, std::uint32_t high) {
    return low + static_cast<std::uint32_t>(random() % (high - low + 1));
  }
  Tokens word(std::size_t n) {
    Tokens out(n);
    if (n && pick(0, 3) == 0) return Tokens(n, static_cast<std::int32_t>(pick(0, vocabulary - 1)));  // a loop
    for (auto& t : out) t = static_cast<std::int32_t>(pick(0, vocabulary - 1));
    return out;
  }

  void step() {
    if (limits.own && pick(0, 9) == 0) forest.relieve();
    if (pick(0, 39) == 0) return adopt();
    const std::uint32_t what = pick(0, 9);
    if (live.empty() || what == 0) return open();
    Live& l = live[pick(0, static_cast<std::uint32_t>(live.size()) - 1)];
    if (what <= 5) return append(l, word(pick(0, pick(0, 5) ? 6 : 200)));
    if (what <= 7) return speculate();
    close(l, pick(0, 3) != 0);
  }
  void open() {
    if (pick(0, 3) == 0) ++version;
    const bool from_prompt = pick(0, 4) != 0;
    live.push_back({forest.open(tree, version, false, from_prompt, {static_cast<SamplerNoise::Hash>(pick(0, 2)), random()}, pick(0, 4) == 0), {}, from_prompt});
  }
  /// Rollouts from elsewhere, older than all that was kept.
  void adopt() {
    std::vector<Live> old;
    History history = forest.history(prompt.data(), prompt.size(), 0);
    for (std::uint32_t n = pick(0, window); n; --n) {
      old.push_back({0, word(pick(1, 40)), pick(0, 4) != 0});
      history.open(std::min<std::int64_t>(version, pick(0, 5)), old.back().from_prompt);
      history.append(old.back().text.data(), old.back().text.size(), false);
    }
    forest.adopt(tree, history);
    kept.insert(kept.begin(), old.begin(), old.end());
    if (kept.size() > window) kept.erase(kept.begin(), kept.end() - window);
  }
  void append(Live& l, const Tokens& tokens) {
    forest.append(l.handle, tokens.data(), tokens.size(), false);
    l.text.insert(l.text.end(), tokens.begin(), tokens.end());
  }
  void close(Live& l, bool keep) {
    forest.close(l.handle, keep);
    if (keep && window && !l.text.empty()) kept.push_back(l);
    if (kept.size() > window) kept.erase(kept.begin());
    l = live.back();
    live.pop_back();
  }
  void speculate() {
    const std::size_t rows = live.size(), width = 8;
    std::vector<std::int64_t> handles;
    for (const Live& l : live) handles.push_back(l.handle);
    Tokens tokens(rows * width), parents(rows * width), lengths(rows), limits(rows, 8), offsets(rows + 1), emitted, accepted(rows);
    std::vector<float> survival(rows * width);
    std::vector<std::uint8_t> source(rows * width);
    const DraftArrays d{rows, width, tokens.data(), parents.data(), survival.data(), source.data(), lengths.data()};
    DraftOptions rule;
    rule.min_survival = 0.01f;
    rule.tree = pick(0, 1) == 1;
    rule.raw = pick(0, 4) == 0;
    forest.draft_batch(handles.data(), limits.data(), rule, d);
    for (std::size_t b = 0; b < rows; ++b) {
      Tokens out = word(pick(0, 4));
      if (lengths[b] && pick(0, 1)) out.insert(out.begin(), tokens[b * width]);  // accept the first node
      live[b].text.insert(live[b].text.end(), out.begin(), out.end());
      emitted.insert(emitted.end(), out.begin(), out.end());
      offsets[b + 1] = static_cast<std::int32_t>(emitted.size());
    }
    Tokens where(rows);
    for (std::size_t b = 0; b < rows; ++b) where[b] = pick(0, 9) ? static_cast<std::int32_t>(b) : -1;
    forest.settle(handles.data(), rows, d, where.data(), lengths.data(), emitted.data(), emitted.size(), offsets.data(), accepted.data());
  }

  /// Faults of the structure, and bytes that are not the sum of the trees'.
  std::string sound() {
    std::string fault = forest.check(tree);
    if (fault.empty()) fault = forest.check_shared();
    if (fault.empty() && forest.own_bytes() != forest.stats(tree).bytes) fault = "the bytes of all trees are wrong";
    return fault;
  }
  std::string verify() {
    std::string fault = sound();
    forest.finish();
    if (fault.empty()) fault = sound();
    if (fault.empty() && forest.stats(tree).pending) fault = "work waits after it was finished";
    if (!fault.empty() || decay < 1 || limits.own) return fault;
    std::map<Tokens, std::uint64_t> counts;
    count(counts, {}, prompt, 16);
    for (const Live& l : kept) count(counts, l.from_prompt ? prompt : Tokens{}, l.text, kUnit);
    for (const Live& l : live) count(counts, l.from_prompt ? prompt : Tokens{}, l.text, kUnit);
    for (const auto& [text, n] : counts)
      if (forest.count(tree, text.data(), text.size()) != n) return "a count differs from the naive one";
    return {};
  }
  void count(std::map<Tokens, std::uint64_t>& counts, const Tokens& before, const Tokens& text, std::uint64_t weight) const {
    Tokens whole = before;
    whole.insert(whole.end(), text.begin(), text.end());
    for (std::size_t end = before.size(); end < whole.size(); ++end)
      for (std::size_t n = 1; n <= depth && n <= end + 1; ++n)
        counts[Tokens(whole.begin() + static_cast<std::ptrdiff_t>(end + 1 - n), whole.begin() + static_cast<std::ptrdiff_t>(end + 1))] += weight;
  }
};

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t operations = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20000;
  std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1, done = 0, trials = 0, waited = 0;
  for (; done < operations; ++seed, ++trials) {
    Trial trial(seed);
    const std::uint32_t length = trial.pick(1, 200);
    std::string fault;
    for (std::uint32_t i = 0; i < length && fault.empty(); ++i, ++done) {
      trial.step();
      if (i % 16 == 0) {
        waited += trial.forest.stats(trial.tree).pending;
        fault = trial.sound();
      }
    }
    if (fault.empty()) fault = trial.verify();
    if (fault.empty()) continue;
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), fault.c_str());
    return 1;
  }
  std::printf("fuzz: %llu operations in %llu trials, sound; work waited at %llu looks\n", static_cast<unsigned long long>(done),
              static_cast<unsigned long long>(trials), static_cast<unsigned long long>(waited));
  return waited == 0 && operations >= 10000;  // slices were never cut: the trials prove nothing of them
}
