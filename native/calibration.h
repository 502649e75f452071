// How likely the winner of the noisy race is what the sampler emits, learned online from every verdict.
//
// The ranker's probability says how likely a token is before the noise is known. Once it is known, the answer hangs on
// the lead over the best rival, on what tokens outside the candidates may do in that time, and on how far the ranker is
// to be trusted: how long the match is and how often its continuation was seen. An additive logistic model of these,
// because a table of all their combinations would learn too slowly. Deterministic, O(1), a few KiB. Not thread-safe.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "logistic.h"

namespace rolltree {

/// What a verdict will be filed under.
struct Evidence {
  std::uint16_t trust = 0;  // match length and sightings; `Calibration::kNone`: no noise, nothing to learn
  std::uint16_t race = 0;   // lead and arrivals
  float odds = 0;           // log odds of the ranker's probability
};

class Calibration {
 public:
  static constexpr int kMatches = 8, kSightings = 6, kLeads = 12, kArrivals = 6;
  static constexpr std::uint16_t kNone = kMatches * kSightings;

  Calibration() {
    for (int i = 0; i < kLeads * kArrivals; ++i) race_[index(i)].value = prior(i);
    for (Weight& w : slope_) w.value = 0.3f;
  }

  /// `match`: bucket of the matched length; `sightings`: of its continuations, rollouts; `lead`: nats of noisy score over
  /// the best rival, negative for the rivals themselves; `arrivals`: expected number of tokens that are no candidates and
  /// finish before it; `odds`: log odds of the ranker's probability.
  static Evidence evidence(std::size_t match, float sightings, float lead, float arrivals, float odds) {
    constexpr std::array<float, kSightings - 1> seen{0.75f, 1.5f, 2.5f, 4.5f, 8.5f};
    constexpr std::array<float, kLeads - 1> leads{-1.5f, -0.7f, -0.25f, 0.0f, 0.25f, 0.5f, 1.0f, 1.7f, 2.7f, 4.0f, 8.0f};
    constexpr std::array<float, kArrivals - 1> others{0.02f, 0.06f, 0.15f, 0.4f, 1.0f};
    const int trust = static_cast<int>(match) * kSightings + bucket(seen, sightings);
    return {static_cast<std::uint16_t>(trust), static_cast<std::uint16_t>(bucket(leads, lead) * kArrivals + bucket(others, arrivals)), odds};
  }
  static bool sound(const Evidence& e) { return e.trust <= kNone && e.race < kLeads * kArrivals; }

  float probability(const Evidence& e) const { return squash(score(e)); }

  /// Learns one verdict.
  void observe(const Evidence& e, bool accepted) {
    if (e.trust == kNone) return;
    const float error = probability(e) - static_cast<float>(accepted);
    trust_[e.trust].update(error, kRate);
    race_[e.race].update(error, kRate);
    slope_[e.trust].update(error * e.odds, kRate);
  }

 private:
  static constexpr float kRate = 0.2f;
  static std::size_t index(int i) { return static_cast<std::size_t>(i); }
  template <std::size_t N>
  static int bucket(const std::array<float, N>& edges, float x) {
    return static_cast<int>(std::upper_bound(edges.begin(), edges.end(), x) - edges.begin());
  }
  float score(const Evidence& e) const { return trust_[e.trust].value + race_[e.race].value + slope_[e.trust].value * e.odds; }

  /// No other token arrives first, and the lead is real.
  static float prior(int race) {
    constexpr std::array<float, kLeads> lead{0.02f, 0.1f, 0.2f, 0.35f, 0.55f, 0.65f, 0.75f, 0.85f, 0.9f, 0.95f, 0.97f, 0.98f};
    constexpr std::array<float, kArrivals> alone{0.97f, 0.93f, 0.88f, 0.8f, 0.65f, 0.5f};
    return log_odds(lead[index(race / kArrivals)] * alone[index(race % kArrivals)]);
  }

  std::array<Weight, kNone> trust_{}, slope_{};
  std::array<Weight, kLeads * kArrivals> race_{};
};

}  // namespace rolltree
