// Counter-based noise shared with the sampler: the same (seed, position, token) gives the same number everywhere.
//
// The sampler draws argmax(log p + g) with Gumbel noise g = -log(E), E exponential (Gumbel-max trick; drafter-invariant
// speculative decoding, arXiv 2408.07978). The drafter ranks its candidates with the same E, so at a fork it guesses the
// branch that the sampler is going to take. `rolltree.sampling.noise` is the torch twin of this file.
#pragma once

#include <cmath>
#include <cstdint>

namespace rolltree {

/// The 64-bit key of one (seed, position); splitmix64 finaliser.
inline std::uint64_t noise_key(std::uint64_t seed, std::uint64_t position) {
  std::uint64_t z = seed + 0x9E3779B97F4A7C15ull * (position + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

/// 32 uniform bits of one token under a key.
inline std::uint32_t noise_bits(std::uint64_t key, std::uint32_t token) {
  std::uint32_t x = token * 0x9E3779B1u + static_cast<std::uint32_t>(key);
  x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
  x = (x ^ (x >> 13)) * 0xC2B2AE35u;
  x = (x ^ (x >> 16)) + static_cast<std::uint32_t>(key >> 32);
  x = (x ^ (x >> 15)) * 0x2C1B3C6Du;
  x = (x ^ (x >> 12)) * 0x297A2D39u;
  return x ^ (x >> 15);
}

/// Exponential(1) noise; small values, which decide the winner, keep full float precision.
inline float exponential_noise(std::uint64_t key, std::uint32_t token) {
  const double v = (static_cast<double>(noise_bits(key, token)) + 0.5) * 0x1p-32;
  return static_cast<float>(-std::log1p(-v));
}

/// Standard Gumbel noise.
inline float gumbel_noise(std::uint64_t key, std::uint32_t token) { return -std::log(exponential_noise(key, token)); }

}  // namespace rolltree
