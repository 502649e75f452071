// How many draft tokens a step verifies: goodput over the whole batch (water-filling).
//
// For every useful cap on the longest draft, which a padded rectangle pays for, tokens of all rows are taken in the order
// of their survival; the (cap, number of tokens) with the most expected tokens per second wins. Pure arithmetic.
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
    std::uint32_t column;
  };
  std::vector<Node> nodes;
  std::uint32_t longest = 0;
  for (std::size_t b = 0; b < rows; ++b) {
    for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(lengths[b]); ++i) nodes.push_back({survival[b * width + i], i});
    longest = std::max(longest, static_cast<std::uint32_t>(lengths[b]));
  }
  std::sort(nodes.begin(), nodes.end(), [](const Node& a, const Node& b) { return a.survival > b.survival; });

  const double R = static_cast<double>(rows);
  double best = R / std::max(cost.floor, cost.linear(R, 0));
  std::uint32_t best_cap = 0;
  float threshold = 0;  // survival of the last token taken
  for (std::uint32_t cap = cost.cell > 0 ? 1 : longest; cap <= longest && cap > 0;
       cap = cap == longest ? longest + 1 : std::min(longest, cap + 1 + cap / 8)) {
    double tokens = R, seconds = cost.linear(R, cap) + cost.ragged;
    for (const Node& node : nodes) {
      if (node.column >= cap) continue;
      tokens += node.survival;
      seconds += cost.token;
      if (tokens <= best * std::max(cost.floor, seconds)) continue;
      best = tokens / std::max(cost.floor, seconds);
      best_cap = cap;
      threshold = node.survival;
    }
  }
  for (std::size_t b = 0; b < rows; ++b) {
    const auto limit = static_cast<std::int32_t>(std::min<std::uint32_t>(static_cast<std::uint32_t>(lengths[b]), best_cap));
    std::int32_t n = 0;
    while (n < limit && survival[b * width + static_cast<std::size_t>(n)] >= threshold) ++n;
    verified[b] = n;
  }
}

}  // namespace rolltree
