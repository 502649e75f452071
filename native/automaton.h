// The index of one prompt's text: a suffix automaton, capped at a context depth, with weighted occurrence counts.
//
// It holds every substring of up to `depth` tokens of everything fed to it, merged by equal end positions. Several
// sequences grow it at once; each is represented by its tip, the state whose longest string is the last
// min(depth, length) tokens of that sequence. A tip never needs repair: splitting a state moves only its shorter
// strings away. What a sequence matches elsewhere lies on the suffix-link chain of its tip, so a tip is also a cursor.
//
// Cost of a token: the states on the suffix-link chain of its tip, each counted. Text without long repeats has 4 to 8 of
// them; text that repeats itself endlessly has up to `depth`, which bounds the worst case. `steps` tells the sum.
//
// Does not keep the text, does not know prompts, rollouts or versions (see prompt_tree.h). Not thread-safe.
//
// Invariants (checked by `check`): link lengths strictly fall; counts never rise towards longer strings; an edge leads
// to a state at least one longer, or capped; a hub's header holds the sum and the best of its children.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "pod_vector.h"

namespace rolltree {

using StateId = std::uint32_t;
using Token = std::uint32_t;
constexpr StateId kNone = UINT32_MAX;
constexpr StateId kRoot = 0;

struct Edge {
  Token token;
  StateId target;  // kRoot marks a free slot: no edge leads to the root
};

struct State {
  StateId link;          // longest proper suffix with other end positions
  std::uint32_t count;   // weighted occurrences of the strings of this state
  std::uint32_t source;  // serial of the sequence that passed here last
  std::uint16_t length;  // length of the longest string, at most the depth
  std::uint8_t rank;     // edges: 0 none, 1 one inline, r >= 2 a block of 2^(r-1)
  std::uint8_t unused;
  std::uint32_t a;  // inline token, or offset of the block
  std::uint32_t b;  // inline target, or number of edges in the block
};
static_assert(sizeof(State) == 24);

class Automaton {
 public:
  static constexpr std::uint32_t kHub = 32;  // blocks of this capacity and more are hash tables with a header

  /// `depth` >= 2: longest indexed string; a draft is predicted from at most depth - 1 tokens.
  explicit Automaton(std::uint32_t depth) : depth_(depth) { states_.push_back(State{kNone, 0, 0, 0, 0, 0, 0, 0}); }

  std::uint32_t depth() const { return depth_; }
  std::size_t size() const { return states_.size(); }
  const State& state(StateId s) const { return states_[s]; }
  std::size_t bytes() const { return states_.bytes() + edges_.bytes(); }
  std::uint64_t total() const { return states_[kRoot].count; }
  /// States visited by `append` and `subtract` so far: a measure of work that does not depend on a clock.
  std::uint64_t steps() const { return steps_; }
  /// Edges looked at so far to find the most frequent child of a hub.
  std::uint64_t scanned() const { return scanned_; }
  /// Gives up to `bytes` back; the automaton is of no more use. Returns whether memory is left.
  bool give_back(std::size_t bytes) { return states_.give_back(bytes) || edges_.give_back(bytes); }

  /// The edge's target or kNone. O(1) expected, at most 16 comparisons.
  StateId find(StateId s, Token token) const {
    const State& st = states_[s];
    if (st.rank == 0) return kNone;
    if (st.rank == 1) return st.a == token ? st.b : kNone;
    const Edge* block = edges_.data() + st.a;
    const std::uint32_t capacity = 1u << (st.rank - 1);
    if (capacity >= kHub) {
      const Edge& slot = block[probe(block, capacity, token)];
      return slot.target == kRoot ? kNone : slot.target;
    }
    for (std::uint32_t i = 0; i < st.b; ++i)
      if (block[i].token == token) return block[i].target;
    return kNone;
  }

  /// Feeds one token after `last` and counts it: O(states on the tip's suffix-link chain), at most the depth; amortised
  /// over appends, what hubs cost beyond that is O(1) each. Returns the new tip.
  StateId append(StateId last, Token token, std::uint32_t weight, std::uint32_t source) {
    const StateId tip = extend(last, token);
    for (StateId s = tip; s != kNone; s = states_[s].link, ++steps_) {
      states_[s].count += weight;
      states_[s].source = source;
    }
    for (StateId p = last; p != kNone; p = states_[p].link)
      if (is_hub(p)) hub_gained(p, token, weight);
    return tip;
  }

