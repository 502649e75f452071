// All trees and sequences of a cache behind integer handles, with batch calls.
//
// Handles carry a generation, so a closed one is told from a live one for ever. One mutex guards everything; calls are
// short whatever waits to be done (see upkeep.h), and callers release Python's lock around them. Every argument is
// checked before anything changes. When memory runs out in the midst of a call, std::bad_alloc says so, and the sessions
// of that call may lack tokens: close them without keeping them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "drafting.h"
#include "fork_guard.h"
#include "handles.h"
#include "history.h"
#include "teaching.h"
#include "upkeep.h"
#include "workers.h"

namespace rolltree {

/// Sums by source; ratios are the reader's business.
struct SourceSums {
  std::uint64_t drafted = 0, accepted = 0;
};

/// See upkeep.h.
struct Limits {
  std::size_t own = 0, shared = 0;           // bytes that trees may take, 0: any
  std::uint64_t slice = Upkeep::kSlice;      // states that a call visits for work that waits
};

/// Arrays of shape [rows, width], row-major, owned by the caller.
struct DraftArrays {
  std::size_t rows, width;
  std::int32_t* tokens;
  std::int32_t* parents;
  float* survival;
  std::uint8_t* source;
  std::int32_t* lengths;  // [rows]
};

struct TreeStats {
  std::size_t bytes, live, kept, states;
  std::uint64_t tokens;
  bool pending;  // text is still to be subtracted, or an automaton is being built
};

class Forest {
 public:
  /// `shared_window` > 0 adds a tree that all prompts share, over that many finished rollouts of any prompt.
  explicit Forest(const TreeOptions& options, std::uint32_t shared_window = 0, const Limits& limits = {})
      : options_(options), shared_window_(shared_window) {
    require(options.depth >= 2 && options.depth <= 4096, "depth", options.depth, "between 2 and 4096");
    require(options.decay > 0 && options.decay <= 1, "decay", options.decay, "above 0 and at most 1");
    require(options.context_weight >= 1 && options.context_weight <= kUnit, "context_weight", options.context_weight,
            "between 1 and 64 (units of 1/64 rollout)");
    upkeep_.set_limits(limits.own, limits.shared, limits.slice);
    make_shared();
  }

  std::int64_t add_tree(const std::int32_t* prompt, std::size_t n, std::int64_t version) {
    check_tokens("prompt", prompt, n);
    std::lock_guard lock(mutex_);
    auto made = std::make_unique<KeptTree>(options_, version, prompt, n, most_adopted());
    KeptTree& tree = *made;
    tree.part = 2 + made_++ % KeptTree::kParts;
    const std::int64_t handle = trees_.add(std::move(made));
    upkeep_.touched(tree);
    upkeep_.run(tree.steps());
    return handle;
  }
  /// Begins what `adopt` may take; needs no lock. `version` is the policy's of the oldest rollout.
  History history(const std::int32_t* prompt, std::size_t n, std::int64_t version) const {
    check_tokens("prompt", prompt, n);
    return History(options_, version, prompt, n);
  }
  /// Rollouts that a history may have.
  std::uint32_t most_adopted() const { return std::min(options_.window, kMostAdopted); }
  /// Puts a history of the same prompt, of at most `most_adopted` rollouts, before what the tree holds; the history is empty
  /// afterwards. As short as any call: what the tree holds besides is added in slices.
  void adopt(std::int64_t tree, History& history) {
    PromptTree& whole = history.whole();
    std::lock_guard lock(mutex_);
    KeptTree& t = tree_at(tree);
    const auto& mine = t.prompt();
    require(std::equal(mine.begin(), mine.end(), whole.prompt().begin(), whole.prompt().end()), "history", "one of another prompt", "one of the tree's own prompt");
    require(whole.kept() <= most_adopted(), "history", whole.kept(), "at most the window, and 1,048,576 rollouts");
    std::unique_ptr<Automaton> old;
    t.adopt(whole);
    history.taken();
    t.work(upkeep_.slice(), old);
    if (old) upkeep_.retire(std::move(old));
    upkeep_.touched(t);
    upkeep_.run(0);
  }
  void remove_tree(std::int64_t tree) {
    std::lock_guard lock(mutex_);
    KeptTree& t = tree_at(tree);
    require(t.live() == 0, "tree", tree, "without live sessions (close them first)");
    upkeep_.removed(t);
    trees_.remove(tree);
    upkeep_.run(0);
  }
  /// Forgets all text and what was learned from it; handles stay closed for ever, and sums go on.
  void clear() {
    std::lock_guard lock(mutex_);
    require(sessions_.size() == 0, "sessions", sessions_.size(), "0 (close them first)");
    trees_.for_each([&](std::unique_ptr<KeptTree>& t) { upkeep_.removed(*t); });
    trees_.clear();
    if (shared_) upkeep_.removed(*shared_);
    make_shared();
    ranker_ = Ranker{};
    races_ = RaceModel{};
    samples_ = 0;
  }

