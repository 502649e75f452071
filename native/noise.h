// Counter-based noise shared with the sampler: the same (seed, position, token) gives the same number everywhere.
//
// The sampler draws argmax(log p + g) with Gumbel noise g = -log(E), E exponential (Gumbel-max trick; drafter-invariant
// speculative decoding, arXiv 2408.07978). The drafter ranks its candidates with the same E, so at a fork it guesses the
// branch that the sampler is going to take. `rolltree.sampling.noise` is the torch twin of this file.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

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

/// Natural logarithm of a positive normal float within 2 ulp, branch-free so that loops over it vectorise (the
/// polynomial of Cephes' logf, Moshier 1989).
inline float fast_log(float a) {
  const std::uint32_t word = std::bit_cast<std::uint32_t>(a) - 0x3F3504F3u;  // mantissa in [sqrt(1/2), sqrt(2))
  const float e = static_cast<float>(static_cast<std::int32_t>(word) >> 23);
  const float x = std::bit_cast<float>((word & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  float p = 7.0376836292e-2f;
  for (float c : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                  2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f})
    p = p * x + c;
  const float z = x * x;
  return x + (p * x * z + e * -2.12194440e-4f - 0.5f * z) + e * 0.693359375f;
}

/// Exponential(1) noise -log(1 - v) of v = (bits + 1/2) / 2^32. Small values, which decide the winner, keep full float
/// precision: the upper half takes the logarithm of 1 - v itself, the lower half corrects what rounding 1 - v lost.
inline float exponential_of_bits(std::uint32_t bits) {
  const bool upper = bits >> 31;
  const std::uint32_t y = upper ? ~bits : bits;
  const float high = static_cast<float>(static_cast<std::int32_t>(y >> 8));
  const float low = static_cast<float>(static_cast<std::int32_t>(y & 255u)) + 0.5f;
  const float w = (high * 256.0f + low) * 0x1p-32f;
  const float u = 1.0f - w;
  const float lost = ((1.0f - u) - w) / u;
  return upper ? -fast_log(w) : -(fast_log(u) + lost);
}

inline float exponential_noise(std::uint64_t key, std::uint32_t token) { return exponential_of_bits(noise_bits(key, token)); }

/// One word into the state of murmur3 x86-32 (Appleby, public domain).
inline std::uint32_t murmur3_word(std::uint32_t h, std::uint32_t word) {
  h ^= std::rotl(word * 0xCC9E2D51u, 15) * 0x1B873593u;
  return std::rotl(h, 13) * 5u + 0xE6546B64u;
}

/// vLLM's noise (V2 runner, `sample/gumbel.py`): murmur3 over (seed low, seed high, position, token). The state behind
/// the first three is the key of a (seed, position).
inline std::uint32_t murmur3_key(std::uint64_t seed, std::uint32_t position) {
  std::uint32_t h = murmur3_word(0, static_cast<std::uint32_t>(seed));
  h = murmur3_word(h, static_cast<std::uint32_t>(seed >> 32));
  return murmur3_word(h, position);
}

inline std::uint32_t murmur3_bits(std::uint32_t key, std::uint32_t token) {
  std::uint32_t h = murmur3_word(key, token) ^ 16u;
  h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
  h = (h ^ (h >> 13)) * 0xC2B2AE35u;
  return h ^ (h >> 16);
}

/// Whose noise a request's sampler draws with, and where its positions begin.
struct SamplerNoise {
  enum class Hash : std::uint8_t { none, rolltree, murmur3 };
  Hash hash = Hash::none;
  std::uint64_t seed = 0;
  std::uint64_t offset = 0;  // position of the first generated token

  explicit operator bool() const { return hash != Hash::none; }
};

/// The noise of one place of a request's text: exponential, a number a token.
class PlaceNoise {
 public:
  PlaceNoise(const SamplerNoise& noise, std::uint64_t generated)
      : murmur3_(noise.hash == SamplerNoise::Hash::murmur3),
        key_(murmur3_ ? murmur3_key(noise.seed, static_cast<std::uint32_t>(noise.offset + generated))
                      : noise_key(noise.seed, noise.offset + generated)) {}
  float operator()(std::uint32_t token) const {
    return exponential_of_bits(murmur3_ ? murmur3_bits(static_cast<std::uint32_t>(key_), token) : noise_bits(key_, token));
  }

 private:
  bool murmur3_;
  std::uint64_t key_;
};

// One function for several instruction sets; without contraction to fused operations all give the same bits. (Not under
// ThreadSanitizer: the choice is made before its runtime is up.)
#if !defined(__SANITIZE_THREAD__) && defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
#define ROLLTREE_VECTORISED [[gnu::target_clones("avx512f", "avx2", "default")]]
#else
#define ROLLTREE_VECTORISED
#endif

/// Standard Gumbel noise of tokens 0..vocabulary-1 under a key.
ROLLTREE_VECTORISED
inline void gumbel_row(std::uint64_t key, std::uint32_t vocabulary, float* out) {
  for (std::uint32_t t = 0; t < vocabulary; ++t) out[t] = -fast_log(exponential_noise(key, t));
}

/// vLLM's Gumbel noise of 32 bits, by the float operations of its sampler: what it rounds off is rounded off here, too.
inline float murmur3_gumbel(std::uint32_t bits) {
  const float high = static_cast<float>(static_cast<std::int32_t>(bits >> 16));
  const float low = static_cast<float>(static_cast<std::int32_t>(bits & 0xFFFFu)) + 0.5f;
  const float u = high * 0x1p-16f + low * 0x1p-32f, rest = 1.0f - u;
  float p = 0.125f;  // -log(1 - u) = u p, by its series
  for (float c : {1.0f / 7, 1.0f / 6, 1.0f / 5, 1.0f / 4, 1.0f / 3, 1.0f / 2, 1.0f}) p = c + u * p;
  return -fast_log(u < 0.25f ? u * p : -fast_log(rest < 0x1p-24f ? 0x1p-24f : rest));
}

ROLLTREE_VECTORISED
inline void murmur3_gumbel_row(std::uint32_t key, std::uint32_t from, std::uint32_t count, float* out) {
  for (std::uint32_t i = 0; i < count; ++i) out[i] = murmur3_gumbel(murmur3_bits(key, from + i));
}

/// The token that vLLM's sampler draws at a position: argmax of logits [vocabulary] and noise, of equals the first.
inline std::int64_t murmur3_argmax(const float* logits, std::uint32_t vocabulary, std::uint64_t seed, std::uint32_t position) {
  constexpr std::uint32_t kBlock = 1024;
  float noise[kBlock];
  const std::uint32_t key = murmur3_key(seed, position);
  std::int64_t best = 0;
  float most = -std::numeric_limits<float>::infinity();
  for (std::uint32_t from = 0; from < vocabulary; from += kBlock) {
    const std::uint32_t count = std::min(kBlock, vocabulary - from);
    murmur3_gumbel_row(key, from, count, noise);
    for (std::uint32_t i = 0; i < count; ++i) {
      const float value = logits[from + i] + noise[i];
      if (value <= most) continue;
      most = value;
      best = from + i;
    }
  }
  return best;
}

}  // namespace rolltree
