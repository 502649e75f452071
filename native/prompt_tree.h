// One prompt's text: the prompt, the rollouts kept, and the sequences that are being generated, all in one automaton.
//
// Owns what the automaton does not know: which text belongs to whom, how much it weighs (policy version), and when it
// leaves (window, memory). Text that leaves is subtracted. An automaton never shrinks, so when dead text outweighs the
// rest, when the weights of old versions are to be rescaled, or when the tree must take less memory, a second automaton
// is built beside it from what stays, and then takes its place.
//
// No call takes longer because much text leaves or an automaton is rebuilt: `work` does that in slices, whose size is
// counted in states visited, not in time; little is done at once. Until a slice comes to it, text that left still counts.
//
// Not thread-safe (see forest.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "automaton.h"
#include "errors.h"
#include "ranker.h"

namespace rolltree {

struct TreeOptions {
  std::uint32_t depth = 64;             // longest indexed substring, tokens
  std::uint32_t window = 64;            // finished rollouts kept for a prompt
  double decay = 1.0;                   // weight of a version relative to the next one, 0 < decay <= 1
  std::uint32_t context_weight = 16;    // of prompt and tool text, in units of 1/64 rollout
  std::uint64_t most = kMostCounted;    // weight of all text, by the width of the counts
  static constexpr std::uint64_t kMostCounted = UINT32_MAX - 64 * kUnit;
};

/// How far one automaton has taken in a sequence.
struct Progress {
  StateId tip = kRoot;           // writers: the state of the last depth tokens
  std::uint32_t weight = kUnit;  // as counted
  std::uint32_t fed = 0;         // tokens counted, from the first
  std::uint32_t taken = 0;       // of these, tokens subtracted again, from the first
  StateId behind = kRoot;        // the state after the tokens subtracted
};

/// One sequence: the text generated for one request.
struct Sequence {
  PodVector<std::uint32_t> tokens;  // bit 31 marks context (prompt or tool text)
  Progress now, next;               // in the automaton that is read, and in the one that is being built
  std::uint32_t serial = 0;         // order of opening within the tree: 2, 4, …; odd for run-ahead
  std::int64_t version = 0;         // policy version that generates it
  std::uint64_t generated = 0;      // tokens that are not context: position of the sampler's noise
  bool reader = false;              // drafts but never writes
  bool from_prompt = true;          // text follows the tree's prompt; else it starts at the root
  std::size_t slot = 0;             // index among the live sequences
  std::uint32_t accounted = 0;      // of its tokens, those in the tree's sum over live sequences
  std::size_t bytes() const { return sizeof(Sequence) + Memory::kHeader + tokens.bytes() + sizeof(void*); }
};

class PromptTree {
 public:
  static constexpr std::uint32_t kContextBit = 1u << 31;
  static constexpr std::uint32_t kHeaviest = 64 * kUnit;  // a version this heavy asks for a rescale
  static constexpr std::size_t kNoLimit = SIZE_MAX;

  /// The first `reserved` serials are those of rollouts that `adopt` may bring.
  PromptTree(const TreeOptions& options, std::int64_t version, const std::int32_t* prompt, std::size_t n,
             std::uint32_t reserved = 0)
      : options_(options), index_(std::make_unique<Index>(options.depth, version)), newest_(version), serials_(reserved),
        first_of_newest_(2 * (reserved + 1)) {
    prompt_.extend(n);
    for (std::size_t i = 0; i < n; ++i) prompt_[i] = static_cast<Token>(prompt[i]);
    prompt_.shrink_to_fit();
    while (!feed_prompt(*index_, UINT64_MAX)) {
    }
  }

  /// Says which policy version opens next: its text weighs one unit or more. Call `work` before `open`.
  void announce(std::int64_t version) {
    if (version <= newest_) return;
    newest_ = version;
    first_of_newest_ = 2 * (serials_ + 1);
  }

  /// Opens a sequence after the tree's prompt, or, with `from_prompt` false, at the root.
  Sequence* open(std::int64_t version, bool reader, bool from_prompt, bool run_ahead = false) {
    announce(version);
    auto made = std::make_unique<Sequence>();
    made->version = version;
    made->reader = reader;
    made->from_prompt = from_prompt;
    made->serial = 2 * (serials_ + 1) + run_ahead;
    made->slot = live_.size();
    begin(*index_, *made, made->now);
    live_.push_back(std::move(made));
    ++serials_;
    sequence_bytes_ += live_.back()->bytes();
    return live_.back().get();
  }

