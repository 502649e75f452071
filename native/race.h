// Drafting along with the sampler's own noise: which candidate wins its race, and how sure that is.
//
// The sampler emits the token that finishes first, token i at E_i / p_i with exponential noise E that is known in advance
// (noise.h; argmin E / p is argmax log p + Gumbel). The drafter knows E and only guesses p, so a candidate's chance hangs
// on its lead over the best rival, on what tokens outside the candidates may do in that time, and on how far the guess is
// to be trusted: how long the match is and how often its continuation was seen. An additive logistic model of these learns
// from every emitted token. Where the policy is nearly certain and only the drafter is not, it learns to follow the
// guess; where the policy really tosses a coin, the noise. Deterministic, O(1) a candidate. Not thread-safe while learning.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "logistic.h"
#include "noise.h"
#include "ranker.h"

namespace rolltree {

/// The race of the candidates after one context.
struct Race {
  std::array<float, CandidateList::kMost> times;
  float first = 0, second = 0;  // the two best times; 0: none
  float rest = 0;               // probability left for tokens that are no candidates

  Race(const CandidateList& list, std::uint64_t seed, std::uint64_t position) {
    const std::uint64_t key = noise_key(seed, position);
    float sum = 0;
    for (const Candidate& c : list) sum += c.probability;
    const float scale = sum > 1.0f ? 1.0f / sum : 1.0f;
    rest = std::max(1.0f - sum, 0.0f);
    for (std::uint32_t i = 0; i < list.size; ++i) {
      times[i] = exponential_noise(key, list.items[i].token) / (scale * list.items[i].probability);
      if (first == 0 || times[i] < first) {
        second = first;
        first = times[i];
      } else if (second == 0 || times[i] < second) {
        second = times[i];
      }
    }
  }
  /// Nats of noisy score over the best rival; negative for the rivals themselves.
  float lead(std::uint32_t i) const {
    const float rival = times[i] == first ? second : first;
    return rival == 0 ? 99.0f : fast_log(rival / times[i]);
  }
};

class RaceModel {
 public:
  RaceModel() {
    for (std::size_t i = 0; i < race_.size(); ++i) race_[i].value = prior(i % (kLeads * kArrivals));
    for (Weight& w : slope_) w.value = 0.3f;
  }

  /// Replaces the ranker's probabilities by those given the noise.
  void judge(CandidateList& list, const Race& race) const {
    for (std::uint32_t i = 0; i < list.size; ++i) list.items[i].probability = squash(score(evidence(list, race, i)));
  }
  /// Learns that `actual` was emitted. `list` as ranked, before `judge`.
  void learn(const CandidateList& list, const Race& race, Token actual) {
    for (std::uint32_t i = 0; i < list.size; ++i) {
      const Evidence e = evidence(list, race, i);
      const float error = squash(score(e)) - static_cast<float>(list.items[i].token == actual);
      trust_[e.trust].update(error, kRate);
      slope_[e.trust].update(error * e.odds, kRate);
      race_[e.race].update(error, kRate);
    }
  }

 private:
  static constexpr std::size_t kMatches = 8, kSightings = 6, kLeads = 12, kArrivals = 6, kFamiliarities = 3;
  static constexpr float kRate = 0.2f;

  struct Evidence {
    std::size_t trust, race;
    float odds;
  };
  template <std::size_t N>
  static std::size_t bucket(const std::array<float, N>& edges, float x) {
    return static_cast<std::size_t>(std::upper_bound(edges.begin(), edges.end(), x) - edges.begin());
  }
  /// How much a lead means depends on how well the shares are known.
  static std::size_t familiarity(std::uint32_t sightings) { return (sightings > kUnit * 3 / 2) + (sightings > kUnit * 9 / 2); }
  static Evidence evidence(const CandidateList& list, const Race& race, std::uint32_t i) {
    constexpr std::array<float, kSightings - 1> seen{0.75f, 1.5f, 2.5f, 4.5f, 8.5f};  // rollouts
    constexpr std::array<float, kLeads - 1> leads{-1.5f, -0.7f, -0.25f, 0.0f, 0.25f, 0.5f, 1.0f, 1.7f, 2.7f, 4.0f, 8.0f};
    constexpr std::array<float, kArrivals - 1> others{0.02f, 0.06f, 0.15f, 0.4f, 1.0f};
    const std::size_t trust = list.match * kSightings + bucket(seen, static_cast<float>(list.sightings) / kUnit);
    const std::size_t cell = bucket(leads, race.lead(i)) * kArrivals + bucket(others, race.rest * race.times[i]);
    return {trust, familiarity(list.sightings) * kLeads * kArrivals + cell, log_odds(list.items[i].probability)};
  }
  float score(const Evidence& e) const { return trust_[e.trust].value + race_[e.race].value + slope_[e.trust].value * e.odds; }

  /// No other token arrives first, and the lead is real.
  static float prior(std::size_t cell) {
    constexpr std::array<float, kLeads> lead{0.02f, 0.1f, 0.2f, 0.35f, 0.55f, 0.65f, 0.75f, 0.85f, 0.9f, 0.95f, 0.97f, 0.98f};
    constexpr std::array<float, kArrivals> alone{0.97f, 0.93f, 0.88f, 0.8f, 0.65f, 0.5f};
    return log_odds(lead[cell / kArrivals] * alone[cell % kArrivals]);
  }

  std::array<Weight, kMatches * kSightings> trust_{}, slope_{};
  std::array<Weight, kFamiliarities * kLeads * kArrivals> race_{};
};

}  // namespace rolltree
