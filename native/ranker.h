// Which tokens may come next, and how likely each is: candidates of every suffix length, ranked by a small online model.
//
// Two lanes are read side by side: the prompt's own tree and the tree that all prompts share. In each, the shares of a
// token after the longest matching suffix and after its shorter suffixes are blended, longest first (interpolated
// Witten-Bell smoothing, with a constant instead of the number of distinct continuations): a count of 1 is half the truth,
// not certainty. A logistic model mixes both lanes' log odds with the source of the text and with what was learned of the
// tokens themselves; its weights depend on how long the match is. It learns from every emitted token, drafted or not, so
// nothing has to be verified to learn that it would have been accepted. How far inside a draft a token stands is no
// evidence: given that all before it were accepted, its context is plain text.
//
// Deterministic; knows no sampler's noise (see drafting.h). Not thread-safe while learning.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "automaton.h"
#include "logistic.h"

namespace rolltree {

constexpr std::uint32_t kUnit = 64;  // weight of one fresh occurrence

/// Who generated a piece of text, seen from one session.
enum Source : std::uint8_t { kPrompt = 0, kOwn = 1, kSibling = 2, kHistory = 3, kShared = 4, kRunAhead = 5, kSources = 6 };

template <std::size_t N>
std::size_t bucket(const std::array<float, N>& edges, float x) {
  return static_cast<std::size_t>(std::upper_bound(edges.begin(), edges.end(), x) - edges.begin());
}
constexpr std::size_t kMatches = 8;
/// Match lengths, tokens, in kMatches classes.
inline std::size_t match_bucket(std::uint32_t m) {
  constexpr std::array<float, kMatches - 1> edges{2.0f, 3.0f, 4.0f, 6.0f, 9.0f, 17.0f, 33.0f};
  return bucket(edges, static_cast<float>(m));
}

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

using Place = std::array<Match, 2>;  // where both lanes stand

struct Candidate;
struct CandidateList;

/// Text from the eyes of one session: which trees it reads, and whose text is whose.
struct View {
  std::array<const Automaton*, 2> lanes;  // own, shared (may be null)
  std::uint32_t own = 0;                  // its serial
  std::uint32_t newest = 0;               // serials from here on are of the newest policy version

  /// Serials are even for rollouts and odd for run-ahead; 0 is prompt and tool text.
  Source source(std::uint32_t serial) const {
    if (serial == 0) return kPrompt;
    if (serial == own) return kOwn;
    if (serial & 1u) return kRunAhead;
    return serial >= newest && own >= newest ? kSibling : kHistory;
  }
  Place advance(Place place, Token token) const {
    for (std::size_t lane = 0; lane < 2; ++lane)
      if (lanes[lane]) place[lane] = follow(*lanes[lane], place[lane], token);
    return place;
  }
  /// The same for a candidate of `list`, ranked at `place`: what the ranker found there need not be looked up again.
  Place advance(Place place, const CandidateList& list, const Candidate& next) const;
};

struct Candidate {
  Token token;
  std::array<StateId, 2> target;  // where the token leads in each lane, from its longest context; kNone: unseen there
  std::array<float, 2> share;     // blended over the suffix lengths
  std::array<float, 2> count;     // weighted, after the longest suffix that has a continuation
  float probability;              // that the policy emits it here
  // What the model saw, to learn from.
  std::array<float, 2> odds;
  std::array<std::uint16_t, 3> traits;
  std::uint16_t set;
};

struct CandidateList {
  static constexpr std::uint32_t kMost = 16;
  std::uint32_t size = 0;
  std::size_t match = 0;         // bucket of the matched length in the own tree
  std::uint32_t sightings = 0;   // weighted continuations of the longest suffix that has any, own tree before shared
  std::array<std::uint32_t, 2> total, length;  // of each lane's longest suffix that has a continuation: sightings, tokens
  std::array<bool, 2> direct;    // and whether that is the whole context
  std::array<Candidate, kMost> items;
  const Candidate* begin() const { return items.data(); }
  const Candidate* end() const { return items.data() + size; }
  Candidate* begin() { return items.data(); }
  Candidate* end() { return items.data() + size; }
};

inline Place View::advance(Place place, const CandidateList& list, const Candidate& next) const {
  for (std::size_t lane = 0; lane < 2; ++lane) {
    if (!lanes[lane]) continue;
    if (next.count[lane] > 0 && list.direct[lane])
      place[lane] = {next.target[lane], std::min(place[lane].length, lanes[lane]->depth() - 1) + 1};
    else
      place[lane] = follow(*lanes[lane], place[lane], next.token);
  }
  return place;
}

class Ranker {
 public:
  Ranker() {
    for (std::size_t i = 0; i < kSets; ++i) sets_[i] = prior(i);
  }