  /// Appends tokens. `context` text is indexed at the lower weight and drafts nothing itself. An exception leaves the
  /// sequence with the tokens that were counted.
  void append(Sequence& s, const std::int32_t* tokens, std::size_t n, bool context) {
    make_room(s, n);
    const std::uint32_t flag = context ? kContextBit : 0;
    const std::size_t before = s.tokens.bytes();
    try {
      for (std::size_t i = 0; i < n; ++i) {
        s.tokens.push_back(static_cast<Token>(tokens[i]) | flag);
        if (!s.reader) feed(*index_, s, s.now);
      }
    } catch (...) {
      appended(s, before);
      throw;
    }
    appended(s, before);
    if (!context) s.generated += n;
    if (s.reader) trim(s);
  }

  /// Ends a sequence. Kept ones stay until `window` younger ones have finished, or memory is short; others leave.
  void close(Sequence* sequence, bool keep) {
    std::unique_ptr<Sequence> s = detach(sequence);
    live_tokens_ -= s->accounted;
    sequence_bytes_ -= s->bytes();
    if (s->reader) return;
    s->tokens.shrink_to_fit();
    sequence_bytes_ += s->bytes();
    if (!keep || options_.window == 0 || s->tokens.empty()) return leave(std::move(s));
    kept_.push_back(std::move(s));
    if (kept_.size() > options_.window) drop_oldest();
  }

  /// Where a sequence stands: what to draft from. O(1) for writers, O(depth) for readers.
  Match place(const Sequence& s) const {
    return s.reader ? read(s) : Match{s.now.tip, automaton().context_length(s.now.tip)};
  }

  /// The token that a sequence stands after; 0 at the very start.
  Token last(const Sequence& s) const {
    if (!s.tokens.empty()) return s.tokens[s.tokens.size() - 1] & ~kContextBit;
    return s.from_prompt && !prompt_.empty() ? prompt_[prompt_.size() - 1] : 0;
  }

  const Automaton& automaton() const { return index_->automaton; }
  const PodVector<Token>& prompt() const { return prompt_; }
  std::size_t live() const { return live_.size(); }
  std::size_t kept() const { return kept_.size(); }
  std::uint64_t alive_tokens() const { return index_->alive; }
  std::uint32_t first_of_newest() const { return first_of_newest_; }
  /// Weight of a count of one in units of 1/64 rollout: 1, more in a tree of tens of millions of tokens.
  std::uint32_t unit() const { return 1u << index_->shift; }
  /// Everything that the tree takes, both automata included. O(1).
  std::size_t bytes() const {
    return sizeof(PromptTree) + kOutside + index_->bytes() + (next_ ? next_->bytes() : 0) + prompt_.bytes() + sequence_bytes_;
  }
  std::uint64_t steps() const { return index_->automaton.steps(); }

  bool building() const { return next_ != nullptr; }
  /// Whether `work` has anything to do.
  bool pending() const { return next_ || !leaving_.empty(); }

  /// Whether a new automaton should be built: dead text outweighs the rest, weights or counts grew too large.
  bool worn() const {
    const Index& now = *index_;
    return (now.dead > kFewDead && now.dead > now.alive) || weight_of(newest_, now) > kHeaviest ||
           now.automaton.total() > options_.most / 2;
  }
  /// Whether a new automaton within `room` bytes would be much smaller than this one.
  bool shrinks_to(std::size_t room) const {
    return 3 * bytes_of(unavoidable() + tokens_within(room).second) < 2 * index_->automaton.bytes();
  }
  /// Starts to build a new automaton of at most `room` bytes, as estimated: the oldest rollouts are left out first, the
  /// prompt and running sequences never.
  void begin_build(std::size_t room = kNoLimit) {
    const auto [stay, tokens] = tokens_within(room);
    while (kept_.size() > stay) drop_oldest();
    next_ = std::make_unique<Index>(options_.depth, newest_);
    const std::uint64_t most = std::uint64_t{std::max(kUnit, options_.context_weight)} * (unavoidable() + tokens);
    while (next_->shift < 6 && (most >> next_->shift) > options_.most / 4) ++next_->shift;
    at_ = 0;
  }

  /// Subtracts text that left and goes on building, until about `quota` states were visited; returns how many were.
  /// A finished automaton takes the place of the old one, which `old` gets.
  std::uint64_t work(std::uint64_t quota, std::unique_ptr<Automaton>& old) {
    std::uint64_t spent = 0;
    while (spent < quota && pending()) {
      const std::uint64_t left = quota - spent;
      if (!leaving_.empty() && !settled(*leaving_.front()))
        spent += subtract(*leaving_.front(), left);
      else if (!leaving_.empty() && !next_)
        bury();
      else if (next_)
        spent += build(left, old);
    }
    return spent;
  }

