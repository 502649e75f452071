// How many draft tokens a step verifies: goodput over the whole batch (water-filling).
//
// For every useful cap on the longest draft, which a padded rectangle pays for, tokens of all rows are taken in the order
// of their survival, of equal ones the earlier place, then the earlier row; the (cap, number of tokens) with the most
// expected tokens per second wins. Pure arithmetic.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

namespace rolltree {

/// Seconds of a step: base + row R + token (R + drafted) + cell R (1 + longest), + ragged when anything is drafted, and
/// never below `floor`: while weights and keys stream from memory, a few more tokens cost nothing (roofline).
struct StepCost {
  double base, row, token, cell, ragged, floor;
  double linear(double rows, double longest) const { return base + rows * (row + token + cell * (1 + longest)); }
};

struct DraftNode {
  std::uint32_t key;  // larger for a smaller survival
  float survival;
  std::uint32_t column, row;
};

/// Sorts by `key`, of equal ones the earlier first, a third of the bits at a time.
inline void sort_by_key(std::vector<DraftNode>& nodes) {
  constexpr std::uint32_t kBits = 11, kMask = (1u << kBits) - 1;
  std::vector<DraftNode> sorted(nodes.size());
  for (std::uint32_t shift = 0; shift < 32; shift += kBits) {
    std::array<std::uint32_t, kMask + 1> ends{};
    for (const DraftNode& node : nodes) ++ends[node.key >> shift & kMask];
    std::uint32_t before = 0;
    for (std::uint32_t& end : ends) before += std::exchange(end, before);
    for (const DraftNode& node : nodes) sorted[ends[node.key >> shift & kMask]++] = node;
    nodes.swap(sorted);
  }
}

/// All nodes in the order of their survival, of equal ones the earlier column, then the earlier row.
inline std::vector<DraftNode> by_survival(const float* survival, const std::int32_t* lengths, std::size_t rows, std::size_t width,
                                          std::uint32_t longest) {
  constexpr std::size_t kFew = 256;  // below, comparing is faster
  std::vector<DraftNode> nodes;
  for (std::uint32_t column = 0; column < longest; ++column)
    for (std::uint32_t row = 0; row < rows; ++row) {
      if (static_cast<std::uint32_t>(lengths[row]) <= column) continue;
      const float value = survival[row * width + column] + 0.0f;  // no zero is negative
      const auto bits = std::bit_cast<std::uint32_t>(value);
      nodes.push_back({bits >> 31 ? bits : ~(bits | 0x80000000u), value, column, row});
    }
  if (nodes.size() > kFew)
    sort_by_key(nodes);
  else
    std::stable_sort(nodes.begin(), nodes.end(), [](const DraftNode& a, const DraftNode& b) { return a.key < b.key; });
  return nodes;
}

/// Whether the budget leaves nothing out, as far as that can be told without sorting: where padding costs nothing, tokens a second
/// rise with every node as long as they rise with the least likely. By a margin that no rounding of the sums fills.
inline bool worth_all(const float* survival, const std::int32_t* lengths, std::size_t rows, std::size_t width, std::uint32_t longest,
                      const StepCost& cost) {
  constexpr double kMargin = 1e-9;
  if (cost.cell != 0 || !(cost.token >= 0) || longest == 0) return false;
  const double R = static_cast<double>(rows);
  double tokens = R, seconds = cost.linear(R, 0), least = 1;
  const double plain = R / std::max(cost.floor, seconds);
  seconds += cost.ragged;
  for (std::size_t b = 0; b < rows; ++b)
    for (std::size_t i = b * width, end = i + static_cast<std::size_t>(lengths[b]); i < end; ++i) {
      tokens += survival[i];
      seconds += cost.token;
      least = std::min(least, static_cast<double>(survival[i]));
    }
  seconds = std::max(cost.floor, seconds);
  return least * seconds > tokens * (cost.token + kMargin * seconds) && tokens > plain * seconds * (1 + kMargin);
}

/// `survival` is [rows, width], falling along each row. Writes the lengths to verify, at most `lengths`;
/// all zero when speculation would lose. O(nodes log nodes).
inline void allocate(const float* survival, const std::int32_t* lengths, std::size_t rows, std::size_t width,
                     const StepCost& cost, std::int32_t* verified) {
  std::uint32_t longest = 0;
  for (std::size_t b = 0; b < rows; ++b) longest = std::max(longest, static_cast<std::uint32_t>(lengths[b]));
  if (worth_all(survival, lengths, rows, width, longest, cost)) return void(std::copy_n(lengths, rows, verified));
  const std::vector<DraftNode> nodes = by_survival(survival, lengths, rows, width, longest);

  const double R = static_cast<double>(rows);
  double best = R / std::max(cost.floor, cost.linear(R, 0));
  std::uint32_t best_cap = 0;
  std::size_t best_count = 0;
  for (std::uint32_t cap = cost.cell > 0 ? 1 : longest; cap <= longest && cap > 0;
       cap = cap == longest ? longest + 1 : std::min(longest, cap + 1 + cap / 8)) {
    double tokens = R, seconds = cost.linear(R, cap) + cost.ragged;
    std::size_t count = 0;
    for (const DraftNode& node : nodes) {
      if (node.column >= cap) continue;
      ++count;
      tokens += node.survival;
      seconds += cost.token;
      if (tokens <= best * std::max(cost.floor, seconds)) continue;
      best = tokens / std::max(cost.floor, seconds);
      best_cap = cap;
      best_count = count;
    }
  }
  std::fill_n(verified, rows, 0);
  for (const DraftNode& node : nodes) {
    if (best_count == 0) break;
    if (node.column >= best_cap) continue;
    ++verified[node.row];  // the first of a row come first: survival falls
    --best_count;
  }
}

}  // namespace rolltree