  /// Opens a session. Drafts follow `noise`, the sampler's, where it has any.
  std::int64_t open(std::int64_t tree, std::int64_t version, bool reader, bool from_prompt, SamplerNoise noise,
                    bool run_ahead = false) {
    std::lock_guard lock(mutex_);
    KeptTree& t = tree_at(tree);
    for (KeptTree* each : {&t, shared_.get()}) {
      if (!each) continue;
      each->announce(version);
      upkeep_.touched(*each);
    }
    upkeep_.run(0);  // weights of a new version, before text is counted by them
    Session s{&t, t.open(version, reader, from_prompt, run_ahead), nullptr, noise};
    try {
      if (shared_) {
        s.shared = shared_->open(version, reader, true, run_ahead);
        if (from_prompt) quote_prompt(t, *s.shared);
      }
      const std::int64_t handle = sessions_.add(s);
      touched(s);
      return handle;
    } catch (...) {
      end(s, false);
      throw;
    }
  }
  void close(std::int64_t session, bool keep) {
    std::lock_guard lock(mutex_);
    const Session s = session_at(session);
    end(s, keep);
    sessions_.remove(session);
    upkeep_.run(0);
  }

  void append(std::int64_t session, const std::int32_t* tokens, std::size_t n, bool context) {
    check_tokens("tokens", tokens, n);
    std::lock_guard lock(mutex_);
    appended_.assign(1, {&session_at(session), tokens, n});
    append_all(context, false);
  }
  /// Row b appends tokens[offsets[b] .. offsets[b + 1]).
  void append_batch(const std::int64_t* sessions, std::size_t rows, const std::int32_t* tokens, std::size_t n,
                    const std::int32_t* offsets) {
    std::lock_guard lock(mutex_);
    check_rows(sessions, rows, tokens, n, offsets);
    append_rows(sessions, rows, tokens, offsets, false);
  }
  /// Does all work that waits in trees, however long it takes: for tests and measurements.
  void finish() {
    std::lock_guard lock(mutex_);
    upkeep_.finish();
  }
  /// Makes a tree with live sessions smaller, for a caller whose limit is passed though nothing is left to evict.
  void relieve() {
    std::lock_guard lock(mutex_);
    upkeep_.relieve([&](auto&& visit) { trees_.for_each([&](std::unique_ptr<KeptTree>& t) { if (t->live()) visit(*t); }); });
  }
  /// Bytes of all prompts' own trees, of the shared tree, and of pages that are being given back. O(1).
  std::size_t own_bytes() {
    std::lock_guard lock(mutex_);
    return upkeep_.own_bytes();
  }
  std::size_t bytes() {
    std::lock_guard lock(mutex_);
    return upkeep_.own_bytes() + upkeep_.shared_bytes() + upkeep_.releasing();
  }

  /// Drafts for each session into a row of `out`; `rule.limit`, noise and position are set from `limits` and the session.
  /// Rows are independent of each other, so large batches are spread over the worker threads with the same result.
  void draft_batch(const std::int64_t* sessions, const std::int32_t* limits, const DraftOptions& rule, const DraftArrays& out) {
    std::lock_guard lock(mutex_);
    for (std::size_t b = 0; b < out.rows; ++b) session_at(sessions[b]);
    workers_.run(out.rows, [&](std::size_t from, std::size_t to, DraftScratch& scratch) { draft_rows(sessions, limits, rule, out, from, to, scratch); });
  }
  /// Longest suffix of each session's text with a continuation in its own tree, tokens; `out` is [rows].
  void matches(const std::int64_t* sessions, std::size_t rows, std::int32_t* out) {
    std::lock_guard lock(mutex_);
    for (std::size_t b = 0; b < rows; ++b) {
      const Session& s = session_at(sessions[b]);
      const Automaton& a = s.tree->automaton();
      const Match m = s.tree->place(*s.sequence);
      StateId state = a.context(m.state);
      while (state != kRoot && !a.continues(state)) state = a.state(state).link;
      out[b] = static_cast<std::int32_t>(std::min(m.length, a.context_length(state)));
    }
  }

