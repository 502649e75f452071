// Drafts from an automaton: which tokens are likely next, and how sure we are.
//
// The context is the longest suffix of the text with a known continuation. Two lanes are read side by side, the
// prompt's own tree and the tree that all prompts share; at each token the lane that is surer speaks. A chain follows
// the best child; a tree is grown best-first. A node's survival is the product of calibrated acceptances along its path
// (SRT, arXiv 2601.09083, uses raw shares). With coupled noise the best child is the one that the sampler's own noise
// picks (noise.h). Read-only: never changes an automaton or the calibration.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "automaton.h"
#include "calibration.h"
#include "noise.h"

namespace rolltree {

constexpr std::uint32_t kUnit = 64;  // weight of one fresh occurrence

struct DraftOptions {
  std::uint32_t limit = 16;      // nodes at most
  float min_survival = 0.05f;    // leave out nodes less likely than this to be reached and accepted
  std::uint32_t min_match = 1;   // shortest context to predict from, in tokens
  bool tree = false;             // best-first tree instead of a chain
  bool coupled = false;          // rank candidates with the sampler's noise
  std::uint64_t seed = 0;        // of the request, for the noise
  std::uint64_t position = 0;    // of the first drafted token, for the noise
};

/// Rows of the caller's output arrays.
struct DraftRow {
  std::int32_t* tokens;
  std::int32_t* parents;
  float* survival;
  Evidence* evidence;
  std::uint32_t* source;  // serial of the sequence that was last seen at the node; kSharedBit: in the shared tree
};
constexpr std::uint32_t kSharedBit = 1u << 31;

struct Candidate {
  Token token;
  StateId target;
  std::uint32_t count;
  float score;  // noisy race time (smaller wins); 0 without noise
};

/// A context: a state, and how many tokens of the text match there.
struct Match {
  StateId state = kRoot;
  std::uint32_t length = 0;
};

/// The match one token further on: the longest suffix of match + token that is indexed. O(1) amortised.
inline Match follow(const Automaton& text, Match m, Token token) {
  m.state = text.context(m.state);
  m.length = std::min(m.length, text.depth() - 1);
  StateId next;
  while ((next = text.find(m.state, token)) == kNone && m.state != kRoot) {
    m.state = text.state(m.state).link;
    m.length = text.state(m.state).length;
  }
  return next == kNone ? Match{} : Match{next, m.length + 1};
}

class DraftWriter {
 public:
  using Place = std::array<Match, 2>;  // where both lanes stand

  /// `shared` may be null: one lane only.
  DraftWriter(const Automaton& own, const Automaton* shared, const Calibration& calibration, const DraftOptions& options)
      : lanes_{&own, shared}, calibration_(calibration), options_(options) {}

  /// Drafts after `place`. Returns the number of nodes. O(nodes x degree).
  std::uint32_t write(Place place, DraftRow row) const {
    for (std::size_t lane = 0; lane < 2; ++lane) back_off(lane, place[lane]);
    return options_.tree ? write_tree(place, row) : write_chain(place, row);
  }

 private:
  static constexpr std::uint32_t kScan = 128;  // hubs with more children offer their best child only

  struct Choice {
    Token token;
    StateId target;
    std::size_t lane;
    Evidence evidence;
    float probability;
  };
  struct Node {
    Choice choice;
    float survival;
    std::int32_t parent;
    std::uint32_t depth;
    Place place;  // of the parent
    bool operator<(const Node& other) const {
      return survival < other.survival || (survival == other.survival && choice.token > other.choice.token);
    }
  };

