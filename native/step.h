// One step of a batching engine as one call on plain buffers: what was sampled is judged, learned from and appended, the
// next drafts are made and cut to budget and room.
//
// For engines whose host runs ahead of the device: the host fills the rows of a step in while the device computes it; when
// the tokens are in the buffers a thread calls `run`, or a stream does (`enter` has the form of a host function). No
// Python, no device call; it waits for the forest's mutex alone, which every call holds for a bounded time (upkeep.h).
// Never throws: a failure costs the step its drafts and is counted. Text that a failed step did not take in is still
// before `known` and is caught up by the next. The caller keeps host and stream apart: `begin` and the buffers belong to
// the host until the step is handed over, and again when `done` has grown.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "budget.h"
#include "forest.h"

namespace rolltree {

class Step {
 public:
  /// What is the same for all rows of a step.
  struct Plan {
    std::size_t rows = 0;
    const std::int32_t* text = nullptr;  // [slots, stride], prompt and output of each slot
    std::size_t slots = 0, stride = 0;
    std::int32_t vocabulary = 0;         // drafts end before other tokens
    std::size_t room = 0;                // draft tokens of all rows together at most
    float min_survival = 0.05f;
    std::uint32_t min_match = 1;
    bool budget = false;                 // cut by `cost`
    StepCost cost{};
  };
  struct Sums {
    std::uint64_t tokens = 0, drafted = 0, accepted = 0, failed = 0;
  };

  Step(Forest& forest, std::size_t rows, std::size_t width)
      : sessions(rows, -1), slots(rows), known(rows), ends(rows), limits(rows), counts(rows), lengths(rows),
        drafts(rows * (width + 1)), forest_(forest), rows_(rows), width_(width), tokens_(rows * width),
        parents_(rows * width), survival_(rows * width), source_(rows * width), nodes_(rows), verified_(rows) {
    if (rows == 0 || width == 0) throw InputFault("Step.shape", "0", "at least one row and one column");
  }

  // By the host, [rows]: session or -1, place in the text, tokens that the session knows, length at which it ends, most
  // drafts. `run` moves `known` on.
  std::vector<std::int64_t> sessions;
  std::vector<std::int32_t> slots, known, ends, limits;
  // By the device, [rows]: tokens sampled in this step, length of the text behind them.
  std::vector<std::int32_t> counts, lengths;
  // For the device, [rows, 1 + width]: number of drafts, and the drafts.
  std::vector<std::int32_t> drafts;

  void begin(const Plan& plan) {
    if (plan.rows > rows_) throw InputFault("Step.rows", std::to_string(plan.rows), "at most " + std::to_string(rows_));
    plan_ = plan;
  }
  void run() noexcept {
    try {
      settle();
      draft();
    } catch (...) {
      ++sums_.failed;
      drafted_.clear();
      for (std::size_t b = 0; b < plan_.rows; ++b) drafts[b * (width_ + 1)] = 0;
    }
    done_.fetch_add(1, std::memory_order_release);
  }
  /// A host function: `step` is a Step*.
  static void enter(void* step) { static_cast<Step*>(step)->run(); }

  std::uint64_t done() const { return done_.load(std::memory_order_acquire); }
  const Sums& sums() const { return sums_; }
  std::size_t rows() const { return rows_; }
  std::size_t width() const { return width_; }

