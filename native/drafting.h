// Drafts from an automaton: which tokens are likely next, and how sure we are.
//
// The context is the longest suffix of the text with a known continuation. A chain follows the best child; a tree is
// grown best-first. A node's survival is the product of calibrated acceptances along its path (SRT, arXiv 2601.09083,
// uses raw shares). With coupled noise the best child is the one that the sampler's own noise picks (noise.h).
// Read-only: never changes the automaton or the calibration.
#pragma once

#include <algorithm>
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
  std::uint32_t* source;  // serial of the sequence that was last seen at the node
};

struct Candidate {
  Token token;
  StateId target;
  std::uint32_t count;
  float score;  // share of the count, or noisy race time (smaller wins)
};

class DraftWriter {
 public:
  DraftWriter(const Automaton& text, const Calibration& calibration, const DraftOptions& options)
      : text_(text), calibration_(calibration), options_(options) {}

  /// Drafts after context state `s` of which `match` tokens match. Returns the number of nodes. O(nodes x degree).
  std::uint32_t write(StateId s, std::uint32_t match, DraftRow row) const {
    back_off(s, match);
    return options_.tree ? write_tree(s, match, row) : write_chain(s, match, row);
  }

 private:
  static constexpr std::uint32_t kScan = 128;  // hubs with more children offer their best child only

  struct Node {
    float survival;
    std::int32_t parent;
    std::uint32_t depth, match;
    StateId state;
    Token token;
    Evidence evidence;
    bool operator<(const Node& other) const {
      return survival < other.survival || (survival == other.survival && token > other.token);
    }
  };

  /// Moves to the longest suffix that has a continuation (possibly the root, with match 0).
  void back_off(StateId& s, std::uint32_t& match) const {
    const StateId from = s;
    s = text_.context(s);
    while (s != kRoot && children_count(s) == 0) s = text_.state(s).link;
    match = s == from ? std::min(match, text_.depth() - 1) : text_.context_length(s);
  }
  std::uint32_t children_count(StateId s) const {
    if (text_.is_hub(s)) return text_.hub_sum(s);
    std::uint32_t sum = 0;
    text_.for_each_edge(s, [&](Token, StateId child) { sum += text_.state(child).count; });
    return sum;
  }
  bool best_only(StateId s) const {
    return text_.is_hub(s) && text_.hub_best(s).target != kRoot && (!options_.coupled || text_.degree(s) > kScan);
  }

