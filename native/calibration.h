// How likely a drafted token is accepted, learned online from every verified token.
//
// A count is evidence, not a probability: one sighting on an unbranched edge is far from certain. Each candidate is
// filed under (mode, matched length, confidence, weighted count); the bucket's acceptance rate, shrunk to a prior,
// is the estimate. Deterministic, O(1) per observation, a few KiB. Not thread-safe.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace rolltree {

using Evidence = std::uint16_t;  // index of a bucket

class Calibration {
 public:
  static constexpr int kModes = 4,  // {plain, coupled} x {own tree, shared tree}
       kMatches = 8, kConfidences = 12, kCounts = 6;
  static constexpr int kBuckets = kModes * kMatches * kConfidences * kCounts;

  explicit Calibration(float prior_strength = 4.0f) : strength_(prior_strength) {
    for (int i = 0; i < kBuckets; ++i) probability_[index(i)] = prior(i);
  }

  /// `confidence` is 0..11 from `share_bucket` (plain) or `margin_bucket` (coupled); `count` in units of one rollout.
  static Evidence evidence(bool coupled, bool shared, std::uint32_t match, int confidence, float count) {
    const int mode = coupled + 2 * shared;
    const int i = ((mode * kMatches + match_bucket(match)) * kConfidences + confidence) * kCounts;
    return static_cast<Evidence>(i + count_bucket(count));
  }
  /// Share of the candidate among its siblings, 0..1; 11 is an only child.
  static int share_bucket(float share) { return share >= 1.0f ? 11 : std::max(0, static_cast<int>(share * 11.0f)); }
  /// Lead of the candidate over its best rival, in nats of noisy score; negative for the rivals themselves.
  static int margin_bucket(float margin) {
    constexpr std::array<float, 10> edges{-1.5f, -0.7f, -0.25f, 0.0f, 0.25f, 0.5f, 1.0f, 1.7f, 2.7f, 4.0f};
    return static_cast<int>(std::upper_bound(edges.begin(), edges.end(), margin) - edges.begin());
  }

  float probability(Evidence e) const { return probability_[e]; }
  double hits(Evidence e) const { return hits_[e]; }
  double trials(Evidence e) const { return trials_[e]; }

  /// Files one verdict. Old verdicts fade (halved every 8,192) because the policy moves.
  void observe(Evidence e, bool accepted) {
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
  static int match_bucket(std::uint32_t m) {
    constexpr std::array<std::uint32_t, 7> edges{2, 3, 4, 6, 9, 17, 33};
    return static_cast<int>(std::upper_bound(edges.begin(), edges.end(), m) - edges.begin());
  }
  static int count_bucket(float n) {
    constexpr std::array<float, 5> edges{0.75f, 1.5f, 2.5f, 4.5f, 8.5f};
    return static_cast<int>(std::upper_bound(edges.begin(), edges.end(), n) - edges.begin());
  }

  // Optimistic enough that a cold start drafts at all, below the raw share everywhere.
  static float prior(int bucket) {
    constexpr std::array<float, kMatches> length{1, 2, 3, 4.5f, 7, 12, 24, 40};
    constexpr std::array<float, kCounts> count{0.4f, 1, 2, 3.5f, 6, 16};
    constexpr std::array<float, 10> lead{0.02f, 0.1f, 0.2f, 0.35f, 0.55f, 0.6f, 0.7f, 0.8f, 0.88f, 0.94f};
    const int n = bucket % kCounts, confidence = bucket / kCounts % kConfidences;
    const int match = bucket / (kCounts * kConfidences) % kMatches;
    const bool coupled = bucket / (kBuckets / kModes) % 2 == 1;
    const float known = count[index(n)] / (count[index(n)] + 0.4f);
    const float m = length[index(match)];
    const float context = 0.3f + 0.65f * m / (m + 3.0f);
    float belief = 1.0f;
    if (confidence < 11) belief = coupled ? lead[index(std::min(confidence, 9))] : (static_cast<float>(confidence) + 0.5f) / 11.0f;
    return belief * known * context;
  }

  float strength_;
  std::array<float, kBuckets> probability_{};
  std::array<double, kBuckets> hits_{}, trials_{};
};

}  // namespace rolltree