  /// Takes back what `append(last, token, weight, …)` counted; the text stays as states of count 0. Returns the tip.
  StateId subtract(StateId last, Token token, std::uint32_t weight) {
    const StateId tip = find(last, token);
    for (StateId s = tip; s != kNone; s = states_[s].link, ++steps_) states_[s].count -= weight;
    for (StateId p = last; p != kNone; p = states_[p].link)
      if (is_hub(p)) hub_lost(p, token, weight);
    return tip;
  }

  /// The state to predict from when `length` tokens of context match in `s`: contexts end one short of the depth.
  StateId context(StateId s) const {
    const StateId link = states_[s].link;
    return states_[s].length == depth_ && states_[link].length == depth_ - 1 ? link : s;
  }
  std::uint32_t context_length(StateId s) const { return std::min<std::uint32_t>(states_[s].length, depth_ - 1); }

  bool is_hub(StateId s) const { return states_[s].rank > kHubRank - 1; }
  std::uint32_t degree(StateId s) const { return states_[s].rank <= 1 ? states_[s].rank : states_[s].b; }
  /// Hubs only: weighted count over all children, and the edge to the most frequent, or for a while after text left to one
  /// that was (its count may be 0).
  std::uint32_t hub_sum(StateId s) const { return edges_[states_[s].a - 2].token; }
  Edge hub_best(StateId s) const { return edges_[states_[s].a - 1]; }

  /// Whether any text goes on after `s`. O(degree).
  bool continues(StateId s) const {
    if (is_hub(s)) return hub_sum(s) > 0;
    bool found = false;
    for_each_edge(s, [&](Token, StateId child) { found |= states_[child].count > 0; });
    return found;
  }
  /// Calls `visit(token, target)` for every edge. O(degree).
  template <class Visit>
  void for_each_edge(StateId s, Visit&& visit) const {
    const State& st = states_[s];
    if (st.rank == 0) return;
    if (st.rank == 1) return visit(st.a, st.b);
    const Edge* block = edges_.data() + st.a;
    const std::uint32_t capacity = 1u << (st.rank - 1);
    const std::uint32_t end = capacity >= kHub ? capacity : st.b;
    for (std::uint32_t i = 0; i < end; ++i)
      if (block[i].target != kRoot) visit(block[i].token, block[i].target);
  }

  // Hints for the processor: what is going to be read, of states whose own line was asked for before. They change nothing.
  void expect(StateId s) const { prefetch(&states_[s]); }
  /// The edges of `s`, or its only child.
  void expect_edges(StateId s) const {
    const State& st = states_[s];
    if (st.rank == 0) return;
    if (st.rank == 1) return expect(st.b);
    const Edge* block = edges_.data() + st.a;
    prefetch(is_hub(s) ? block - kHeader : block);
    if (st.b > kLine) prefetch(block + kLine);
  }
  /// The children of `s`; of a hub the most frequent.
  void expect_children(StateId s) const {
    const State& st = states_[s];
    if (st.rank < 2) return;
    if (is_hub(s)) return expect(hub_best(s).target);
    for (const Edge *edge = edges_.data() + st.a, *end = edge + st.b; edge != end; ++edge) expect(edge->target);
  }

  /// Walks every state and edge; an empty string means sound, else the first fault found. O(size).
  std::string check() const;

 private:
  static constexpr std::uint32_t kLine = 8;     // edges in a cache line
  static constexpr std::uint32_t kHubRank = 6;  // 2^(6-1) = kHub
  static constexpr std::uint32_t kHeader = 2;   // slots before a hub's block: (sum, changes while the best is a guess; 0: it is known), best edge
  static constexpr std::uint32_t kRescan = 64;  // edges that each change of a hub pays towards finding a lost best again

  static void prefetch([[maybe_unused]] const void* at) {
#if defined(__GNUC__)
    __builtin_prefetch(at);
#endif
  }
  static std::uint32_t hash(Token token) {
    std::uint32_t x = token * 0x9E3779B1u;
    return x ^ (x >> 15);
  }
  static std::uint32_t probe(const Edge* block, std::uint32_t capacity, Token token) {
    std::uint32_t i = hash(token) & (capacity - 1);
    while (block[i].target != kRoot && block[i].token != token) i = (i + 1) & (capacity - 1);
    return i;
  }

  // Online construction (Blumer et al. 1985, generalised to many strings), with lengths capped at the depth: from a
  // state of full depth only its suffix of depth - 1 predicts, so that suffix's edge, when present, is the answer.
  StateId extend(StateId last, Token token) {
    const auto wanted = static_cast<std::uint16_t>(std::min(states_[last].length + 1u, depth_));
    StateId q = find(last, token);
    if (q != kNone) return states_[q].length == wanted ? q : clone(last, token, q);
    const StateId shorter = context(last);
    if (shorter != last && (q = find(shorter, token)) != kNone) {
      add_edge(last, token, q);
      return q;
    }
    const StateId tip = new_state(wanted);
    StateId p = last;
    for (; p != kNone && (q = find(p, token)) == kNone; p = states_[p].link) add_edge(p, token, tip);
    if (p == kNone) return tip;  // its link is the root already
    const StateId link = states_[q].length == states_[p].length + 1u ? q : clone(p, token, q);
    states_[tip].link = link;
    return tip;
  }

