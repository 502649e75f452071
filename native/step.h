// One step of a batching engine as one call on plain buffers: what was sampled is judged, learned from and appended, the
// next drafts are made and cut to what the next step verifies.
//
// For engines whose host runs ahead of the device. A `Turn` is one such call: the host fills its rows in while the device
// computes; when the tokens are there, a thread or the device's stream calls `enter` (the form of a host function). No
// Python, no device call; it waits for the forest's mutex alone, which every call holds for a bounded time (upkeep.h), and
// takes in a bounded number of tokens. Never throws: a failure costs the turn its drafts and is told in its outcome.
//
// What has to last from one turn to the next is in the forest: a session knows how much of its text it has, so a turn has
// text of any earlier one that was missed, in whatever place the text is now. Closed sessions have no text and no draft.
//
// Who owns what. Turns lie in a ring. `next` is the host's until `hand_over`, then the stream's until `done` has reached its
// number, then the host's again, to read what came out, until it is handed over anew. `next` gives none while all are in
// flight, a turn that runs out of its order fails, and `result` gives none that still runs or was handed over again.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <utility>
#include <vector>

#include "budget.h"
#include "forest.h"
#include "turn.h"

namespace rolltree {

class Step {
 public:
  static constexpr std::size_t kCatchUp = 1024;  // tokens of a turn beyond those of a usual step: about 3 ms

  using Plan = StepPlan;
  using Outcome = StepOutcome;
  struct Sums {
    std::uint64_t tokens = 0, drafted = 0, accepted = 0, failed = 0;
  };

  /// `buffers` is [turns, rows (3 + width)]: counts, lengths and drafts of each turn; pinned where a device copies.
  Step(Forest& forest, std::size_t rows, std::size_t width, std::size_t turns, std::int32_t* buffers)
      : forest_(forest), rows_(rows), width_(width), turns_(turns), tokens_(rows * width), parents_(rows * width),
        survival_(rows * width), source_(rows * width), nodes_(rows), verified_(rows), known_(rows) {
    if (rows == 0 || width == 0 || turns == 0) throw InputFault("Step.shape", "0", "at least one row, one column and one turn");
    for (std::size_t i = 0; i < turns; ++i) lay_out(turns_[i], buffers + i * buffer_size(rows, width));
  }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;
  static std::size_t buffer_size(std::size_t rows, std::size_t width) { return rows * (3 + width); }

  /// The turn to fill in, or null where all are in flight.
  Turn* next() { return handed_ - done() < turns_.size() ? &turns_[handed_ % turns_.size()] : nullptr; }
  /// Gives that turn to the stream; returns its number.
  std::uint64_t hand_over(const Plan& plan) {
    Turn* turn = next();
    if (!turn) throw InputFault("Step.turns", std::to_string(turns_.size()), "more than are in flight");
    check(*turn, plan);
    turn->plan = plan;
    return turn->number = ++handed_;
  }
  /// The turn handed over last could not be launched: it is the host's again.
  void take_back() {
    if (handed_ > done()) --handed_;
  }
  /// The turn of this number, for the host to read.
  const Turn& result(std::uint64_t number) const {
    const Turn& turn = turns_[(number - 1) % turns_.size()];
    if (number == 0 || number > done() || turn.number != number)
      throw InputFault("turn", std::to_string(number), "one that is done and was not handed over again");
    return turn;
  }
  /// A host function: `turn` is a Turn*.
  static void enter(void* turn) {
    auto* t = static_cast<Turn*>(turn);
    t->step->run(*t);
  }
  void run(Turn& t) noexcept {
    t.outcome = Outcome::unchanged;
    t.drafted = t.accepted = 0;
    t.tokens.clear();
    std::fill_n(t.taken.begin(), rows_, 0);
    std::fill_n(t.marks.begin(), rows_, std::uint8_t{0});
    std::fill_n(t.gain.begin(), width_, 0.0);
    try {
      if (t.number != done() + 1) throw InputFault("turn", std::to_string(t.number), "the one behind turn " + std::to_string(done()));
      while (!settle(t)) {
      }
      while (!draft(t)) {
      }
      t.outcome = Outcome::whole;
    } catch (const std::exception& error) {
      std::snprintf(t.error.data(), t.error.size(), "%s", error.what());
      fail(t);
    } catch (...) {
      std::snprintf(t.error.data(), t.error.size(), "unknown");
      fail(t);
    }
    done_.fetch_add(1, std::memory_order_release);
  }