 private:
  DraftArrays arrays(std::size_t rows) {
    return {rows, width_, tokens_.data(), parents_.data(), survival_.data(), source_.data(), nodes_.data()};
  }
  void settle() {
    live_.clear();
    rows_of_.clear();
    emitted_.clear();
    offsets_.assign(1, 0);
    active_.clear();
    for (std::size_t b = 0; b < plan_.rows; ++b) {
      const std::int32_t until = std::min(lengths[b], ends[b]);
      if (sessions[b] < 0 || counts[b] <= 0 || until <= known[b]) continue;
      check(b, until);
      const std::int32_t* text = plan_.text + static_cast<std::size_t>(slots[b]) * plan_.stride;
      emitted_.insert(emitted_.end(), text + known[b], text + until);
      offsets_.push_back(static_cast<std::int32_t>(emitted_.size()));
      live_.push_back(sessions[b]);
      rows_of_.push_back(row_of(sessions[b]));
      active_.push_back(b);
    }
    accepted_.resize(live_.size());
    const std::size_t drafted = drafted_.size();
    drafted_.clear();  // a draft is judged once, also when this fails
    forest_.settle(live_.data(), live_.size(), arrays(drafted), rows_of_.data(), verified_.data(), emitted_.data(), emitted_.size(),
                   offsets_.data(), accepted_.data());
    for (std::size_t b : active_) known[b] = std::min(lengths[b], ends[b]);
    sums_.tokens += emitted_.size();
    for (std::size_t i = 0; i < live_.size(); ++i) {
      if (rows_of_[i] >= 0) sums_.drafted += static_cast<std::uint64_t>(verified_[static_cast<std::size_t>(rows_of_[i])]);
      sums_.accepted += static_cast<std::uint64_t>(accepted_[i]);
    }
  }
  void draft() {
    asked_.clear();
    most_.clear();
    active_.clear();
    for (std::size_t b = 0; b < plan_.rows; ++b) {
      drafts[b * (width_ + 1)] = 0;
      if (sessions[b] < 0 || counts[b] <= 0) continue;
      asked_.push_back(sessions[b]);
      most_.push_back(std::max(0, std::min({ends[b] - known[b] - 1, limits[b], static_cast<std::int32_t>(width_)})));
      active_.push_back(b);
    }
    if (asked_.empty() || plan_.room == 0) return;
    DraftOptions rule;
    rule.min_survival = plan_.min_survival;
    rule.min_match = plan_.min_match;
    const DraftArrays out = arrays(asked_.size());
    forest_.draft_batch(asked_.data(), most_.data(), rule, out);
    if (plan_.budget)
      allocate(out.survival, out.lengths, out.rows, width_, plan_.cost, verified_.data());
    else
      std::copy_n(out.lengths, out.rows, verified_.data());
    known_only(out);
    shorten(out);
    for (std::size_t i = 0; i < out.rows; ++i) {
      std::int32_t* row = drafts.data() + active_[i] * (width_ + 1);
      row[0] = verified_[i];
      std::copy_n(out.tokens + i * width_, static_cast<std::size_t>(verified_[i]), row + 1);
      drafted_.emplace_back(asked_[i], static_cast<std::int32_t>(i));
    }
    std::sort(drafted_.begin(), drafted_.end());
  }
  void check(std::size_t b, std::int32_t until) const {
    if (slots[b] < 0 || static_cast<std::size_t>(slots[b]) >= plan_.slots || known[b] < 0 || static_cast<std::size_t>(until) > plan_.stride)
      throw InputFault("Step.slots", std::to_string(slots[b]), "a row of the text that is as long as `lengths`");
  }
  /// Row of a session in the last draft, -1 where it has none.
  std::int32_t row_of(std::int64_t session) const {
    const auto at = std::lower_bound(drafted_.begin(), drafted_.end(), std::pair{session, std::int32_t{0}});
    return at != drafted_.end() && at->first == session ? at->second : -1;
  }
  void known_only(const DraftArrays& out) {
    for (std::size_t i = 0; i < out.rows; ++i)
      for (std::int32_t n = 0; n < verified_[i]; ++n)
        if (out.tokens[i * width_ + static_cast<std::size_t>(n)] >= plan_.vocabulary) verified_[i] = n;
  }
  /// Leaves `room` tokens, the likeliest; of equals the earlier place, then the earlier row.
  void shorten(const DraftArrays& out) {
    if (std::accumulate(verified_.begin(), verified_.begin() + static_cast<std::ptrdiff_t>(out.rows), std::size_t{0}) <= plan_.room) return;
    places_.clear();
    for (std::uint32_t i = 0; i < out.rows; ++i)
      for (std::uint32_t n = 0; n < static_cast<std::uint32_t>(verified_[i]); ++n) places_.emplace_back(n, i);
    const auto survival = [&](const auto& place) { return out.survival[place.second * width_ + place.first]; };
    std::sort(places_.begin(), places_.end(), [&](const auto& a, const auto& b) {
      return survival(a) != survival(b) ? survival(a) > survival(b) : a < b;
    });
    std::fill_n(verified_.begin(), out.rows, 0);
    for (std::size_t n = 0; n < plan_.room; ++n) ++verified_[places_[n].second];
  }

  Forest& forest_;
  std::size_t rows_, width_;
  Plan plan_;
  std::vector<std::int32_t> tokens_, parents_;
  std::vector<float> survival_;
  std::vector<std::uint8_t> source_;
  std::vector<std::int32_t> nodes_, verified_;                       // of the last draft, by its rows
  std::vector<std::pair<std::int64_t, std::int32_t>> drafted_;       // (session, row) of the last draft, sorted
  std::vector<std::int64_t> live_, asked_;
  std::vector<std::int32_t> rows_of_, emitted_, offsets_, accepted_, most_;
  std::vector<std::size_t> active_;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> places_;      // (column, row)
  Sums sums_;
  std::atomic<std::uint64_t> done_{0};
};

}  // namespace rolltree