  /// Splits the strings of `q` up to length(p) + 1 off into a new state; O(degree of q + depth).
  StateId clone(StateId p, Token token, StateId q) {
    const StateId copy = new_state(static_cast<std::uint16_t>(states_[p].length + 1));
    State& c = states_[copy];
    State& original = states_[q];
    c.link = original.link;
    c.count = original.count;
    c.source = original.source;
    original.link = copy;
    copy_edges(q, copy);
    for (; p != kNone && redirect(p, token, q, copy); p = states_[p].link) {
    }
    return copy;
  }

  StateId new_state(std::uint16_t length) {
    states_.push_back(State{kRoot, 0, 0, length, 0, 0, 0, 0});
    return static_cast<StateId>(states_.size() - 1);
  }

  bool redirect(StateId s, Token token, StateId from, StateId to) {
    State& st = states_[s];
    if (st.rank == 0) return false;
    if (st.rank == 1) {
      if (st.a != token || st.b != from) return false;
      st.b = to;
      return true;
    }
    Edge* edge = slot(s, token);
    if (!edge || edge->target != from) return false;
    edge->target = to;
    if (is_hub(s) && hub_best(s).target == from) edges_[st.a - 1].target = to;
    return true;
  }

  Edge* slot(StateId s, Token token) {
    const State& st = states_[s];
    Edge* block = &edges_[st.a];
    const std::uint32_t capacity = 1u << (st.rank - 1);
    if (capacity >= kHub) {
      const std::uint32_t i = probe(block, capacity, token);
      return block[i].target == kRoot ? nullptr : block + i;
    }
    for (std::uint32_t i = 0; i < st.b; ++i)
      if (block[i].token == token) return block + i;
    return nullptr;
  }

  void add_edge(StateId s, Token token, StateId target) {
    State& st = states_[s];
    if (st.rank == 0) {
      st.rank = 1;
      st.a = token;
      st.b = target;
      return;
    }
    if (full(st)) grow(s);
    State& now = states_[s];
    Edge* block = &edges_[now.a];
    const std::uint32_t capacity = 1u << (now.rank - 1);
    block[capacity >= kHub ? probe(block, capacity, token) : now.b] = Edge{token, target};
    ++now.b;  // a new child has count 0 until the token is counted, so a hub's header stays right
  }

  static bool full(const State& st) {
    if (st.rank == 1) return true;
    const std::uint32_t capacity = 1u << (st.rank - 1);
    return capacity >= kHub ? st.b * 4 >= capacity * 3 : st.b == capacity;
  }

  /// Moves the edges of `s` to a block of twice the capacity; the old block is re-used for its size.
  void grow(StateId s) {
    const State old = states_[s];
    const auto rank = static_cast<std::uint8_t>(old.rank + 1);
    const std::uint32_t block = allocate(rank);
    State& st = states_[s];
    st.rank = rank;
    st.a = block;
    st.b = old.rank == 1 ? 1 : old.b;
    if (old.rank == 1) {
      edges_[block] = Edge{old.a, old.b};
      return;
    }
    move_block(old, block, rank);
    if (rank == kHubRank) summarise(s);
    if (rank > kHubRank) copy_header(old.a, block);
    release(old.a, old.rank);
  }

  void move_block(const State& old, std::uint32_t block, std::uint8_t rank) {
    const std::uint32_t from = 1u << (old.rank - 1), to = 1u << (rank - 1);
    const std::uint32_t used = from >= kHub ? from : old.b;
    for (std::uint32_t i = 0; i < used; ++i) {
      const Edge edge = edges_[old.a + i];
      if (edge.target == kRoot) continue;
      edges_[block + (to >= kHub ? probe(&edges_[block], to, edge.token) : i)] = edge;
    }
  }

  void copy_edges(StateId from, StateId to) {
    const State source = states_[from];
    State& st = states_[to];
    st.rank = source.rank;
    st.a = source.a;
    st.b = source.b;
    if (source.rank <= 1) return;
    const std::uint32_t block = allocate(source.rank);
    states_[to].a = block;
    const std::uint32_t capacity = 1u << (source.rank - 1);
    for (std::uint32_t i = 0; i < capacity; ++i) edges_[block + i] = edges_[source.a + i];
    if (source.rank >= kHubRank) copy_header(source.a, block);
  }