  std::uint64_t done() const { return done_.load(std::memory_order_acquire); }
  std::uint64_t handed() const { return handed_; }
  /// Read them while no turn is in flight.
  const Sums& sums() const { return sums_; }
  std::size_t rows() const { return rows_; }
  std::size_t width() const { return width_; }

 private:
  void lay_out(Turn& t, std::int32_t* buffer) {
    t.step = this;
    t.counts = buffer;
    t.lengths = buffer + rows_;
    t.drafts = buffer + 2 * rows_;
    t.sessions.assign(rows_, -1);
    for (auto* column : {&t.slots, &t.prompts, &t.ends, &t.limits, &t.least, &t.stop_ends, &t.taken}) column->assign(rows_, 0);
    t.marks.assign(rows_, 0);
    t.gain.assign(width_, 0.0);
    t.tokens.reserve(rows_ * (1 + width_) + kCatchUp);
  }
  void check(const Turn& t, const Plan& plan) const {
    if (plan.rows > rows_) throw InputFault("Step.rows", std::to_string(plan.rows), "at most " + std::to_string(rows_));
    std::int32_t before = 0;
    for (std::size_t b = 0; b < plan.rows; ++b) {
      if (t.stop_ends[b] < before || static_cast<std::size_t>(t.stop_ends[b]) > t.stops.size())
        throw InputFault("Step.stop_ends", std::to_string(t.stop_ends[b]), "rising to the number of stops");
      before = t.stop_ends[b];
    }
  }
  void fail(Turn& t) noexcept {
    ++sums_.failed;
    drafted_.clear();
    t.outcome = forest_changes_ ? Outcome::torn : Outcome::unchanged;
    forest_changes_ = false;
    for (std::size_t b = 0; b < std::min(t.plan.rows, rows_); ++b) t.drafts[b * (width_ + 1)] = 0;
  }
  DraftArrays arrays(std::size_t rows) {
    return {rows, width_, tokens_.data(), parents_.data(), survival_.data(), source_.data(), nodes_.data()};
  }

