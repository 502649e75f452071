// One prompt's text: the prompt, the rollouts kept, and the sequences that are being generated, all in one automaton.
//
// Owns what the automaton does not know: which text belongs to whom, how much it weighs (policy version), and when it
// leaves (window). Leaving text is subtracted; when more than half of the automaton is such dead text it is rebuilt from
// what is kept, so forgetting costs O(1) amortised per token. A rebuild also rescales the weights of old versions.
// Not thread-safe (see forest.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
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
};

/// One sequence: the text generated for one request.
struct Sequence {
  PodVector<std::uint32_t> tokens;  // bit 31 marks context (prompt or tool text)
  StateId tip = kRoot;           // writers: the state of the last depth tokens
  std::uint32_t serial = 0;      // order of opening within the tree: 2, 4, …; odd for run-ahead
  std::uint32_t weight = kUnit;  // as counted in the automaton
  std::int64_t version = 0;      // policy version that generates it
  std::uint64_t generated = 0;   // tokens that are not context: position of the sampler's noise
  bool reader = false;           // drafts but never writes
  bool from_prompt = true;       // text follows the tree's prompt; else it starts at the root
  std::size_t slot = 0;          // index among the live sequences
  std::size_t bytes() const { return sizeof(Sequence) + tokens.bytes() + sizeof(void*); }
};

class PromptTree {
 public:
  static constexpr std::uint32_t kContextBit = 1u << 31;
  static constexpr std::uint32_t kHeaviest = 64 * kUnit;  // a version this heavy triggers a rescale
  static constexpr std::uint64_t kTotalLimit = UINT32_MAX - kHeaviest;

  PromptTree(const TreeOptions& options, std::int64_t version, const std::int32_t* prompt, std::size_t n)
      : options_(options), automaton_(options.depth), reference_(version), newest_(version) {
    prompt_.extend(n);
    for (std::size_t i = 0; i < n; ++i) prompt_[i] = static_cast<Token>(prompt[i]);
    prompt_.shrink_to_fit();
    feed_prompt();
  }

  /// Opens a sequence after the tree's prompt, or with `context` as its own text from the root.
  Sequence* open(std::int64_t version, bool reader, bool from_prompt, bool run_ahead = false) {
    auto made = std::make_unique<Sequence>();
    made->version = version;
    made->reader = reader;
    made->from_prompt = from_prompt;
    made->serial = 2 * ++serials_ + run_ahead;
    made->slot = live_.size();
    if (version > newest_) {
      newest_ = version;
      first_of_newest_ = 2 * serials_;
    }
    if (weight_of(newest_) > kHeaviest) rebuild();
    made->weight = weight_of(version);
    live_.push_back(std::move(made));
    Sequence* sequence = live_.back().get();
    sequence->tip = start(*sequence);
    return sequence;
  }

  /// Appends tokens; amortised O(1) each. `context` text is indexed at the lower weight and drafts nothing itself.
  void append(Sequence& s, const std::int32_t* tokens, std::size_t n, bool context) {
    reserve_weight(s, n);
    const std::uint32_t flag = context ? kContextBit : 0;
    for (std::size_t i = 0; i < n; ++i) {
      s.tokens.push_back(static_cast<Token>(tokens[i]) | flag);
      feed(s, s.tokens[s.tokens.size() - 1]);
    }
    if (!context) s.generated += n;
    if (s.reader) trim(s);
  }

  /// Ends a sequence. Kept ones stay until `window` younger ones have finished; others are forgotten now.
  void close(Sequence* sequence, bool keep) {
    std::unique_ptr<Sequence> s = detach(sequence);
    if (s->reader) return;
    if (keep && options_.window > 0 && !s->tokens.empty()) {
      s->tokens.shrink_to_fit();
      kept_bytes_ += s->bytes();
      kept_.push_back(std::move(s));
      if (kept_.size() > options_.window) {
        forget(*kept_.front());
        kept_bytes_ -= kept_.front()->bytes();
        kept_.pop_front();
      }
    } else {
      forget(*s);
    }
    if (dead_ > 512 && dead_ > alive_) rebuild();
  }

  /// Where a sequence stands: what to draft from. O(1) for writers, O(depth) for readers.
  Match place(const Sequence& s) const {
    return s.reader ? read(s) : Match{s.tip, automaton_.context_length(s.tip)};
  }

  /// The token that a sequence stands after; 0 at the very start.
  Token last(const Sequence& s) const {
    if (!s.tokens.empty()) return s.tokens[s.tokens.size() - 1] & ~kContextBit;
    return s.from_prompt && !prompt_.empty() ? prompt_[prompt_.size() - 1] : 0;
  }

  const Automaton& automaton() const { return automaton_; }
  const PodVector<Token>& prompt() const { return prompt_; }
  std::size_t live() const { return live_.size(); }
  std::size_t kept() const { return kept_.size(); }
  std::uint64_t alive_tokens() const { return alive_; }
  std::uint32_t first_of_newest() const { return first_of_newest_; }
  std::size_t bytes() const {
    std::size_t sum = sizeof(PromptTree) + automaton_.bytes() + prompt_.bytes() + kept_bytes_;
    for (const auto& s : live_) sum += s->bytes();
    return sum;
  }