  /// Moves to the longest suffix that has a continuation (possibly the root, with length 0).
  void back_off(std::size_t lane, Match& m) const {
    if (!lanes_[lane]) return;
    const Automaton& text = *lanes_[lane];
    const StateId from = m.state;
    m.state = text.context(m.state);
    while (m.state != kRoot && children_count(text, m.state) == 0) m.state = text.state(m.state).link;
    m.length = m.state == from ? std::min(m.length, text.depth() - 1) : text.context_length(m.state);
  }
  static std::uint32_t children_count(const Automaton& text, StateId s) {
    if (text.is_hub(s)) return text.hub_sum(s);
    std::uint32_t sum = 0;
    text.for_each_edge(s, [&](Token, StateId child) { sum += text.state(child).count; });
    return sum;
  }
  Place advance(Place place, const Choice& choice) const {
    for (std::size_t lane = 0; lane < 2; ++lane) {
      if (!lanes_[lane]) continue;
      Match& m = place[lane];
      m = lane == choice.lane ? Match{choice.target, m.length + 1} : follow(*lanes_[lane], m, choice.token);
      back_off(lane, m);
    }
    return place;
  }
  bool speaks(std::size_t lane, const Match& m) const {
    return lanes_[lane] && m.state != kRoot && m.length >= options_.min_match;
  }

  bool best_only(const Automaton& text, StateId s) const {
    return text.is_hub(s) && text.hub_best(s).target != kRoot && (!options_.coupled || text.degree(s) > kScan);
  }

  /// The surer lane's best child; false when nothing is known.
  bool best(const Place& place, std::uint32_t depth, Choice& choice) const {
    choice.probability = 0;
    for (std::size_t lane = 0; lane < 2; ++lane) {
      Choice found{};
      if (speaks(lane, place[lane]) && best_child(lane, place[lane], depth, found) &&
          found.probability > choice.probability)
        choice = found;
    }
    return choice.probability > 0;
  }
  bool best_child(std::size_t lane, const Match& m, std::uint32_t depth, Choice& found) const {
    const Automaton& text = *lanes_[lane];
    std::uint32_t total = 0;
    float rival = 0;
    Candidate winner{0, kRoot, 0, 0};
    const bool only = best_only(text, m.state);
    if (only) {
      winner = hub_child(text, m.state);
      total = text.hub_sum(m.state);
    } else if (options_.coupled) {
      total = race(text, m.state, depth, winner, rival);
    } else {
      text.for_each_edge(m.state, [&](Token token, StateId child) {
        const std::uint32_t count = text.state(child).count;
        total += count;
        if (count && better(text, token, child, count, winner)) winner = Candidate{token, child, count, 0};
      });
    }
    if (winner.target == kRoot || total == 0) return false;
    found = choose(lane, winner, total, rival, m.length, options_.coupled && !only);
    return true;
  }
  static Candidate hub_child(const Automaton& text, StateId s) {
    const Edge edge = text.hub_best(s);
    return Candidate{edge.token, edge.target, text.state(edge.target).count, 0};
  }
  static bool better(const Automaton& text, Token token, StateId child, std::uint32_t count, const Candidate& than) {
    if (than.target == kRoot || count != than.count) return than.target == kRoot || count > than.count;
    const std::uint32_t a = text.state(child).source, b = text.state(than.target).source;
    return a > b || (a == b && token < than.token);
  }
  /// Exponential race: argmin E / count is argmax log count + Gumbel. Returns the total count.
  std::uint32_t race(const Automaton& text, StateId s, std::uint32_t depth, Candidate& winner, float& rival) const {
    const std::uint64_t key = noise_key(options_.seed, options_.position + depth);
    std::uint32_t total = 0;
    text.for_each_edge(s, [&](Token token, StateId child) {
      const std::uint32_t count = text.state(child).count;
      if (!count) return;
      total += count;
      const float time = exponential_noise(key, token) / static_cast<float>(count);
      if (winner.target == kRoot || time < winner.score) {
        rival = winner.target == kRoot ? 0 : winner.score;
        winner = Candidate{token, child, count, time};
      } else if (rival == 0 || time < rival) {
        rival = time;
      }
    });
    return total;
  }
  Choice choose(std::size_t lane, const Candidate& c, std::uint32_t total, float rival, std::uint32_t match,
                bool noisy) const {
    const float seen = static_cast<float>(total) / kUnit;
    int confidence = 11;
    if (c.count != total)
      confidence = noisy ? Calibration::margin_bucket(std::log(rival / c.score))
                         : Calibration::share_bucket(static_cast<float>(c.count) / static_cast<float>(total));
    const Evidence e = Calibration::evidence(noisy, lane == 1, match, confidence, seen);
    return Choice{c.token, c.target, lane, e, calibration_.probability(e)};
  }

