// The pieces of online logistic regression: e^z, the logistic function, its inverse, and a weight that learns (AdaGrad, Duchi
// et al. 2011, with a floor under the rate because the policy moves). Additions and multiplications only: the same bits on
// every machine.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "noise.h"

namespace rolltree {

/// e^z within 1e-6 of itself, z clipped to -15..15.
inline float fast_exp(float z) {
  const float scaled = std::clamp(z, -15.0f, 15.0f) * 1.44269504f;
  const float whole = std::floor(scaled), x = scaled - whole;
  const float power = 1.0f + x * (0.693147182f + x * (0.240226462f + x * (0.0555021f + x * (0.00967884f + x * 0.00124396f))));
  return std::bit_cast<float>(static_cast<std::uint32_t>(static_cast<std::int32_t>(whole) + 127) << 23) * power;
}

/// Logistic function within 1e-6.
inline float squash(float z) { return 1.0f / (1.0f + fast_exp(-z)); }

/// log(p / (1 - p)) of a probability clipped to 0.001..0.999.
inline float log_odds(float probability) {
  const float p = std::clamp(probability, 1e-3f, 1.0f - 1e-3f);
  return fast_log(p / (1.0f - p));
}

// The same for many numbers, in place and `kAtOnce` at a time: `count` is a multiple of it.
constexpr std::size_t kAtOnce = 8;
constexpr std::size_t filled_up(std::size_t count) { return (count + kAtOnce - 1) / kAtOnce * kAtOnce; }

ROLLTREE_VECTORISED
inline void squash_all(float* z, std::size_t count) {
  for (std::size_t i = 0; i < count; i += kAtOnce)
    for (std::size_t k = i; k < i + kAtOnce; ++k) z[k] = squash(z[k]);
}
ROLLTREE_VECTORISED
inline void log_odds_all(float* probability, std::size_t count) {
  for (std::size_t i = 0; i < count; i += kAtOnce)
    for (std::size_t k = i; k < i + kAtOnce; ++k) probability[k] = log_odds(probability[k]);
}

struct Weight {
  static constexpr float kSteadiest = 400.0f;  // squared gradients at which the rate stops falling
  float value = 0, gradients = 1;
  void update(float gradient, float rate) {
    gradients = std::min(gradients + gradient * gradient, kSteadiest);
    value -= rate * gradient / std::sqrt(gradients);
  }
};

}  // namespace rolltree