  /// Judges drafts by the tokens really emitted, learns from the tokens and appends them. The draft of session b
  /// is in row `rows[b]` (-1: it has none), of which the first verified[row] nodes were verified. `accepted` is [n_sessions].
  void settle(const std::int64_t* sessions, std::size_t n_sessions, const DraftArrays& drafts, const std::int32_t* rows,
              const std::int32_t* verified, const std::int32_t* tokens, std::size_t n, const std::int32_t* offsets,
              std::int32_t* accepted) {
    std::lock_guard lock(mutex_);
    check_rows(sessions, n_sessions, tokens, n, offsets);
    for (std::size_t b = 0; b < n_sessions; ++b)
      require(rows[b] >= -1 && rows[b] < static_cast<std::int32_t>(drafts.rows), "rows", rows[b], "a row of the drafts, or -1");
    for (std::size_t b = 0; b < drafts.rows; ++b) {
      require(drafts.lengths[b] >= 0 && static_cast<std::size_t>(drafts.lengths[b]) <= drafts.width, "lengths",
              drafts.lengths[b], "between 0 and the width of the drafts");
      for (std::size_t i = 0, at = b * drafts.width; i < static_cast<std::size_t>(drafts.lengths[b]); ++i)
        require(drafts.source[at + i] < kSources, "source", static_cast<int>(drafts.source[at + i]), "as drafted");
    }
    for (std::size_t b = 0; b < n_sessions; ++b) {
      const auto row = static_cast<std::size_t>(std::max(rows[b], 0));
      accepted[b] = rows[b] < 0 ? 0 : judge(drafts, row, verified[row], tokens + offsets[b], offsets[b + 1] - offsets[b]);
    }
    collect_samples(sessions, n_sessions, tokens, offsets);
    append_rows(sessions, n_sessions, tokens, offsets, true);
  }

  /// An empty string means sound, else the first fault found. O(size).
  std::string check(std::int64_t tree) {
    std::lock_guard lock(mutex_);
    return tree_at(tree).check();
  }
  TreeStats stats(std::int64_t tree) {
    std::lock_guard lock(mutex_);
    return stats_of(tree_at(tree));
  }
  /// The shared tree; zeros when there is none.
  TreeStats shared_stats() {
    std::lock_guard lock(mutex_);
    return shared_ ? stats_of(*shared_) : TreeStats{};
  }
  std::string check_shared() {
    std::lock_guard lock(mutex_);
    return shared_ ? shared_->check() : std::string{};
  }
  static TreeStats stats_of(const PromptTree& t) {
    return {t.bytes(), t.live(), t.kept(), t.automaton().size(), t.alive_tokens(), t.pending()};
  }
  /// Weighted occurrences of `text` (at most depth tokens), in units of 1/64 rollout.
  std::uint32_t count(std::int64_t tree, const std::int32_t* text, std::size_t n) {
    check_tokens("text", text, n);
    require(n <= options_.depth, "len(text)", n, "at most the depth");
    std::lock_guard lock(mutex_);
    const Automaton& a = tree_at(tree).automaton();
    StateId s = kRoot;
    for (std::size_t i = 0; i < n; ++i)
      if ((s = a.find(s, static_cast<Token>(text[i]))) == kNone) return 0;
    return a.state(s).count * tree_at(tree).unit();
  }
  /// Length of the longest common prefix of `text` and the tree's prompt, and the prompt's length.
  std::pair<std::size_t, std::size_t> shared_prefix(std::int64_t tree, const std::int32_t* text, std::size_t n) {
    std::lock_guard lock(mutex_);
    const PodVector<Token>& prompt = tree_at(tree).prompt();
    std::size_t i = 0;
    while (i < n && i < prompt.size() && prompt[i] == static_cast<Token>(text[i])) ++i;
    return {i, prompt.size()};
  }
  /// The oracle's draft: how many of `text`'s first tokens follow, in the session's tree (and the shared tree), some
  /// suffix of at least one token of the session's text. O(suffixes x n).
  std::size_t longest_continuation(std::int64_t session, const std::int32_t* text, std::size_t n, bool shared) {
    check_tokens("text", text, n);
    std::lock_guard lock(mutex_);
    const Session& s = session_at(session);
    std::size_t best = longest_after(s.tree->automaton(), s.tree->place(*s.sequence).state, text, n);
    if (shared && s.shared) best = std::max(best, longest_after(shared_->automaton(), shared_->place(*s.shared).state, text, n));
    return best;
  }
  /// Tokens that a session has generated so far; prompt and context do not count.
  std::uint64_t generated(std::int64_t session) {
    std::lock_guard lock(mutex_);
    return session_at(session).sequence->generated;
  }
  /// The same of many sessions, -1 for those that are closed: [rows].
  void generated_batch(const std::int64_t* sessions, std::size_t rows, std::int64_t* out) {
    std::lock_guard lock(mutex_);
    for (std::size_t b = 0; b < rows; ++b) {
      const Session* s = sessions_.get(sessions[b]);
      out[b] = s ? static_cast<std::int64_t>(s->sequence->generated) : -1;
    }
  }
  std::vector<SourceSums> source_sums() {
    std::lock_guard lock(mutex_);
    return {sums_, sums_ + kSources};
  }
  std::uint64_t learned() {
    std::lock_guard lock(mutex_);
    return ranker_.seen();
  }
  void set_threads(std::size_t threads) {
    std::lock_guard lock(mutex_);
    workers_.set_threads(threads);
  }

