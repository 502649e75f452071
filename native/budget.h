// How many draft tokens a step verifies: goodput over the whole batch (water-filling).
//
// For every useful cap on the longest draft, which a padded rectangle pays for, tokens of all rows are taken in the order
// of their survival, of equal ones the earlier place, then the earlier row; the (cap, number of tokens) with the most
// expected tokens per second wins. Pure arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace rolltree {

/// Seconds of a step: base + row R + token (R + drafted) + cell R (1 + longest), + ragged when anything is drafted, and
/// never below `floor`: while weights and keys stream from memory, a few more tokens cost nothing (roofline).
struct StepCost {
  double base, row, token, cell, ragged, floor;
  double linear(double rows, double longest) const { return base + rows * (row + token + cell * (1 + longest)); }
};

/// `survival` is [rows, width], falling along each row. Writes the lengths to verify, at most `lengths`;
/// all zero when speculation would lose. O(nodes log nodes).
inline void allocate(const float* survival, const std::int32_t* lengths, std::size_t rows, std::size_t width,
                     const StepCost& cost, std::int32_t* verified) {
  struct Node {
    float survival;
    std::uint32_t column, row;
  };
  std::vector<Node> nodes;
  std::uint32_t longest = 0;
  for (std::size_t b = 0; b < rows; ++b) {
    for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(lengths[b]); ++i)
      nodes.push_back({survival[b * width + i], i, static_cast<std::uint32_t>(b)});
    longest = std::max(longest, static_cast<std::uint32_t>(lengths[b]));
  }
  std::sort(nodes.begin(), nodes.end(), [](const Node& a, const Node& b) {
    return a.survival != b.survival ? a.survival > b.survival : a.column != b.column ? a.column < b.column : a.row < b.row;
  });

  const double R = static_cast<double>(rows);
  double best = R / std::max(cost.floor, cost.linear(R, 0));
  std::uint32_t best_cap = 0;
  std::size_t best_count = 0;
  for (std::uint32_t cap = cost.cell > 0 ? 1 : longest; cap <= longest && cap > 0;
       cap = cap == longest ? longest + 1 : std::min(longest, cap + 1 + cap / 8)) {
    double tokens = R, seconds = cost.linear(R, cap) + cost.ragged;
    std::size_t count = 0;
    for (const Node& node : nodes) {
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
  for (const Node& node : nodes) {
    if (best_count == 0) break;
    if (node.column >= best_cap) continue;
    ++verified[node.row];  // the first of a row come first: survival falls
    --best_count;
  }
}

}  // namespace rolltree