  /// The best child and the evidence for it; false when nothing is known.
  bool best(StateId s, std::uint32_t match, std::uint32_t depth, Candidate& winner, Evidence& evidence) const {
    std::uint32_t total = 0;
    float rival = 0;
    winner.target = kRoot;
    if (best_only(s)) {
      hub_child(s, winner);
      total = text_.hub_sum(s);
    } else if (options_.coupled) {
      total = race(s, depth, winner, rival);
    } else {
      text_.for_each_edge(s, [&](Token token, StateId child) {
        const std::uint32_t count = text_.state(child).count;
        total += count;
        if (count && better(token, child, count, winner)) winner = Candidate{token, child, count, 0};
      });
    }
    if (winner.target == kRoot || total == 0) return false;
    evidence = file(winner, total, rival, match, options_.coupled && !best_only(s));
    return true;
  }
  void hub_child(StateId s, Candidate& winner) const {
    const Edge edge = text_.hub_best(s);
    winner = Candidate{edge.token, edge.target, text_.state(edge.target).count, 0};
  }
  bool better(Token token, StateId child, std::uint32_t count, const Candidate& than) const {
    if (than.target == kRoot || count != than.count) return than.target == kRoot || count > than.count;
    const std::uint32_t a = text_.state(child).source, b = text_.state(than.target).source;
    return a > b || (a == b && token < than.token);
  }
  /// Exponential race: argmin E / count is argmax log count + Gumbel. Returns the total count.
  std::uint32_t race(StateId s, std::uint32_t depth, Candidate& winner, float& rival) const {
    const std::uint64_t key = noise_key(options_.seed, options_.position + depth);
    std::uint32_t total = 0;
    text_.for_each_edge(s, [&](Token token, StateId child) {
      const std::uint32_t count = text_.state(child).count;
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
  static Evidence file(const Candidate& c, std::uint32_t total, float rival, std::uint32_t match, bool coupled) {
    const float seen = static_cast<float>(total) / kUnit;
    int confidence = 11;
    if (c.count != total)
      confidence = coupled ? Calibration::margin_bucket(std::log(rival / c.score))
                           : Calibration::share_bucket(static_cast<float>(c.count) / static_cast<float>(total));
    return Calibration::evidence(coupled, match, confidence, seen);
  }

  std::uint32_t write_chain(StateId s, std::uint32_t match, DraftRow row) const {
    float survival = 1.0f;
    std::uint32_t n = 0;
    for (; n < options_.limit && match >= options_.min_match; ++n) {
      Candidate winner;
      Evidence evidence;
      if (!best(s, match, n, winner, evidence)) break;
      survival *= calibration_.probability(evidence);
      if (survival < options_.min_survival) break;
      put(row, n, static_cast<std::int32_t>(n) - 1, winner.token, winner.target, survival, evidence);
      s = winner.target;
      ++match;
      back_off(s, match);
    }
    return n;
  }

  std::uint32_t write_tree(StateId s, std::uint32_t match, DraftRow row) const {
    std::vector<Node> frontier;
    expand(s, match, 0, -1, 1.0f, frontier);
    std::uint32_t n = 0;
    while (n < options_.limit && !frontier.empty()) {
      std::pop_heap(frontier.begin(), frontier.end());
      Node node = frontier.back();
      frontier.pop_back();
      put(row, n, node.parent, node.token, node.state, node.survival, node.evidence);
      StateId next = node.state;
      std::uint32_t longer = node.match + 1;
      back_off(next, longer);
      expand(next, longer, node.depth, static_cast<std::int32_t>(n), node.survival, frontier);
      ++n;
    }
    return n;
  }

  void expand(StateId s, std::uint32_t match, std::uint32_t depth, std::int32_t parent, float survival,
              std::vector<Node>& frontier) const {
    if (match < options_.min_match || s == kRoot) return;
    std::vector<Candidate> found;
    const std::uint32_t total = candidates(s, depth, found);
    if (found.empty()) return;
    const bool noisy = options_.coupled && !best_only(s);
    float first = 0, second = 0;
    if (noisy) leaders(found, first, second);
    for (const Candidate& c : found) {
      const Evidence e = file(c, total, noisy && c.score == first ? second : first, match, noisy);
      const float reached = survival * calibration_.probability(e);
      if (reached < options_.min_survival) continue;
      frontier.push_back(Node{reached, parent, depth + 1, match, c.target, c.token, e});
      std::push_heap(frontier.begin(), frontier.end());
    }
  }
  std::uint32_t candidates(StateId s, std::uint32_t depth, std::vector<Candidate>& found) const {
    if (text_.is_hub(s) && text_.degree(s) > kScan && text_.hub_best(s).target != kRoot) {
      found.resize(1);
      hub_child(s, found[0]);
      return text_.hub_sum(s);
    }
    const std::uint64_t key = options_.coupled ? noise_key(options_.seed, options_.position + depth) : 0;
    std::uint32_t total = 0;
    text_.for_each_edge(s, [&](Token token, StateId child) {
      const std::uint32_t count = text_.state(child).count;
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

  void put(DraftRow row, std::uint32_t n, std::int32_t parent, Token token, StateId state, float survival,
           Evidence evidence) const {
    row.tokens[n] = static_cast<std::int32_t>(token);
    row.parents[n] = parent;
    row.survival[n] = survival;
    row.evidence[n] = evidence;
    row.source[n] = text_.state(state).source;
  }

  const Automaton& text_;
  const Calibration& calibration_;
  const DraftOptions& options_;
};

}  // namespace rolltree