  /// Fills `out` with the candidates after `place`; `last` is the token before them. O(suffixes x degree), both bounded.
  void rank(const View& view, const Place& place, Token last, std::uint32_t min_match, CandidateList& out) const {
    collect(view, place, last, min_match, out);
    appraise(out);
  }

  /// The candidates without their probabilities: what nothing that is learned changes.
  static void collect(const View& view, const Place& place, Token last, std::uint32_t min_match, CandidateList& out) {
    out.size = out.sightings = 0;
    out.total = out.length = {0, 0};
    out.direct = {false, false};
    for (std::size_t lane = 0; lane < 2; ++lane)
      if (view.lanes[lane]) gather(*view.lanes[lane], lane, place[lane], min_match, out);
    out.match = match_bucket(place[0].length);
    weigh(out);
    for (Candidate& c : out) describe(view, out.match, last, c);
  }
  void appraise(CandidateList& list) const {
    std::array<float, CandidateList::kMost> z{};
    for (std::uint32_t i = 0; i < list.size; ++i) z[i] = score(list.items[i]);
    squash_all(z.data(), filled_up(list.size));
    for (std::uint32_t i = 0; i < list.size; ++i) list.items[i].probability = z[i];
  }

  /// Learns that `actual` came after the context that `candidates` were ranked for.
  void learn(const CandidateList& candidates, Token actual) {
    ++seen_;
    for (const Candidate& c : candidates) {
      const float error = squash(score(c)) - static_cast<float>(c.token == actual);
      Set& set = sets_[c.set];
      set.bias.update(error, kRate);
      for (std::size_t lane = 0; lane < 2; ++lane) set.odds[lane].update(error * c.odds[lane], kRate);
      for (std::uint16_t trait : c.traits) traits_[trait].update(error, kRate);
    }
  }

  /// Tokens learned from so far.
  std::uint64_t seen() const { return seen_; }

 private:
  static constexpr int kLevels = 3;               // suffixes with a continuation that are blended; more added < 0.1 %
  static constexpr std::uint32_t kScan = 16;      // wider states (hubs) only confirm candidates and add their best
  static constexpr float kSmoothing = 1.0f * kUnit;  // sightings at which a suffix outweighs all shorter ones
  static constexpr float kEnough = 0.02f;         // weight left for shorter suffixes below which they are not read
  static constexpr float kFaint = 0.02f;          // share below which a shorter suffix adds no candidate
  static constexpr float kRate = 0.2f;
  static constexpr std::size_t kClasses = 6, kSets = 2 * kClasses * kMatches;
  static constexpr std::uint32_t kTraits = 4096;  // slots of each of three tables of token traits

  struct Set {
    Weight bias;
    std::array<Weight, 2> odds;
  };

  // Before anything is learned the blended share is believed; the shared tree alone somewhat less.
  static Set prior(std::size_t index) {
    const bool own = index / kMatches % kClasses != 0, shared = index / (kMatches * kClasses) == 1;
    Set set;
    set.bias.value = own ? 0.0f : -0.5f;
    set.odds[0].value = own ? (shared ? 0.8f : 1.0f) : 0.0f;
    set.odds[1].value = shared ? (own ? 0.2f : 1.0f) : 0.0f;
    return set;
  }

  static std::uint16_t trait(std::uint32_t table, std::uint32_t key) {
    std::uint32_t x = (key + table) * 0x9E3779B1u;
    x = (x ^ (x >> 15)) * 0x85EBCA6Bu;
    return static_cast<std::uint16_t>(table * kTraits + ((x ^ (x >> 13)) & (kTraits - 1)));
  }

