// What goes into one native step of an engine and what comes out of it: plain buffers, see step.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "budget.h"

namespace rolltree {

class Step;

/// What is the same for all rows of a turn.
struct StepPlan {
  std::size_t rows = 0;
  const std::int32_t* text = nullptr;  // [slots, stride], prompt and output of each slot
  std::size_t slots = 0, stride = 0;
  std::int32_t vocabulary = 0;         // drafts end before other tokens
  std::size_t room = 0;                // draft tokens of all rows together at most
  float min_survival = 0.05f;
  std::uint32_t min_match = 1;
  bool budget = false;                 // cut by `cost`
  StepCost cost{};
  std::size_t verified = std::numeric_limits<std::size_t>::max();  // of a row at most; more is drafted, to be looked at
};

/// Whole; failed before anything was changed, so that the next turn has it all; failed in the midst of it, so that sessions
/// of the turn may lack text in one of their trees: close them without keeping them.
enum class StepOutcome : std::int32_t { whole = 0, unchanged = 1, torn = 2 };

/// A row that got a stop token, or has one; a row whose text is shorter than what its session has: it was taken back.
enum RowMark : std::uint8_t { kEnded = 1, kRewound = 2 };

/// One step on its way from the host to the stream and back.
struct Turn {
  // By the host, [rows]: session or -1, place in the text, length of the prompt, length at which it ends, most drafts,
  // length from which on stop tokens end it, end of its stop tokens (sorted) among `stops`.
  std::vector<std::int64_t> sessions;
  std::vector<std::int32_t> slots, prompts, ends, limits, least, stop_ends;
  std::vector<std::int32_t> stops;
  // By the device, [rows]: tokens sampled in this step, length of the text behind them. For it, [rows, 1 + width]: number
  // of drafts, and the drafts. The caller's memory.
  std::int32_t *counts = nullptr, *lengths = nullptr, *drafts = nullptr;
  // For the host: tokens that each row's session took in, these tokens, marks; expected tokens of each column of the drafts,
  // uncut; sums.
  std::vector<std::int32_t> taken, tokens;
  std::vector<std::uint8_t> marks;
  std::vector<double> gain;
  std::uint64_t drafted = 0, accepted = 0;
  StepOutcome outcome = StepOutcome::whole;
  std::array<char, 200> error{};  // what failed, for the log

  Step* step = nullptr;
  std::uint64_t number = 0;  // from 1
  StepPlan plan;
};

}  // namespace rolltree