  /// Weight of a version's text, in units of 1/64 rollout; never 0.
  std::uint32_t weight_of(std::int64_t version) const {
    const double age = static_cast<double>(reference_ - version);
    const double weight = kUnit * std::pow(options_.decay, age);
    return static_cast<std::uint32_t>(std::clamp(std::round(weight), 1.0, 4.0 * kHeaviest));
  }

  std::string check() const;

 private:
  void feed_prompt() {
    StateId tip = kRoot;
    for (Token t : prompt_) tip = automaton_.append(tip, t, options_.context_weight, 0);
    prompt_tip_ = tip;
    alive_ += prompt_.size();
  }

  StateId start(const Sequence& s) const { return s.from_prompt ? prompt_tip_ : kRoot; }

  void feed(Sequence& s, std::uint32_t flagged) {
    const Token token = flagged & ~kContextBit;
    if (s.reader) return;
    const bool context = flagged & kContextBit;
    s.tip = automaton_.append(s.tip, token, context ? options_.context_weight : s.weight, context ? 0 : s.serial);
    ++alive_;
  }

  // The longest suffix of a reader's text that is indexed. Read anew each time, because others add to the index what
  // the reader wrote before them.
  Match read(const Sequence& s) const {
    const std::size_t n = s.tokens.size(), longest = options_.depth - 1;
    Match m{start(s), automaton_.context_length(start(s))};
    for (std::size_t i = n >= longest ? n - longest : 0; i < n; ++i) m = follow(automaton_, m, s.tokens[i] & ~kContextBit);
    return m;
  }
  void trim(Sequence& s) const {
    const std::size_t wanted = options_.depth, n = s.tokens.size();
    if (n < 4 * wanted) return;
    for (std::size_t i = 0; i < wanted; ++i) s.tokens[i] = s.tokens[n - wanted + i];
    s.tokens.resize_down(wanted);
  }

  void forget(Sequence& s) {
    StateId tip = start(s);
    for (std::uint32_t flagged : s.tokens)
      tip = automaton_.subtract(tip, flagged & ~kContextBit, flagged & kContextBit ? options_.context_weight : s.weight);
    alive_ -= s.tokens.size();
    dead_ += s.tokens.size();
  }

  std::unique_ptr<Sequence> detach(Sequence* sequence) {
    const std::size_t slot = sequence->slot;
    std::unique_ptr<Sequence> s = std::move(live_[slot]);
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(slot));
    for (std::size_t i = slot; i < live_.size(); ++i) live_[i]->slot = i;
    return s;
  }

  void reserve_weight(const Sequence& s, std::size_t n) {
    if (s.reader || fits(s, n)) return;
    rebuild();
    if (!fits(s, n)) throw CapacityFault("a tree holds at most 67 million tokens of one prompt");
  }
  bool fits(const Sequence& s, std::size_t n) const {
    const std::uint64_t heaviest = std::max(s.weight, options_.context_weight);
    return automaton_.total() + heaviest * n <= kTotalLimit;
  }

  /// Indexes what is kept again, with the newest version at weight 1; O(text).
  void rebuild() {
    automaton_ = Automaton(options_.depth);
    reference_ = newest_;
    alive_ = dead_ = 0;
    feed_prompt();
    auto again = [this](Sequence& s) {
      s.weight = weight_of(s.version);
      s.tip = start(s);
      for (std::uint32_t flagged : s.tokens) feed(s, flagged);
    };
    for (auto& s : kept_) again(*s);
    for (auto& s : live_)
      if (!s->reader) again(*s);
  }

  TreeOptions options_;
  Automaton automaton_;
  PodVector<Token> prompt_;
  StateId prompt_tip_ = kRoot;
  std::int64_t reference_;             // version whose text weighs one unit
  std::int64_t newest_;                // newest version seen
  std::uint32_t serials_ = 0;          // sequences opened so far
  std::uint32_t first_of_newest_ = 2;  // first serial of the newest version: siblings from here on
  std::uint64_t alive_ = 0, dead_ = 0;  // tokens counted, tokens taken back
  std::size_t kept_bytes_ = 0;
  std::vector<std::unique_ptr<Sequence>> live_;
  std::deque<std::unique_ptr<Sequence>> kept_;
};

inline std::string PromptTree::check() const {
  std::string fault = automaton_.check();
  if (!fault.empty()) return fault;
  std::uint64_t weight = prompt_.size() * options_.context_weight, tokens = prompt_.size();
  auto count = [&](const Sequence& s) {
    for (std::uint32_t t : s.tokens) weight += t & kContextBit ? options_.context_weight : s.weight;
    tokens += s.tokens.size();
  };
  for (const auto& s : kept_) count(*s);
  for (std::size_t i = 0; i < live_.size(); ++i) {
    if (live_[i]->slot != i) return "a live sequence is in the wrong slot";
    if (!live_[i]->reader) count(*live_[i]);
  }
  if (weight != automaton_.total()) return "the total count is not the weight of the text";
  if (tokens != alive_) return "the number of counted tokens is wrong";
  return {};
}

}  // namespace rolltree