  std::uint32_t write_chain(Place place, DraftRow row) const {
    float survival = 1.0f;
    std::uint32_t n = 0;
    for (; n < options_.limit; ++n) {
      Choice choice{};
      if (!best(place, n, choice)) break;
      survival *= choice.probability;
      if (survival < options_.min_survival) break;
      put(row, n, static_cast<std::int32_t>(n) - 1, choice, survival);
      place = advance(place, choice);
    }
    return n;
  }

  std::uint32_t write_tree(const Place& place, DraftRow row) const {
    std::vector<Node> frontier;
    expand(place, 0, -1, 1.0f, frontier);
    std::uint32_t n = 0;
    while (n < options_.limit && !frontier.empty()) {
      std::pop_heap(frontier.begin(), frontier.end());
      const Node node = frontier.back();
      frontier.pop_back();
      put(row, n, node.parent, node.choice, node.survival);
      expand(advance(node.place, node.choice), node.depth, static_cast<std::int32_t>(n), node.survival, frontier);
      ++n;
    }
    return n;
  }

  void expand(const Place& place, std::uint32_t depth, std::int32_t parent, float survival,
              std::vector<Node>& frontier) const {
    std::vector<Choice> choices;
    for (std::size_t lane = 0; lane < 2; ++lane)
      if (speaks(lane, place[lane])) gather(lane, place[lane], depth, survival, choices);
    for (const Choice& choice : choices) {
      frontier.push_back(Node{choice, survival * choice.probability, parent, depth + 1, place});
      std::push_heap(frontier.begin(), frontier.end());
    }
  }
  /// Adds a lane's children that are likely enough; of a token that both lanes know, the surer one stays.
  void gather(std::size_t lane, const Match& m, std::uint32_t depth, float survival, std::vector<Choice>& choices) const {
    std::vector<Candidate> found;
    const std::uint32_t total = candidates(*lanes_[lane], m.state, depth, found);
    const bool noisy = options_.coupled && !best_only(*lanes_[lane], m.state);
    float first = 0, second = 0;
    if (noisy) leaders(found, first, second);
    for (const Candidate& c : found) {
      const Choice choice = choose(lane, c, total, noisy && c.score == first ? second : first, m.length, noisy);
      if (survival * choice.probability < options_.min_survival) continue;
      auto same = std::find_if(choices.begin(), choices.end(), [&](const Choice& other) { return other.token == c.token; });
      if (same == choices.end())
        choices.push_back(choice);
      else if (choice.probability > same->probability)
        *same = choice;
    }
  }
  std::uint32_t candidates(const Automaton& text, StateId s, std::uint32_t depth, std::vector<Candidate>& found) const {
    if (text.is_hub(s) && text.degree(s) > kScan && text.hub_best(s).target != kRoot) {
      found.push_back(hub_child(text, s));
      return text.hub_sum(s);
    }
    const std::uint64_t key = options_.coupled ? noise_key(options_.seed, options_.position + depth) : 0;
    std::uint32_t total = 0;
    text.for_each_edge(s, [&](Token token, StateId child) {
      const std::uint32_t count = text.state(child).count;
      if (!count) return;
      total += count;
      const float time = options_.coupled ? exponential_noise(key, token) / static_cast<float>(count) : 0;
      found.push_back(Candidate{token, child, count, time});
    });
    return total;
  }
  static void leaders(const std::vector<Candidate>& found, float& first, float& second) {
    for (const Candidate& c : found) {
      if (first == 0 || c.score < first) {
        second = first;
        first = c.score;
      } else if (second == 0 || c.score < second) {
        second = c.score;
      }
    }
  }

  void put(DraftRow row, std::uint32_t n, std::int32_t parent, const Choice& choice, float survival) const {
    row.tokens[n] = static_cast<std::int32_t>(choice.token);
    row.parents[n] = parent;
    row.survival[n] = survival;
    row.evidence[n] = choice.evidence;
    row.source[n] = lanes_[choice.lane]->state(choice.target).source | (choice.lane == 1 ? kSharedBit : 0);
  }

  std::array<const Automaton*, 2> lanes_;
  const Calibration& calibration_;
  const DraftOptions& options_;
};

}  // namespace rolltree
