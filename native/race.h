// Drafting along with the sampler's own noise: which candidate wins its race, and how sure that is.
//
// The sampler emits the token that finishes first, token i at E_i / p_i with exponential noise E that is known in advance
// (noise.h; argmin E / p is argmax log p + g, Gumbel noise g = -log E). The drafter knows E and only guesses p. A guess
// that errs by more than g varies must not be overruled by g: the chance of candidate i is a multinomial logit,
//
//   P(i) = e^(s_i) / (e^c + sum_j e^(s_j)),  s_i = a logit(p_i) + b g_i + t_own [i wins the own tree's race] + t_shared [...],
//
// with the ranker's p_i and a class of its own (c) for tokens that are no candidates. A tree's race is run by its counts
// after the longest suffix, unsmoothed: where the policy really tosses a coin, they tell it best. How much all of this is worth
// depends on the matches' lengths, and the races also on the lead and the sightings: a, b, c and t are learned for each, from
// every emitted token. Deterministic, O(1) a candidate. Not thread-safe while learning.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "logistic.h"
#include "noise.h"
#include "ranker.h"

namespace rolltree {

/// The race of the candidates after one context.
struct Race {
  static constexpr std::uint32_t kNobody = CandidateList::kMost;
  static constexpr std::size_t kLeads = 8, kSightings = 8, kCells = 2 * kMatches * kLeads * kSightings;

  std::array<float, CandidateList::kMost> odds, noise;
  std::array<std::uint32_t, 2> winner;    // of each tree's own race, an index into the candidates
  std::array<std::size_t, 2> lead, cell;  // how clear that win is: by the lead alone, and in all its features
  std::size_t context;                    // both matches

  /// `list` as ranked.
  Race(const CandidateList& list, const PlaceNoise& exponential) {
    std::array<float, CandidateList::kMost> arrival;
    for (std::uint32_t i = 0; i < list.size; ++i) {
      arrival[i] = exponential(list.items[i].token);
      noise[i] = -fast_log(arrival[i]);
      odds[i] = log_odds(list.items[i].probability);
    }
    for (std::size_t lane = 0; lane < 2; ++lane) run(list, lane, arrival);
    context = list.match * kMatches + match_bucket(list.length[1]);
  }

 private:
  /// One tree's race: candidate i arrives at E_i / count_i.
  void run(const CandidateList& list, std::size_t lane, const std::array<float, CandidateList::kMost>& arrival) {
    float first = 0, second = 0;  // times; 0: none
    winner[lane] = kNobody;
    for (std::uint32_t i = 0; i < list.size; ++i) {
      if (list.items[i].count[lane] == 0) continue;
      const float time = arrival[i] / list.items[i].count[lane];
      if (first == 0 || time < first) {
        second = first;
        first = time;
        winner[lane] = i;
      } else if (second == 0 || time < second) {
        second = time;
      }
    }
    if (winner[lane] == kNobody) return;
    constexpr std::array<float, kLeads - 2> leads{0.25f, 0.5f, 1.0f, 1.7f, 2.7f, 4.0f};  // nats of noisy score
    constexpr std::array<float, kSightings - 1> seen{0.75f, 1.5f, 2.5f, 4.5f, 8.5f, 20.0f, 60.0f};  // rollouts
    const std::size_t ahead = second == 0 ? kLeads - 1 : bucket(leads, fast_log(second / first));
    const std::size_t sightings = bucket(seen, static_cast<float>(list.total[lane]) / kUnit);
    lead[lane] = lane * kLeads + ahead;
    cell[lane] = ((lane * kMatches + match_bucket(list.length[lane])) * kLeads + ahead) * kSightings + sightings;
  }
};

class RaceModel {
 public:
  RaceModel() {
    for (std::size_t i = 0; i < Race::kCells; ++i) wins_[i].value = prior(i);
  }

