// Drafts: the next tokens of one session as a chain or a best-first tree, with the survival of each node.
//
// A chain follows the likeliest candidate (ranker.h); a tree takes nodes in the order of their survival, the product of
// the probabilities along the path (SRT, arXiv 2601.09083, takes raw shares: `raw`). With coupled noise the likeliest
// candidate is the one that the sampler's own noise picks (noise.h), and how sure that is comes from calibration.h.
// Read-only: never changes an automaton, the ranker or the calibration.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "automaton.h"
#include "calibration.h"
#include "noise.h"
#include "ranker.h"

namespace rolltree {

struct DraftOptions {
  std::uint32_t limit = 16;      // nodes at most
  float min_survival = 0.05f;    // leave out nodes less likely than this to be reached and accepted
  std::uint32_t min_match = 1;   // shortest context to predict from, in tokens
  bool tree = false;             // best-first tree instead of a chain
  bool raw = false;              // the paper's rule: raw shares after the longest suffix in the own tree
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
  std::uint8_t* source;
};

/// Memory of a writer, re-used from row to row.
struct DraftScratch {
  struct Node {
    Candidate candidate;
    Evidence evidence;
    std::uint8_t source;
    float survival;
    std::int32_t parent;
    std::uint32_t depth;
    std::uint32_t place;  // of the parent
  };
  std::vector<Node> nodes;
  std::vector<std::pair<float, std::uint32_t>> heap;  // (survival, ~index): of equals the earlier one first
  std::vector<Place> places;
};

class DraftWriter {
 public:
  DraftWriter(const View& view, const Ranker& ranker, const Calibration& calibration, const DraftOptions& options,
              DraftScratch& scratch)
      : view_(view), ranker_(ranker), calibration_(calibration), options_(options), scratch_(scratch) {}

  /// Drafts after `place`, which `last` led to. Returns the number of nodes. O(nodes x candidates).
  std::uint32_t write(const Place& place, Token last, DraftRow row) const {
    return options_.tree ? write_tree(place, last, row) : write_chain(place, last, row);
  }

 private:
  static constexpr Evidence kUnjudged{Calibration::kNone, 0, 0};  // without noise the ranker's probability stands
  struct Choice {
    const Candidate* candidate = nullptr;
    Evidence evidence = kUnjudged;
    float probability = 0;
  };

  void candidates(const Place& place, Token last, CandidateList& out) const {
    if (options_.raw) return raw_candidates(place, out);
    ranker_.rank(view_, place, last, options_.min_match, out);
  }
  /// The longest suffix that has a continuation, in the own tree only; the share is the probability.
  void raw_candidates(const Place& place, CandidateList& out) const {
    const Automaton& text = *view_.lanes[0];
    out.size = 0;
    for (StateId s = text.context(place[0].state); s != kRoot && out.size == 0; s = text.state(s).link) {
      if (std::min(place[0].length, text.context_length(s)) < options_.min_match) return;
      float total = 0;
      text.for_each_edge(s, [&](Token token, StateId child) {
        const auto count = static_cast<float>(text.state(child).count);
        total += count;
        if (count > 0 && out.size < CandidateList::kMost)
          out.items[out.size++] = Candidate{token, {child, kNone}, {count, 0}, count, {}, {}, 0};
      });
      for (Candidate& c : out) c.probability /= total;
    }
  }

  std::uint32_t write_chain(Place place, Token last, DraftRow row) const {
    CandidateList list;
    float survival = 1.0f;
    std::uint32_t n = 0;
    for (; n < options_.limit; ++n) {
      candidates(place, last, list);
      const Choice best = options_.coupled ? winner(list, n) : likeliest(list);
      if (!best.candidate) break;
      survival *= best.probability;
      if (survival < options_.min_survival) break;
      last = best.candidate->token;
      put(row, n, static_cast<std::int32_t>(n) - 1, last, survival, best.evidence, source_of(*best.candidate));
      place = view_.advance(place, last);
    }
    return n;
  }
  /// Of equals the one that was seen last, then the smaller token.
  Choice likeliest(const CandidateList& list) const {
    const Candidate* best = nullptr;
    for (const Candidate& c : list)
      if (!best || c.probability > best->probability || (c.probability == best->probability && newer(c, *best))) best = &c;
    return best ? Choice{best, kUnjudged, best->probability} : Choice{};
  }
  bool newer(const Candidate& a, const Candidate& b) const {
    const std::uint32_t x = serial_of(a), y = serial_of(b);
    return x > y || (x == y && a.token < b.token);
  }