  /// Weight of a version's text, in units of 1/64 rollout; never 0.
  std::uint32_t weight_of(std::int64_t version) const { return weight_of(version, *index_); }

  /// Gives up the automaton that is being built.
  void abandon_build() {
    next_.reset();
    at_ = 0;
    for (auto* list : {&kept_, &leaving_})
      for (auto& s : *list) s->next = Progress{};
    for (auto& s : live_) s->next = Progress{};
  }

  /// Takes in the rollouts of `history`, a tree of the same prompt that was built elsewhere, as older than all that was
  /// kept here: its automaton becomes the one that is being built, to which `work` adds what this tree holds. O(rollouts).
  void adopt(PromptTree& history) {
    kept_.insert(kept_.begin(), std::make_move_iterator(history.kept_.begin()), std::make_move_iterator(history.kept_.end()));
    abandon_build();
    at_ = history.kept_.size();
    history.kept_.clear();
    for (std::size_t i = 0; i < at_; ++i) {
      kept_[i]->next = std::exchange(kept_[i]->now, Progress{});
      sequence_bytes_ += kept_[i]->bytes();
    }
    next_ = std::move(history.index_);
    announce(history.newest_);
    if (history.newest_ == newest_) first_of_newest_ = std::min(first_of_newest_, history.first_of_newest_);
    if (next_->automaton.total() > options_.most / 2) {  // the counts have no room for what is to be added
      abandon_build();
      begin_build();
    }
    while (kept_.size() > options_.window) drop_oldest();
  }

  /// Hands over the memory of both automata, for slow release; the tree is of no more use.
  void surrender(std::vector<std::unique_ptr<Automaton>>& to) {
    to.push_back(std::make_unique<Automaton>(std::move(index_->automaton)));
    if (next_) to.push_back(std::make_unique<Automaton>(std::move(next_->automaton)));
  }

  std::string check() const;

 private:
  static constexpr std::uint64_t kFewDead = 512;  // tokens: not worth a rebuild
  static constexpr std::size_t kOutside = 512;    // what a tree costs its owner besides: handle, key, table entries

  /// An automaton, and what it counts.
  struct Index {
    Index(std::uint32_t depth, std::int64_t reference_) : automaton(depth), reference(reference_), weighed(reference_) {}
    Automaton automaton;
    std::int64_t reference;             // version whose text weighs one unit
    mutable std::int64_t weighed;       // version that was asked for last, and its weight: appending asks again and again
    mutable std::uint32_t weight = kUnit;
    std::uint32_t shift = 0;            // counts are of weights divided by 2^shift
    StateId prompt_tip = kRoot;
    std::size_t prompt_fed = 0;         // tokens of the prompt counted so far
    std::uint64_t alive = 0, dead = 0;  // tokens counted, tokens subtracted again
    std::size_t bytes() const { return sizeof(Index) + Memory::kHeader + automaton.bytes(); }
  };

  std::uint32_t weight_of(std::int64_t version, const Index& index) const {
    if (version == index.weighed) return index.weight;
    const double age = static_cast<double>(index.reference - version);
    const double weight = kUnit * std::pow(options_.decay, age);
    index.weighed = version;
    return index.weight = static_cast<std::uint32_t>(std::clamp(std::round(weight), 1.0, 4.0 * kHeaviest));
  }
  static std::uint32_t scaled(std::uint32_t weight, const Index& index) { return std::max(1u, weight >> index.shift); }
  std::uint32_t weight_in(const Index& index, const Progress& p, std::uint32_t flagged) const {
    return flagged & kContextBit ? scaled(options_.context_weight, index) : p.weight;
  }

  /// Counts the prompt, up to about `quota` states; returns whether all of it is counted.
  bool feed_prompt(Index& index, std::uint64_t quota) {
    const std::uint64_t end = quota == UINT64_MAX ? quota : index.automaton.steps() + quota;
    for (; index.prompt_fed < prompt_.size() && index.automaton.steps() < end; ++index.prompt_fed, ++index.alive)
      index.prompt_tip =
          index.automaton.append(index.prompt_tip, prompt_[index.prompt_fed], scaled(options_.context_weight, index), 0);
    return index.prompt_fed == prompt_.size();
  }