  /// Adds one lane's candidates and blends their shares, longest suffix first.
  static void gather(const Automaton& text, std::size_t lane, const Match& m, std::uint32_t min_match, CandidateList& out) {
    float weight = 1.0f;
    int level = 0;
    const StateId whole = text.context(m.state);
    for (StateId s = whole; s != kRoot && level < kLevels && weight > kEnough; s = text.state(s).link) {
      if (level == 0 && std::min(m.length, text.context_length(s)) < min_match) return;
      const std::uint32_t total =
          text.is_hub(s) ? confirm(text, lane, s, weight, level == 0, out) : scan(text, lane, s, weight, level == 0, out);
      if (total == 0) continue;
      if (level == 0) {
        out.total[lane] = total;
        out.direct[lane] = s == whole;
        out.length[lane] = std::min(m.length, text.context_length(s));
      }
      if (out.sightings == 0) out.sightings = total;
      weight *= kSmoothing / (static_cast<float>(total) + kSmoothing);
      ++level;
    }
  }
  /// A state of few children: all of them. Returns the weighted count of continuations.
  static std::uint32_t scan(const Automaton& text, std::size_t lane, StateId s, float weight, bool longest, CandidateList& out) {
    std::array<Edge, kScan> edges;
    std::array<std::uint32_t, kScan> counts;
    std::uint32_t n = 0, total = 0;
    text.for_each_edge(s, [&](Token token, StateId child) {
      const std::uint32_t count = text.state(child).count;
      if (count == 0) return;
      edges[n] = Edge{token, child};
      counts[n++] = count;
      total += count;
    });
    const float each = weight / (static_cast<float>(total) + kSmoothing);
    for (std::uint32_t i = 0; i < n; ++i) {
      const auto count = static_cast<float>(counts[i]);
      const bool may_add = (longest && lane == 0) || count >= kFaint * static_cast<float>(total);
      add(lane, edges[i], each * count, longest ? count : 0.0f, may_add, out);
    }
    return total;
  }
  /// A hub: looks the known candidates up and adds its most frequent child.
  static std::uint32_t confirm(const Automaton& text, std::size_t lane, StateId s, float weight, bool longest, CandidateList& out) {
    const std::uint32_t total = text.hub_sum(s);
    if (total == 0) return 0;
    const float each = weight / (static_cast<float>(total) + kSmoothing);
    const Edge best = text.hub_best(s);
    bool known = best.target == kRoot || text.state(best.target).count == 0;
    for (Candidate& c : out) {
      known |= c.token == best.token;
      const StateId child = text.find(s, c.token);
      if (child == kNone) continue;
      const auto count = static_cast<float>(text.state(child).count);
      raise(lane, child, each * count, longest ? count : 0.0f, c);
    }
    if (known) return total;
    const auto count = static_cast<float>(text.state(best.target).count);
    add(lane, best, each * count, longest ? count : 0.0f, true, out);
    return total;
  }
  static void add(std::size_t lane, const Edge& edge, float share, float count, bool may_add, CandidateList& out) {
    std::uint32_t i = 0;
    while (i < out.size && out.items[i].token != edge.token) ++i;
    if (i == out.size) {
      if (!may_add || i == CandidateList::kMost) return;
      Candidate& made = out.items[out.size++];
      made.token = edge.token;
      made.target = {kNone, kNone};
      made.share = made.count = {0.0f, 0.0f};
    }
    raise(lane, edge.target, share, count, out.items[i]);
  }
  static void raise(std::size_t lane, StateId target, float share, float count, Candidate& c) {
    if (c.target[lane] == kNone) c.target[lane] = target;
    c.share[lane] += share;
    c.count[lane] += count;
  }

  /// Log odds of what each lane says; 0 where it says nothing.
  static void weigh(CandidateList& list) {
    std::array<float, 2 * CandidateList::kMost> odds{};
    for (std::uint32_t i = 0; i < list.size; ++i) {
      odds[2 * i] = list.items[i].share[0];
      odds[2 * i + 1] = list.items[i].share[1];
    }
    log_odds_all(odds.data(), filled_up(2 * list.size));
    for (std::uint32_t i = 0; i < list.size; ++i) {
      Candidate& c = list.items[i];
      for (std::size_t lane = 0; lane < 2; ++lane) c.odds[lane] = c.target[lane] != kNone ? odds[2 * i + lane] : 0.0f;
    }
  }
  static void describe(const View& view, std::size_t match, Token last, Candidate& c) {
    const bool own = c.target[0] != kNone, shared = c.target[1] != kNone;
    std::size_t kind = 0;  // unseen in the own tree
    if (own) {
      const Source source = view.source(view.lanes[0]->state(c.target[0]).source);
      kind = source == kRunAhead ? 5 : 1 + static_cast<std::size_t>(source);
    }
    c.set = static_cast<std::uint16_t>((shared * kClasses + kind) * kMatches + match);
    c.traits = {trait(0, last), trait(1, c.token), trait(2, last * 31 + c.token)};
  }
  float score(const Candidate& c) const {
    const Set& set = sets_[c.set];
    float z = set.bias.value + set.odds[0].value * c.odds[0] + set.odds[1].value * c.odds[1];
    for (std::uint16_t trait : c.traits) z += traits_[trait].value;
    return z;
  }

  std::array<Set, kSets> sets_;
  std::vector<Weight> traits_ = std::vector<Weight>(3 * kTraits);
  std::uint64_t seen_ = 0;
};

}  // namespace rolltree