  /// False where the host closed a session in the midst of it: nothing has changed, once more without that one.
  bool settle(Turn& t) {
    gather(t);
    accepted_.resize(live_.size());
    try {
      forest_changes_ = true;
      forest_.settle(live_.data(), live_.size(), arrays(drafted_.size()), rows_of_.data(), verified_.data(), t.tokens.data(), t.tokens.size(),
                     offsets_.data(), accepted_.data());
    } catch (const ClosedFault&) {
      return forest_changes_ = false;
    } catch (const InputFault&) {
      forest_changes_ = false;
      throw;
    }
    forest_changes_ = false;
    took_in(t);
    return true;
  }
  void gather(Turn& t) {
    for (auto* each : {&t.tokens, &rows_of_}) each->clear();
    live_.clear();
    active_.clear();
    offsets_.assign(1, 0);
    forest_.generated_batch(t.sessions.data(), t.plan.rows, known_.data());
    std::size_t spare = kCatchUp;
    for (std::size_t b = 0; b < t.plan.rows; ++b) {
      t.taken[b] = t.marks[b] = 0;
      if (known_[b] < 0 || t.counts[b] <= 0) continue;
      known_[b] += t.prompts[b];
      const std::int64_t until = new_until(t, b, spare);
      if (until <= known_[b]) continue;
      const std::int32_t* text = text_of(t, b);
      t.tokens.insert(t.tokens.end(), text + known_[b], text + until);
      offsets_.push_back(static_cast<std::int32_t>(t.tokens.size()));
      t.taken[b] = static_cast<std::int32_t>(until - known_[b]);
      live_.push_back(t.sessions[b]);
      rows_of_.push_back(row_of(t.sessions[b]));
      active_.push_back(b);
    }
  }
  /// Length up to which a row's text enters its session in this turn.
  std::int64_t new_until(Turn& t, std::size_t b, std::size_t& spare) {
    const std::int64_t known = known_[b], length = t.lengths[b];
    check_row(t, b);
    const std::int32_t* text = text_of(t, b);
    if (known > t.prompts[b] && known >= t.least[b] && is_stop(t, b, text[known - 1])) t.marks[b] = kEnded;
    if (t.marks[b] || known >= t.ends[b]) return known;
    if (length - t.counts[b] < known) {
      t.marks[b] = kRewound;
      return known;
    }
    std::int64_t until = std::min<std::int64_t>(length, t.ends[b]);
    const std::int64_t usual = known + 1 + static_cast<std::int64_t>(width_);
    if (until > usual) {
      const std::int64_t more = std::min(until - usual, static_cast<std::int64_t>(spare));
      spare -= static_cast<std::size_t>(more);
      until = usual + more;
    }
    for (std::int64_t i = known; i < until; ++i) {
      if (i + 1 < t.least[b] || !is_stop(t, b, text[i])) continue;
      t.marks[b] = kEnded;
      return i + 1;
    }
    return until;
  }
  void took_in(Turn& t) {
    drafted_.clear();  // a draft is judged once
    for (std::size_t i = 0; i < live_.size(); ++i) {
      known_[active_[i]] += t.taken[active_[i]];
      t.accepted += static_cast<std::uint64_t>(accepted_[i]);
      if (rows_of_[i] >= 0) t.drafted += static_cast<std::uint64_t>(verified_[static_cast<std::size_t>(rows_of_[i])]);
    }
    sums_.tokens += t.tokens.size();
    sums_.drafted += t.drafted;
    sums_.accepted += t.accepted;
  }
  void check_row(const Turn& t, std::size_t b) const {
    const Plan& plan = t.plan;
    if (t.slots[b] < 0 || static_cast<std::size_t>(t.slots[b]) >= plan.slots || t.prompts[b] < 0 || t.lengths[b] < 0 ||
        static_cast<std::size_t>(t.lengths[b]) > plan.stride || static_cast<std::size_t>(known_[b]) > plan.stride)
      throw InputFault("Step.slots", std::to_string(t.slots[b]), "a row of the text that is as long as `lengths`");
  }
  static const std::int32_t* text_of(const Turn& t, std::size_t b) { return t.plan.text + static_cast<std::size_t>(t.slots[b]) * t.plan.stride; }
  static bool is_stop(const Turn& t, std::size_t b, std::int32_t token) {
    const auto first = t.stops.begin() + (b ? t.stop_ends[b - 1] : 0), last = t.stops.begin() + t.stop_ends[b];
    return std::binary_search(first, last, token);
  }
  /// Row of a session in the last draft, -1 where it has none.
  std::int32_t row_of(std::int64_t session) const {
    const auto at = std::lower_bound(drafted_.begin(), drafted_.end(), std::pair{session, std::int32_t{0}});
    return at != drafted_.end() && at->first == session ? at->second : -1;
  }