  StateId start(const Index& index, const Sequence& s) const { return s.from_prompt ? index.prompt_tip : kRoot; }
  void begin(const Index& index, const Sequence& s, Progress& p) const {
    p = Progress{start(index, s), scaled(weight_of(s.version, index), index), 0, 0, start(index, s)};
  }
  /// Counts the next token of `s`.
  void feed(Index& index, Sequence& s, Progress& p) {
    const std::uint32_t flagged = s.tokens[p.fed];
    p.tip = index.automaton.append(p.tip, flagged & ~kContextBit, weight_in(index, p, flagged), flagged & kContextBit ? 0 : s.serial);
    ++p.fed;
    ++index.alive;
  }

  // The longest suffix of a reader's text that is indexed. Read anew each time, because others add to the index what
  // the reader wrote before them.
  Match read(const Sequence& s) const {
    const std::size_t n = s.tokens.size(), longest = options_.depth - 1;
    Match m{start(*index_, s), automaton().context_length(start(*index_, s))};
    for (std::size_t i = n >= longest ? n - longest : 0; i < n; ++i) m = follow(automaton(), m, s.tokens[i] & ~kContextBit);
    return m;
  }
  void trim(Sequence& s) const {
    const std::size_t wanted = options_.depth, n = s.tokens.size();
    if (n < 4 * wanted) return;
    for (std::size_t i = 0; i < wanted; ++i) s.tokens[i] = s.tokens[n - wanted + i];
    s.tokens.resize_down(wanted);
  }

  /// Accounts for tokens that were added to `s`, and leaves out what could not be counted.
  void appended(Sequence& s, std::size_t bytes_before) {
    sequence_bytes_ += s.tokens.bytes() - bytes_before;
    if (s.reader) return;
    s.tokens.resize_down(s.now.fed);
    live_tokens_ += s.now.fed - s.accounted;
    s.accounted = s.now.fed;
  }

  std::unique_ptr<Sequence> detach(Sequence* sequence) {
    const std::size_t slot = sequence->slot;
    std::unique_ptr<Sequence> s = std::move(live_[slot]);
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(slot));
    for (std::size_t i = slot; i < live_.size(); ++i) live_[i]->slot = i;
    return s;
  }
  void drop_oldest() {
    std::unique_ptr<Sequence> s = std::move(kept_.front());
    kept_.pop_front();
    if (at_ > 0) --at_;
    leave(std::move(s));
  }
  void leave(std::unique_ptr<Sequence> s) { leaving_.push_back(std::move(s)); }

  // While a new automaton is built, text that leaves is subtracted from that one alone: the old one goes anyway.
  bool settled(const Sequence& s) const {
    const Progress& p = next_ ? s.next : s.now;
    return p.taken == p.fed;
  }
  std::uint64_t subtract(Sequence& s, std::uint64_t quota) {
    Index& index = next_ ? *next_ : *index_;
    Progress& p = next_ ? s.next : s.now;
    const std::uint64_t from = index.automaton.steps();
    while (p.taken < p.fed && index.automaton.steps() - from < quota) {
      const std::uint32_t flagged = s.tokens[p.taken];
      p.behind = index.automaton.subtract(p.behind, flagged & ~kContextBit, weight_in(index, p, flagged));
      ++p.taken;
      --index.alive;
      ++index.dead;
    }
    return index.automaton.steps() - from;
  }
  void bury() {
    sequence_bytes_ -= leaving_.front()->bytes();
    leaving_.pop_front();
  }

  /// Goes on with the new automaton: the prompt, rollouts from the oldest on, running sequences.
  std::uint64_t build(std::uint64_t quota, std::unique_ptr<Automaton>& old) {
    Index& index = *next_;
    const std::uint64_t from = index.automaton.steps();
    auto spent = [&] { return index.automaton.steps() - from; };
    if (!feed_prompt(index, quota)) return spent();
    auto take_in = [&](Sequence& s) {
      if (s.next.fed == 0) begin(index, s, s.next);
      while (s.next.fed < s.tokens.size() && spent() < quota) feed(index, s, s.next);
      return s.next.fed == s.tokens.size();
    };
    for (; at_ < kept_.size(); ++at_)
      if (!take_in(*kept_[at_])) return spent();
    for (auto& s : live_)
      if (!s->reader && !take_in(*s)) return spent();
    replace(old);
    return spent();
  }
  void replace(std::unique_ptr<Automaton>& old) {
    old = std::make_unique<Automaton>(std::move(index_->automaton));
    index_ = std::move(next_);
    auto change = [](Sequence& s) { s.now = std::exchange(s.next, Progress{}); };
    for (auto* list : {&kept_, &leaving_})
      for (auto& s : *list) change(*s);
    for (auto& s : live_)
      if (!s->reader) change(*s);
    at_ = 0;
  }