  /// Throws InputFault for a negative token.
  static void check_tokens(const char* name, const std::int32_t* tokens, std::size_t n) {
    std::int32_t all = 0;
    for (std::size_t i = 0; i < n; ++i) all |= tokens[i];
    if (all >= 0) return;
    for (std::size_t i = 0; i < n; ++i)
      if (tokens[i] < 0) throw InputFault(std::string(name) + "[" + std::to_string(i) + "]", std::to_string(tokens[i]), "a token id, 0 or more");
  }

 private:
  struct Session {
    KeptTree* tree = nullptr;
    Sequence* sequence = nullptr;
    Sequence* shared = nullptr;  // the same text in the shared tree
    SamplerNoise noise;
  };

  static std::string shown(const char* value) { return value; }
  template <class Value>
  static std::string shown(Value value) { return std::to_string(value); }
  template <class Value>
  static void require(bool holds, const char* name, Value got, const char* allowed) {
    if (!holds) throw InputFault(name, shown(got), allowed);
  }
  void check_rows(const std::int64_t* sessions, std::size_t rows, const std::int32_t* tokens, std::size_t n,
                  const std::int32_t* offsets) {
    for (std::size_t b = 0; b < rows; ++b) {
      session_at(sessions[b]);
      require(offsets[b] >= 0 && offsets[b] <= offsets[b + 1] && static_cast<std::size_t>(offsets[b + 1]) <= n, "offsets",
              offsets[b], "rising from 0 to the number of tokens");
    }
    check_tokens("tokens", tokens, n);
  }
  /// Trees are independent of each other, so the worker threads take them apart: the shared tree is one piece of work, own
  /// trees are `KeptTree::kParts`, and teaching, which reads no tree, is another. Within a tree rows keep their order.
  void append_rows(const std::int64_t* sessions, std::size_t rows, const std::int32_t* tokens, const std::int32_t* offsets, bool teach) {
    appended_.clear();
    for (std::size_t b = 0; b < rows; ++b)
      appended_.push_back({&session_at(sessions[b]), tokens + offsets[b], static_cast<std::size_t>(offsets[b + 1] - offsets[b])});
    append_all(false, teach);
  }
  struct Appended {
    const Session* session;
    const std::int32_t* tokens;
    std::size_t count;
  };
  /// What a row did to a tree.
  struct Visit {
    std::int64_t states = 0;
    bool waits = false;  // work came up
  };
  void append_all(bool context, bool teach) {
    const std::size_t rows = appended_.size();
    own_visits_.assign(rows, {});
    shared_visits_.assign(rows, {});
    try {
      workers_.share(KeptTree::kParts + 2, rows < workers_.kSmall, [&](std::size_t part) {
        if (part == 1 && teach) teaching_.teach(ranker_, races_);
        for (std::size_t b = 0; part != 1 && b < rows; ++b) append_part(b, part, context);
      });
    } catch (...) {
      for (const Appended& row : appended_) touched(*row.session);
      throw;
    }
    upkeep_.run(account());
  }
  /// Part 0 is the shared tree's.
  void append_part(std::size_t b, std::size_t part, bool context) {
    const Session& s = *appended_[b].session;
    if (part == s.tree->part) own_visits_[b] = append_to(*s.tree, *s.sequence, appended_[b], context);
    if (part == 0 && s.shared) shared_visits_[b] = append_to(*shared_, *s.shared, appended_[b], context);
  }
  Visit append_to(KeptTree& tree, Sequence& sequence, const Appended& row, bool context) const {
    const std::uint64_t before = tree.steps();
    tree.append(sequence, row.tokens, row.count, context);
    return {static_cast<std::int64_t>(tree.steps() - before), upkeep_.waits(tree)};
  }
  /// Notes what all rows appended, in their order; returns how many states were visited.
  std::uint64_t account() {
    std::uint64_t visited = 0;
    for (std::size_t b = 0; b < appended_.size(); ++b) {
      const Session& s = *appended_[b].session;
      upkeep_.touched(*s.tree, own_visits_[b].waits);
      if (s.shared) upkeep_.touched(*shared_, shared_visits_[b].waits);
      const std::int64_t states = own_visits_[b].states + shared_visits_[b].states;
      visited += static_cast<std::uint64_t>(std::max<std::int64_t>(0, states));  // less where an automaton was replaced to make room
    }
    return visited;
  }
  void touched(const Session& s) {
    upkeep_.touched(*s.tree);
    if (s.shared) upkeep_.touched(*shared_);
  }
  void end(const Session& s, bool keep) {
    s.tree->close(s.sequence, keep);
    if (s.shared) shared_->close(s.shared, keep);
    touched(s);
  }
  void make_shared() {
    shared_.reset();
    if (shared_window_ == 0) return;
    TreeOptions shared = options_;
    shared.window = shared_window_;
    shared_ = std::make_unique<KeptTree>(shared, 0, nullptr, 0);
    shared_->shared = true;
    upkeep_.touched(*shared_);
  }
  /// The end of the prompt gives the shared tree a context for the first tokens of the rollout.
  void quote_prompt(const PromptTree& t, Sequence& sequence) {
    const PodVector<Token>& prompt = t.prompt();
    const std::size_t n = std::min<std::size_t>(prompt.size(), kQuoted);
    std::int32_t end[kQuoted];
    for (std::size_t i = 0; i < n; ++i) end[i] = static_cast<std::int32_t>(prompt[prompt.size() - n + i]);
    shared_->append(sequence, end, n, true);
  }

