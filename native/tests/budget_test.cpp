// The budget's short cuts against the plain rule: sort by comparing, walk all prefixes.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <utility>
#include <vector>

#include "../budget.h"
#include "check.h"

using namespace rolltree;

namespace {

struct Rows {
  std::size_t rows, width;
  std::vector<float> survival;
  std::vector<std::int32_t> lengths;
};

/// Chains of random length; survivals fall along a row, and many are equal.
Rows chains(std::mt19937_64& random, std::size_t rows, std::size_t width) {
  Rows made{rows, width, std::vector<float>(rows * width), std::vector<std::int32_t>(rows)};
  for (std::size_t b = 0; b < rows; ++b) {
    made.lengths[b] = static_cast<std::int32_t>(random() % (width + 1));
    float value = 1.0f;
    for (std::size_t i = 0; i < width; ++i) made.survival[b * width + i] = value *= static_cast<float>(4 + random() % 5) / 8.0f;
  }
  return made;
}

struct Plain {
  std::vector<std::int32_t> verified;
  bool all;
};

Plain plainly(const Rows& r, const StepCost& cost) {
  std::vector<std::pair<std::size_t, std::size_t>> order;  // (column, row)
  std::int32_t longest = 0;
  for (std::size_t b = 0; b < r.rows; ++b) longest = std::max(longest, r.lengths[b]);
  for (std::size_t i = 0; i < r.width; ++i)
    for (std::size_t b = 0; b < r.rows; ++b)
      if (static_cast<std::int32_t>(i) < r.lengths[b]) order.emplace_back(i, b);
  const auto survival = [&](const auto& at) { return r.survival[at.second * r.width + at.first]; };
  std::stable_sort(order.begin(), order.end(), [&](const auto& a, const auto& b) { return survival(a) > survival(b); });
  const double R = static_cast<double>(r.rows);
  double best = R / std::max(cost.floor, cost.linear(R, 0));
  std::size_t cap = 0, most = 0;
  const auto tall = static_cast<std::size_t>(longest);
  for (std::size_t c = cost.cell > 0 ? 1 : tall; c <= tall && c > 0; c = c == tall ? tall + 1 : std::min(tall, c + 1 + c / 8)) {
    double tokens = R, seconds = cost.linear(R, static_cast<double>(c)) + cost.ragged;
    std::size_t n = 0;
    for (const auto& at : order) {
      if (at.first >= c) continue;
      ++n;
      tokens += survival(at);
      seconds += cost.token;
      if (tokens <= best * std::max(cost.floor, seconds)) continue;
      best = tokens / std::max(cost.floor, seconds);
      cap = c;
      most = n;
    }
  }
  Plain made{std::vector<std::int32_t>(r.rows), most == order.size()};
  for (const auto& at : order)
    if (most > 0 && at.first < cap) ++made.verified[at.second], --most;
  return made;
}

/// Costs from those that pay for everything to those that pay for nothing, with padding and without, under a floor and above.
StepCost some_cost(std::mt19937_64& random) {
  const double scale = std::pow(10.0, -static_cast<double>(random() % 7));
  return {1.0, 0.001, scale, random() % 3 ? 0.0 : scale / 100, random() % 2 ? 0.0 : scale * 10, random() % 2 ? 0.0 : 1.5};
}

void budgets_are_those_of_the_plain_rule() {
  std::mt19937_64 random(7);
  std::size_t whole = 0, cut = 0;
  for (int round = 0; round < 3000; ++round) {
    const Rows r = chains(random, 1 + random() % (round % 2 ? 200 : 6), 1 + random() % 16);
    const StepCost cost = some_cost(random);
    const Plain expected = plainly(r, cost);
    std::vector<std::int32_t> verified(r.rows, -1);
    allocate(r.survival.data(), r.lengths.data(), r.rows, r.width, cost, verified.data());
    CHECK(verified == expected.verified);
    (expected.all ? whole : cut) += 1;
  }
  CHECK(whole > 300 && cut > 300);
}

/// The border between all and all but the last: the cost of a token runs through it in the smallest steps.
void the_border_is_exact() {
  Rows r{2, 2, {0.5f, 0.25f, 0.5f, 0.25f}, {2, 2}};
  double token = 0.125;  // where the last node stops paying: 0.25 / token = 3.25 / (1 + 5 token)
  for (int i = 0; i < 2000; ++i) token = std::nextafter(token, 0.0);
  for (int i = 0; i < 4000; ++i, token = std::nextafter(token, 1.0)) {
    const StepCost cost{1.0, 0, token, 0, 0, 0};
    std::vector<std::int32_t> verified(2);
    allocate(r.survival.data(), r.lengths.data(), 2, 2, cost, verified.data());
    CHECK(verified == plainly(r, cost).verified);
  }
}

}  // namespace

int main() {
  budgets_are_those_of_the_plain_rule();
  the_border_is_exact();
  std::printf("budget_test: 2 passed, 0 failed\n");
  return 0;
}