  /// False as `settle`.
  bool draft(Turn& t) {
    ask(t);
    if (asked_.empty() || t.plan.room == 0) return true;
    DraftOptions rule;
    rule.min_survival = t.plan.min_survival;
    rule.min_match = t.plan.min_match;
    const DraftArrays out = arrays(asked_.size());
    try {
      forest_.draft_batch(asked_.data(), most_.data(), rule, out);
    } catch (const ClosedFault&) {
      for (std::size_t b : active_)
        if (forest_.generated_batch(&t.sessions[b], 1, &known_[b]); known_[b] >= 0) known_[b] += t.prompts[b];
      return false;
    }
    cut(t, out);
    for (std::size_t i = 0; i < out.rows; ++i) {
      std::int32_t* row = t.drafts + active_[i] * (width_ + 1);
      row[0] = verified_[i];
      std::copy_n(out.tokens + i * width_, static_cast<std::size_t>(verified_[i]), row + 1);
      drafted_.emplace_back(asked_[i], static_cast<std::int32_t>(i));
    }
    std::sort(drafted_.begin(), drafted_.end());
    return true;
  }
  /// Rows to draft for: those that got tokens, go on, and whose sessions have all of their text.
  void ask(const Turn& t) {
    asked_.clear();
    most_.clear();
    active_.clear();
    for (std::size_t b = 0; b < t.plan.rows; ++b) {
      t.drafts[b * (width_ + 1)] = 0;
      if (known_[b] < 0 || t.counts[b] <= 0 || t.marks[b] || known_[b] != t.lengths[b]) continue;
      asked_.push_back(t.sessions[b]);
      most_.push_back(std::max(0, std::min({static_cast<std::int32_t>(t.ends[b] - known_[b] - 1), t.limits[b], static_cast<std::int32_t>(width_)})));
      active_.push_back(b);
    }
  }
  /// Leaves in `verified_` what the next step verifies of each draft.
  void cut(Turn& t, const DraftArrays& out) {
    std::copy_n(out.lengths, out.rows, verified_.data());
    known_only(out, t.plan.vocabulary);
    for (std::size_t i = 0; i < out.rows; ++i)
      for (std::size_t n = 0; n < static_cast<std::size_t>(verified_[i]); ++n) t.gain[n] += static_cast<double>(out.survival[i * width_ + n]);
    if (t.plan.budget) {
      lengths_.assign(verified_.begin(), verified_.begin() + static_cast<std::ptrdiff_t>(out.rows));
      allocate(out.survival, lengths_.data(), out.rows, width_, t.plan.cost, verified_.data());
    }
    const auto most = static_cast<std::int32_t>(std::min(t.plan.verified, width_));
    for (std::size_t i = 0; i < out.rows; ++i) verified_[i] = std::min(verified_[i], most);
    shorten(out, t.plan.room);
  }
  void known_only(const DraftArrays& out, std::int32_t vocabulary) {
    for (std::size_t i = 0; i < out.rows; ++i)
      for (std::int32_t n = 0; n < verified_[i]; ++n)
        if (out.tokens[i * width_ + static_cast<std::size_t>(n)] >= vocabulary) verified_[i] = n;
  }
  /// Leaves `room` tokens, the likeliest; of equals the earlier place, then the earlier row.
  void shorten(const DraftArrays& out, std::size_t room) {
    if (std::accumulate(verified_.begin(), verified_.begin() + static_cast<std::ptrdiff_t>(out.rows), std::size_t{0}) <= room) return;
    places_.clear();
    for (std::uint32_t i = 0; i < out.rows; ++i)
      for (std::uint32_t n = 0; n < static_cast<std::uint32_t>(verified_[i]); ++n) places_.emplace_back(n, i);
    const auto survival = [&](const auto& place) { return out.survival[place.second * width_ + place.first]; };
    std::sort(places_.begin(), places_.end(), [&](const auto& a, const auto& b) {
      return survival(a) != survival(b) ? survival(a) > survival(b) : a < b;
    });
    std::fill_n(verified_.begin(), out.rows, 0);
    for (std::size_t n = 0; n < room; ++n) ++verified_[places_[n].second];
  }

  Forest& forest_;
  std::size_t rows_, width_;
  std::vector<Turn> turns_;
  std::uint64_t handed_ = 0;        // the host's
  std::atomic<std::uint64_t> done_{0};
  // The stream's: the last draft, by its rows, and the memory of a turn.
  std::vector<std::int32_t> tokens_, parents_;
  std::vector<float> survival_;
  std::vector<std::uint8_t> source_;
  std::vector<std::int32_t> nodes_, verified_, lengths_;
  std::vector<std::pair<std::int64_t, std::int32_t>> drafted_;       // (session, row) of the last draft, sorted
  std::vector<std::int64_t> known_, live_, asked_;                   // tokens that each row's session has, -1: closed
  std::vector<std::int32_t> rows_of_, offsets_, accepted_, most_;
  std::vector<std::size_t> active_;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> places_;      // (column, row)
  bool forest_changes_ = false;
  Sums sums_;
};

}  // namespace rolltree