  static std::size_t longest_after(const Automaton& a, StateId from, const std::int32_t* text, std::size_t n) {
    std::size_t best = 0;
    for (StateId suffix = from; suffix != kRoot && best < n; suffix = a.state(suffix).link) {
      StateId s = suffix;
      for (std::size_t i = 0; i < n; ++i) {
        s = a.find(a.context(s), static_cast<Token>(text[i]));
        if (s == kNone || a.state(s).count == 0) break;
        best = std::max(best, i + 1);
      }
    }
    return best;
  }

  KeptTree& tree_at(std::int64_t tree) {
    auto* found = trees_.get(tree);
    if (!found) throw ClosedFault("tree " + std::to_string(tree) + " was removed or never existed");
    return **found;
  }
  Session& session_at(std::int64_t session) {
    Session* found = sessions_.get(session);
    if (!found) throw ClosedFault("session " + std::to_string(session) + " is closed or never existed: open a new one");
    return *found;
  }

  View view(const Session& s) const {
    return {{&s.tree->automaton(), s.shared ? &shared_->automaton() : nullptr}, s.sequence->serial, s.tree->first_of_newest()};
  }
  Place place(const Session& s) const {
    return {s.tree->place(*s.sequence), s.shared ? shared_->place(*s.shared) : Match{}};
  }
  void draft_rows(const std::int64_t* sessions, const std::int32_t* limits, const DraftOptions& rule, const DraftArrays& out,
                  std::size_t from, std::size_t to, DraftScratch& scratch) {
    std::array<ChainRow, ChainWriter::kMost> rows;
    for (std::size_t b = from; b < to; ++b) rows[b - from] = row_to_draft(session_at(sessions[b]), limits[b], rule, out, b);
    if (!rule.tree) ChainWriter(ranker_, races_, scratch).write(rows.data(), to - from);
    for (std::size_t b = from; b < to; ++b) {
      const auto& [seen, options, chain] = rows[b - from];
      const bool whole = !rule.tree || options.limit == 0;
      out.lengths[b] = static_cast<std::int32_t>(whole ? chain.n : DraftWriter(seen, ranker_, races_, options, scratch).write(chain.place, chain.last, chain.row));
    }
  }
  ChainRow row_to_draft(const Session& s, std::int64_t limit, DraftOptions options, const DraftArrays& out, std::size_t b) const {
    options.limit = static_cast<std::uint32_t>(std::clamp<std::int64_t>(limit, 0, static_cast<std::int64_t>(out.width)));
    options.min_match = std::max(1u, options.min_match);
    options.noise = s.noise;
    options.generated = s.sequence->generated;
    const std::size_t at = b * out.width;
    const DraftRow row{out.tokens + at, out.parents + at, out.survival + at, out.source + at};
    return {view(s), options, {place(s), s.tree->last(*s.sequence), row}};
  }