  /// Tokens that any automaton of this tree must hold.
  std::uint64_t unavoidable() const { return prompt_.size() + live_tokens_; }
  std::size_t bytes_of(std::uint64_t tokens) const {
    const Index& now = *index_;
    return static_cast<std::size_t>(static_cast<double>(now.automaton.bytes()) / static_cast<double>(std::max<std::uint64_t>(1, now.alive + now.dead)) *
                                    static_cast<double>(tokens));
  }
  /// How many of the youngest rollouts fit into `room` bytes beside what must stay, and their tokens.
  std::pair<std::size_t, std::uint64_t> tokens_within(std::size_t room) const {
    const std::uint64_t fixed = unavoidable();
    std::uint64_t tokens = 0;
    std::size_t n = 0;
    while (n < kept_.size()) {
      const std::uint64_t more = kept_[kept_.size() - 1 - n]->tokens.size();
      if (room != kNoLimit && bytes_of(fixed + tokens + more) > room) break;
      tokens += more;
      ++n;
    }
    return {n, tokens};
  }

  bool fits(const Sequence& s, std::size_t n) const {
    const std::uint64_t heaviest = std::max(s.now.weight, scaled(options_.context_weight, *index_));
    return s.reader || automaton().total() + heaviest * n <= options_.most;
  }
  /// Counts are 32 bits wide. `worn` sees to it in time; one call that appends tens of millions of tokens does not wait.
  void make_room(Sequence& s, std::size_t n) {
    for (int tries = 0; !fits(s, n); ++tries) {
      if (tries == 8) throw CapacityFault("a tree holds at most 4,000 million tokens of one prompt");
      std::unique_ptr<Automaton> old;
      if (!next_) begin_build();
      if (tries > 0) next_->shift = std::max(next_->shift, std::min(6u, index_->shift + 1));
      work(UINT64_MAX, old);
    }
  }

  TreeOptions options_;
  std::unique_ptr<Index> index_, next_;  // read and written; being built, or null
  PodVector<Token> prompt_;
  std::int64_t newest_;                // newest version seen
  std::uint32_t serials_;              // sequences opened so far, and serials reserved
  std::uint32_t first_of_newest_;      // first serial of the newest version: siblings from here on
  std::size_t sequence_bytes_ = 0;     // of all sequences below
  std::uint64_t live_tokens_ = 0;      // of live sequences that write
  std::size_t at_ = 0;                 // rollouts that the new automaton holds already
  std::vector<std::unique_ptr<Sequence>> live_;
  std::deque<std::unique_ptr<Sequence>> kept_, leaving_;
};

inline std::string PromptTree::check() const {
  std::size_t bytes = 0, live = 0;
  auto measure = [&](const Sequence& s) { bytes += s.bytes(); };
  for (const auto* list : {&kept_, &leaving_})
    for (const auto& s : *list) measure(*s);
  for (std::size_t i = 0; i < live_.size(); ++i) {
    if (live_[i]->slot != i) return "a live sequence is in the wrong slot";
    if (!live_[i]->reader && live_[i]->now.fed != live_[i]->tokens.size()) return "a live sequence is not wholly counted";
    live += live_[i]->reader ? 0 : live_[i]->tokens.size();
    measure(*live_[i]);
  }
  if (bytes != sequence_bytes_) return "the bytes of the sequences are wrong";
  if (live != live_tokens_) return "the tokens of the live sequences are wrong";
  for (const Index* index : {index_.get(), next_.get()}) {
    if (!index) continue;
    if (std::string fault = index->automaton.check(); !fault.empty()) return fault;
    std::uint64_t weight = index->prompt_fed * scaled(options_.context_weight, *index), tokens = index->prompt_fed;
    auto count = [&](const Sequence& s) {
      const Progress& p = index == index_.get() ? s.now : s.next;
      for (std::uint32_t i = p.taken; i < p.fed; ++i) weight += weight_in(*index, p, s.tokens[i]);
      tokens += p.fed - p.taken;
    };
    for (const auto* list : {&kept_, &leaving_})
      for (const auto& s : *list) count(*s);
    for (const auto& s : live_) count(*s);
    if (weight != index->automaton.total()) return "the total count is not the weight of the text";
    if (tokens != index->alive) return "the number of counted tokens is wrong";
  }
  return {};
}

}  // namespace rolltree