  std::uint32_t write_tree(const Place& place, Token last, DraftRow row) const {
    auto& [nodes, heap, places] = scratch_;
    nodes.clear();
    heap.clear();
    places.clear();
    expand(place, last, 0, -1, 1.0f);
    std::uint32_t n = 0;
    while (n < options_.limit && !heap.empty()) {
      std::pop_heap(heap.begin(), heap.end());
      const DraftScratch::Node node = nodes[~heap.back().second];
      heap.pop_back();
      const Token token = node.candidate.token;
      put(row, n, node.parent, token, node.survival, node.evidence, node.source);
      if (n + 1 < options_.limit)
        expand(view_.advance(places[node.place], token), token, node.depth, static_cast<std::int32_t>(n), node.survival);
      ++n;
    }
    return n;
  }
  void expand(const Place& place, Token last, std::uint32_t depth, std::int32_t parent, float survival) const {
    CandidateList list;
    candidates(place, last, list);
    const Race race = options_.coupled ? run_race(list, depth) : Race{};
    const auto at = static_cast<std::uint32_t>(scratch_.places.size());
    scratch_.places.push_back(place);
    for (const Candidate& c : list) {
      const Choice choice = options_.coupled ? judge(race, list, c) : Choice{&c, kUnjudged, c.probability};
      const float reached = survival * choice.probability;
      if (reached < options_.min_survival) continue;
      scratch_.heap.emplace_back(reached, ~static_cast<std::uint32_t>(scratch_.nodes.size()));
      scratch_.nodes.push_back({c, choice.evidence, source_of(c), reached, parent, depth + 1, at});
      std::push_heap(scratch_.heap.begin(), scratch_.heap.end());
    }
  }

  // The sampler's race: token i finishes at E_i / p_i, the first one is emitted (argmin E / p is argmax log p + Gumbel).
  struct Race {
    std::array<float, CandidateList::kMost> times{};
    float first = 0, second = 0;  // the two best times; 0: none
    float rest = 0;               // probability left for tokens that are no candidates
  };
  Race run_race(const CandidateList& list, std::uint32_t depth) const {
    const std::uint64_t key = noise_key(options_.seed, options_.position + depth);
    Race race;
    float sum = 0;
    for (const Candidate& c : list) sum += c.probability;
    const float scale = sum > 1.0f ? 1.0f / sum : 1.0f;
    race.rest = std::max(1.0f - sum, 0.0f);
    for (std::uint32_t i = 0; i < list.size; ++i) {
      const float time = exponential_noise(key, list.items[i].token) / (scale * list.items[i].probability);
      race.times[i] = time;
      if (race.first == 0 || time < race.first) {
        race.second = race.first;
        race.first = time;
      } else if (race.second == 0 || time < race.second) {
        race.second = time;
      }
    }
    return race;
  }
  Choice winner(const CandidateList& list, std::uint32_t depth) const {
    if (list.size == 0) return {};
    const Race race = run_race(list, depth);
    std::uint32_t best = 0;
    for (std::uint32_t i = 1; i < list.size; ++i)
      if (race.times[i] < race.times[best]) best = i;
    return judge(race, list, list.items[best]);
  }
  Choice judge(const Race& race, const CandidateList& list, const Candidate& c) const {
    const float time = race.times[static_cast<std::size_t>(&c - list.begin())];
    const float rival = time == race.first ? race.second : race.first;
    const float lead = rival == 0 ? 99.0f : std::log(rival / time);
    const float sightings = static_cast<float>(list.sightings) / kUnit;
    const Evidence evidence = Calibration::evidence(list.match, sightings, lead, race.rest * time, log_odds(c.probability));
    return Choice{&c, evidence, calibration_.probability(evidence)};
  }

  std::uint32_t serial_of(const Candidate& c) const {
    return c.target[0] == kNone ? 0 : view_.lanes[0]->state(c.target[0]).source;
  }
  std::uint8_t source_of(const Candidate& c) const { return c.target[0] == kNone ? kShared : view_.source(serial_of(c)); }
  static void put(DraftRow row, std::uint32_t n, std::int32_t parent, Token token, float survival, Evidence evidence,
                  std::uint8_t source) {
    row.tokens[n] = static_cast<std::int32_t>(token);
    row.parents[n] = parent;
    row.survival[n] = survival;
    row.evidence[n] = evidence;
    row.source[n] = source;
  }

  const View& view_;
  const Ranker& ranker_;
  const Calibration& calibration_;
  const DraftOptions& options_;
  DraftScratch& scratch_;
};

}  // namespace rolltree
