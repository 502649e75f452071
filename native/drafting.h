// Drafts: the next tokens of one session as a chain or a best-first tree, with the survival of each node.
//
// A chain follows the likeliest candidate (ranker.h); a tree takes nodes in the order of their survival, the product of
// the probabilities along the path (SRT, arXiv 2601.09083, takes raw shares: `raw`). With coupled noise the likeliest
// candidate is the one that is likeliest to win the sampler's race (race.h). Read-only: never changes an automaton or
// a model.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "automaton.h"
#include "race.h"
#include "ranker.h"
#include "read_ahead.h"

namespace rolltree {

struct DraftOptions {
  std::uint32_t limit = 16;      // nodes at most
  float min_survival = 0.05f;    // leave out nodes less likely than this to be reached and accepted
  std::uint32_t min_match = 1;   // shortest context to predict from, in tokens
  bool tree = false;             // best-first tree instead of a chain
  bool raw = false;              // the paper's rule: raw shares after the longest suffix in the own tree
  SamplerNoise noise;            // of the request: candidates are ranked with it
  std::uint64_t generated = 0;   // tokens before the first drafted one, for the noise
};

/// Rows of the caller's output arrays.
struct DraftRow {
  std::int32_t* tokens;
  std::int32_t* parents;
  float* survival;
  std::uint8_t* source;
};

/// Memory of a writer, re-used from row to row.
struct DraftScratch {
  struct Node {
    Token token;
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
  DraftWriter(const View& view, const Ranker& ranker, const RaceModel& races, const DraftOptions& options,
              DraftScratch& scratch)
      : view_(view), ranker_(ranker), races_(races), options_(options), scratch_(scratch) {}

  /// A chain that is being written.
  struct Chain {
    Place place;  // behind what is written
    Token last;
    DraftRow row;
    float survival = 1.0f;
    std::uint32_t n = 0;
  };
  /// Adds a node; returns whether there may be another. `list` is memory to use.
  bool extend(Chain& chain, CandidateList& list) const {
    if (chain.n == options_.limit) return false;
    candidates(chain.place, chain.last, chain.n, list);
    const Candidate* best = likeliest(list);
    if (!best) return false;
    chain.survival *= best->probability;
    if (chain.survival < options_.min_survival) return false;
    put(chain.row, chain.n, static_cast<std::int32_t>(chain.n) - 1, best->token, chain.survival, source_of(*best));
    chain.last = best->token;
    if (++chain.n == options_.limit) return false;
    chain.place = view_.advance(chain.place, list, *best);
    return true;
  }

  /// Drafts after `place`, which `last` led to. Returns the number of nodes. O(nodes x candidates).
  std::uint32_t write(const Place& place, Token last, DraftRow row) const {
    return options_.tree ? write_tree(place, last, row) : write_chain(place, last, row);
  }

 private:
  /// What may come `depth` tokens into the draft.
  void candidates(const Place& place, Token last, std::uint32_t depth, CandidateList& out) const {
    if (options_.raw) return raw_candidates(place, out);
    ranker_.rank(view_, place, last, options_.min_match, out);
    if (options_.noise) races_.judge(out, Race(out, PlaceNoise(options_.noise, options_.generated + depth)));
  }
  /// The longest suffix that has a continuation, in the own tree only; the share is the probability.
  void raw_candidates(const Place& place, CandidateList& out) const {
    const Automaton& text = *view_.lanes[0];
    out.size = 0;
    out.direct = {false, false};
    for (StateId s = text.context(place[0].state); s != kRoot && out.size == 0; s = text.state(s).link) {
      if (std::min(place[0].length, text.context_length(s)) < options_.min_match) return;
      float total = 0;
      text.for_each_edge(s, [&](Token token, StateId child) {
        const auto count = static_cast<float>(text.state(child).count);
        total += count;
        if (count > 0) add_raw(Candidate{token, {child, kNone}, {count, 0}, {}, count, {}, {}, 0}, out);
      });
      for (Candidate& c : out) c.probability /= total;
    }
  }