  // Blocks come from one array; freed ones are chained by size through their first slot.
  std::uint32_t allocate(std::uint8_t rank) {
    const std::uint32_t capacity = 1u << (rank - 1), header = rank >= kHubRank ? kHeader : 0;
    std::uint32_t block = free_[rank];
    if (block != 0) {
      free_[rank] = edges_[block].token;
    } else {
      if (edges_.empty()) edges_.push_back(Edge{0, kRoot});  // offset 0 means "none" in the free lists
      block = static_cast<std::uint32_t>(edges_.extend(capacity + header)) + header;
    }
    for (std::uint32_t i = 0; i < capacity; ++i) edges_[block + i] = Edge{0, kRoot};
    for (std::uint32_t i = 1; i <= header; ++i) edges_[block - i] = Edge{0, kRoot};
    return block;
  }
  void copy_header(std::uint32_t from, std::uint32_t to) {
    for (std::uint32_t i = 1; i <= kHeader; ++i) edges_[to - i] = edges_[from - i];
  }
  void release(std::uint32_t block, std::uint8_t rank) {
    edges_[block] = Edge{free_[rank], kRoot};
    free_[rank] = block;
  }

  void summarise(StateId s) {
    std::uint32_t sum = 0;
    Edge best{0, kRoot};
    scanned_ += states_[s].b;
    for_each_edge(s, [&](Token token, StateId child) {
      sum += states_[child].count;
      if (best.target == kRoot || states_[child].count > states_[best.target].count) best = Edge{token, child};
    });
    edges_[states_[s].a - 2] = Edge{sum, 0};
    edges_[states_[s].a - 1] = best;
  }
  // Text that leaves may leave another child the most frequent. Until the changes since have paid for a scan the best is a
  // guess, so that forgetting and appending in turns costs O(1) amortised however many children there are.
  void hub_gained(StateId s, Token token, std::uint32_t weight) {
    Edge* header = &edges_[states_[s].a - kHeader];
    header[0].token += weight;
    const StateId child = find(s, token);
    if (header[1].target == kRoot || states_[child].count > states_[header[1].target].count) header[1] = Edge{token, child};
    if (header[0].target) pay(s);
  }
  void hub_lost(StateId s, Token token, std::uint32_t weight) {
    Edge* header = &edges_[states_[s].a - kHeader];
    header[0].token -= weight;
    if (header[0].target || header[1].token == token) pay(s);
  }
  void pay(StateId s) {
    if (std::uint64_t{++edges_[states_[s].a - kHeader].target} * kRescan >= states_[s].b) summarise(s);
  }

  std::uint32_t depth_;
  std::uint64_t steps_ = 0, scanned_ = 0;
  PodVector<State> states_;
  PodVector<Edge> edges_;
  std::uint32_t free_[33] = {};
};

inline std::string Automaton::check() const {
  auto fault = [](StateId s, const char* what) { return "state " + std::to_string(s) + ": " + what; };
  for (StateId s = 1; s < states_.size(); ++s) {
    const State& st = states_[s];
    if (st.link >= states_.size()) return fault(s, "dangling suffix link");
    const State& up = states_[st.link];
    if (up.length >= st.length) return fault(s, "suffix link is not shorter");
    if (st.length > depth_) return fault(s, "longer than the depth");
    if (up.count < st.count) return fault(s, "counted more often than its suffix");
  }
  for (StateId s = 0; s < states_.size(); ++s) {
    const State& st = states_[s];
    std::uint64_t sum = 0;
    std::uint32_t most = 0, edges = 0;
    const char* wrong = nullptr;
    for_each_edge(s, [&](Token token, StateId child) {
      if (child == kRoot || child >= states_.size()) return void(wrong = "dangling edge");
      const State& to = states_[child];
      if (to.length < std::min(st.length + 1u, depth_)) wrong = "edge to a shorter state";
      if (find(s, token) != child) wrong = "edge not found by its token";
      sum += to.count;
      most = std::max(most, to.count);
      ++edges;
    });
    if (wrong) return fault(s, wrong);
    if (edges != degree(s)) return fault(s, "wrong degree");
    if (st.length == depth_) continue;  // predicts through its suffix: its children count other contexts too
    if (!is_hub(s)) continue;
    if (hub_sum(s) != sum) return fault(s, "stale hub sum");
    if (edges_[st.a - kHeader].target != 0) continue;  // a guess
    if (hub_best(s).target == kRoot || states_[hub_best(s).target].count != most) return fault(s, "stale best child of a hub");
  }
  return {};
}

}  // namespace rolltree