  /// Replaces the ranker's probabilities by those given the noise.
  void judge(CandidateList& list, const Race& race) const {
    Chances chances;
    weigh(list.size, race, chances);
    for (std::uint32_t i = 0; i < list.size; ++i) list.items[i].probability = chances[i];
  }
  /// Learns that `actual` was emitted. `list` as ranked, before `judge`.
  void learn(const CandidateList& list, const Race& race, Token actual) {
    if (list.size == 0) return;
    Chances errors;
    float odds = 0, noise = 0, other = weigh(list.size, race, errors) - 1.0f;
    for (std::uint32_t i = 0; i < list.size; ++i) {
      if (list.items[i].token == actual) {
        errors[i] -= 1.0f;
        other += 1.0f;
      }
      odds += errors[i] * race.odds[i];
      noise += errors[i] * race.noise[i];
    }
    Trust& trust = trust_[race.context];
    trust.odds.update(odds, kRate);
    trust.noise.update(noise, kRate);
    trust.other.update(other, kRate);
    for (std::size_t lane = 0; lane < 2; ++lane) {
      if (race.winner[lane] == Race::kNobody) continue;
      const float error = errors[race.winner[lane]];
      leads_[race.lead[lane]].update(error, kRate);
      wins_[race.cell[lane]].update(error, kCellRate);
    }
  }

 private:
  static constexpr float kRate = 0.1f, kCellRate = 0.5f;  // of the wins: they are many, each seldom seen

  using Chances = std::array<float, CandidateList::kMost>;
  struct Trust {
    Weight odds{0.6f}, noise{0.3f}, other{-1.0f};
  };

  /// Fills in each candidate's chance; returns that of all other tokens.
  float weigh(std::uint32_t size, const Race& race, Chances& out) const {
    const Trust& trust = trust_[race.context];
    for (std::uint32_t i = 0; i < size; ++i) out[i] = trust.odds.value * race.odds[i] + trust.noise.value * race.noise[i];
    for (std::size_t lane = 0; lane < 2; ++lane)
      if (race.winner[lane] != Race::kNobody) out[race.winner[lane]] += leads_[race.lead[lane]].value + wins_[race.cell[lane]].value;
    float most = trust.other.value;
    for (std::uint32_t i = 0; i < size; ++i) most = std::max(most, out[i]);
    const float other = fast_exp(trust.other.value - most);
    float sum = other;
    for (std::uint32_t i = 0; i < size; ++i) sum += out[i] = fast_exp(out[i] - most);
    for (std::uint32_t i = 0; i < size; ++i) out[i] /= sum;
    return other / sum;
  }

  /// A win counts for more the longer the match, the oftener it was seen, and the greater the lead. It adds to what the
  /// ranker made of the same counts, so only a part of its own log odds.
  static float prior(std::size_t cell) {
    constexpr std::array<float, Race::kLeads> leads{0.52f, 0.58f, 0.65f, 0.75f, 0.85f, 0.92f, 0.96f, 1.0f};
    constexpr std::array<float, Race::kSightings> seen{0.4f, 1.0f, 2.0f, 3.5f, 6.0f, 16.0f, 30.0f, 100.0f};
    constexpr std::array<float, kMatches> length{1.0f, 2.0f, 3.0f, 4.5f, 7.0f, 12.0f, 24.0f, 40.0f};
    const float n = seen[cell % Race::kSightings], m = length[cell / (Race::kSightings * Race::kLeads) % kMatches];
    const float sure = leads[cell / Race::kSightings % Race::kLeads] * n / (n + 0.4f) * (0.3f + 0.65f * m / (m + 3.0f));
    return (cell < Race::kCells / 2 ? 0.4f : 0.8f) * std::max(0.0f, log_odds(sure));
  }

  std::array<Trust, kMatches * kMatches> trust_{};
  std::array<Weight, 2 * Race::kLeads> leads_{};  // what all matches learn together: soon known
  std::array<Weight, Race::kCells> wins_{};
};

}  // namespace rolltree
