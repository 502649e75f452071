// How likely the winner of the noisy race is what the sampler emits, learned online from every verdict.
//
// The ranker's probabilities say how likely a token is before the noise is known. Once it is known, the answer hangs on
// three things: the lead over the best rival, what tokens outside the candidates may do in that time, and how far the
// ranker was to be trusted. Each bucket's rate of acceptance, shrunk to a prior, is the estimate. Deterministic, O(1) per
// observation, a few KiB. Not thread-safe.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace rolltree {

using Evidence = std::uint16_t;  // index of a bucket; 0: no noise, nothing to judge

class Calibration {
 public:
  static constexpr int kLeads = 12, kRests = 6, kBeliefs = 8;
  static constexpr int kBuckets = 1 + kLeads * kRests * kBeliefs;

  explicit Calibration(float prior_strength = 4.0f) : strength_(prior_strength) {
    for (int i = 1; i < kBuckets; ++i) probability_[index(i)] = prior(i);
  }

  /// `lead`: nats of noisy score over the best rival, negative for the rivals themselves; `rest`: expected arrivals of
  /// tokens that are no candidates; `belief`: the ranker's probability.
  static Evidence evidence(float lead, float rest, float belief) {
    constexpr std::array<float, kLeads - 1> leads{-1.5f, -0.7f, -0.25f, 0.0f, 0.25f, 0.5f, 1.0f, 1.7f, 2.7f, 4.0f, 8.0f};
    constexpr std::array<float, kRests - 1> rests{0.02f, 0.06f, 0.15f, 0.4f, 1.0f};
    constexpr std::array<float, kBeliefs - 1> beliefs{0.05f, 0.15f, 0.3f, 0.5f, 0.7f, 0.85f, 0.95f};
    return static_cast<Evidence>(1 + (bucket(leads, lead) * kRests + bucket(rests, rest)) * kBeliefs + bucket(beliefs, belief));
  }

  float probability(Evidence e) const { return probability_[e]; }
  double hits(Evidence e) const { return hits_[e]; }
  double trials(Evidence e) const { return trials_[e]; }

  /// Files one verdict. Old verdicts fade (halved every 8,192) because the policy moves.
  void observe(Evidence e, bool accepted) {
    if (e == 0) return;
    if (trials_[e] >= 8192) {
      trials_[e] /= 2;
      hits_[e] /= 2;
    }
    trials_[e] += 1;
    hits_[e] += accepted;
    probability_[e] = static_cast<float>((hits_[e] + strength_ * prior(e)) / (trials_[e] + strength_));
  }

 private:
  static std::size_t index(int i) { return static_cast<std::size_t>(i); }
  template <std::size_t N>
  static int bucket(const std::array<float, N>& edges, float x) {
    return static_cast<int>(std::upper_bound(edges.begin(), edges.end(), x) - edges.begin());
  }

  /// No other token arrives first (exp(-rest), if the ranker is right), and the lead is real.
  static float prior(int evidence) {
    constexpr std::array<float, kLeads> lead{0.02f, 0.1f, 0.2f, 0.35f, 0.55f, 0.65f, 0.75f, 0.85f, 0.9f, 0.95f, 0.97f, 0.98f};
    constexpr std::array<float, kRests> alone{0.97f, 0.93f, 0.88f, 0.75f, 0.5f, 0.2f};
    const int i = evidence - 1;
    return lead[index(i / (kRests * kBeliefs))] * alone[index(i / kBeliefs % kRests)];
  }

  float strength_;
  std::array<float, kBuckets> probability_{};
  std::array<double, kBuckets> hits_{}, trials_{};
};

}  // namespace rolltree