  /// Keeps the most frequent, and of equals the first seen, when there are more than fit.
  static void add_raw(const Candidate& c, CandidateList& out) {
    if (out.size < CandidateList::kMost) return void(out.items[out.size++] = c);
    Candidate* rarest = std::min_element(out.begin(), out.end(), [](const Candidate& a, const Candidate& b) { return a.probability < b.probability; });
    if (c.probability > rarest->probability) *rarest = c;
  }

  std::uint32_t write_chain(const Place& place, Token last, DraftRow row) const {
    CandidateList list;
    Chain chain{place, last, row};
    while (extend(chain, list)) {
    }
    return chain.n;
  }
  /// Of equals the one that was seen last, then the smaller token; null when there is none.
  const Candidate* likeliest(const CandidateList& list) const {
    const Candidate* best = nullptr;
    for (const Candidate& c : list)
      if (!best || c.probability > best->probability || (c.probability == best->probability && newer(c, *best))) best = &c;
    return best;
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
      put(row, n, node.parent, node.token, node.survival, node.source);
      if (n + 1 < options_.limit)
        expand(view_.advance(places[node.place], node.token), node.token, node.depth, static_cast<std::int32_t>(n), node.survival);
      ++n;
    }
    return n;
  }
  void expand(const Place& place, Token last, std::uint32_t depth, std::int32_t parent, float survival) const {
    CandidateList list;
    candidates(place, last, depth, list);
    const auto at = static_cast<std::uint32_t>(scratch_.places.size());
    scratch_.places.push_back(place);
    for (const Candidate& c : list) {
      const float reached = survival * c.probability;
      if (reached < options_.min_survival) continue;
      scratch_.heap.emplace_back(reached, ~static_cast<std::uint32_t>(scratch_.nodes.size()));
      scratch_.nodes.push_back({c.token, source_of(c), reached, parent, depth + 1, at});
      std::push_heap(scratch_.heap.begin(), scratch_.heap.end());
    }
  }

  std::uint32_t serial_of(const Candidate& c) const {
    return c.target[0] == kNone ? 0 : view_.lanes[0]->state(c.target[0]).source;
  }
  std::uint8_t source_of(const Candidate& c) const { return c.target[0] == kNone ? kShared : view_.source(serial_of(c)); }
  static void put(DraftRow row, std::uint32_t n, std::int32_t parent, Token token, float survival,
                  std::uint8_t source) {
    row.tokens[n] = static_cast<std::int32_t>(token);
    row.parents[n] = parent;
    row.survival[n] = survival;
    row.source[n] = source;
  }

  const View& view_;
  const Ranker& ranker_;
  const RaceModel& races_;
  const DraftOptions& options_;
  DraftScratch& scratch_;
};

/// One of several chains that are written side by side.
struct ChainRow {
  View view;
  DraftOptions options;
  DraftWriter::Chain chain;
};

/// Writes the chains of some rows a node at a time: while the ranker works on one, what it is going to read for the others is on
/// its way from memory. The drafts are those of `DraftWriter::write`.
class ChainWriter {
 public:
  static constexpr std::size_t kMost = ReadAhead::kMost;  // rows

  ChainWriter(const Ranker& ranker, const RaceModel& races, DraftScratch& scratch) : ranker_(ranker), races_(races), scratch_(scratch) {}

  /// At most kMost rows.
  void write(ChainRow* rows, std::size_t count) const {
    std::array<ChainRow*, kMost> open;
    for (std::size_t i = 0; i < count; ++i) open[i] = rows + i;
    CandidateList list;
    ReadAhead ahead;
    while (count > 0) {
      for (std::size_t i = 0; i < count; ++i) ahead.add(open[i]->view, open[i]->chain.place);
      ahead.run();
      std::size_t left = 0;
      for (std::size_t i = 0; i < count; ++i)
        if (extend(*open[i], list)) open[left++] = open[i];
      count = left;
    }
  }

 private:
  bool extend(ChainRow& row, CandidateList& list) const {
    return DraftWriter(row.view, ranker_, races_, row.options, scratch_).extend(row.chain, list);
  }
  const Ranker& ranker_;
  const RaceModel& races_;
  DraftScratch& scratch_;
};

}  // namespace rolltree