  /// Collects what the emitted tokens teach the ranker, before they are appended; the last block is still to be taught. After a
  /// warm-up of `kSamplesPerStep` requests a call only: the cost of learning must not grow with the batch.
  void collect_samples(const std::int64_t* sessions, std::size_t n, const std::int32_t* tokens, const std::int32_t* offsets) {
    const std::size_t stride = ranker_.seen() < kWarmUp ? 1 : std::max<std::size_t>(1, n / kSamplesPerStep);
    teaching_.clear();
    for (std::size_t b = samples_++ % stride; b < n; b += stride) {
      const Session& s = session_at(sessions[b]);
      const auto count = static_cast<std::size_t>(offsets[b + 1] - offsets[b]);
      teaching_.add({view(s), place(s), s.tree->last(*s.sequence), s.noise, s.sequence->generated, tokens + offsets[b], count});
    }
    for (std::size_t pieces; (pieces = teaching_.plan()) > 0;) {
      workers_.run(pieces, [&](std::size_t from, std::size_t to, DraftScratch&) { teaching_.collect(from, to); });
      if (!teaching_.more()) break;
      teaching_.teach(ranker_, races_);
    }
  }

  /// Follows the draft along the emitted tokens and counts what was verified and accepted.
  std::int32_t judge(const DraftArrays& d, std::size_t b, std::int32_t verified, const std::int32_t* emitted,
                     std::int32_t n) {
    const std::size_t at = b * d.width;
    verified = std::min(verified, d.lengths[b]);
    for (std::int32_t i = 0; i < verified; ++i) ++sums_[d.source[at + static_cast<std::size_t>(i)]].drafted;
    std::int32_t current = -1, accepted = 0;
    for (std::int32_t i = 0; i < verified && accepted < n; ++i) {
      const std::size_t node = at + static_cast<std::size_t>(i);
      if (d.parents[node] != current || d.tokens[node] != emitted[accepted]) continue;
      ++sums_[d.source[node]].accepted;
      ++accepted;
      current = i;
    }
    return accepted;
  }

  static constexpr std::size_t kQuoted = 8;
  static constexpr std::uint32_t kMostAdopted = 1u << 20;
  static constexpr std::uint64_t kWarmUp = 50000;      // tokens
  static constexpr std::size_t kSamplesPerStep = 64;  // requests

  TreeOptions options_;
  std::uint32_t shared_window_;
  ForkSafeMutex mutex_;
  Upkeep upkeep_;
  std::unique_ptr<KeptTree> shared_;
  HandleTable<std::unique_ptr<KeptTree>> trees_;
  HandleTable<Session> sessions_;
  Ranker ranker_;
  RaceModel races_;
  SourceSums sums_[kSources];
  Teaching teaching_;
  std::vector<Appended> appended_;  // by the call that is running
  std::vector<Visit> own_visits_, shared_visits_;
  std::size_t samples_ = 0, made_ = 0;
  Workers<DraftScratch> workers_;
  static_assert(Workers<DraftScratch>::kChunk <= ChainWriter::kMost);
};

}  // namespace rolltree
