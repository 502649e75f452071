// What emitted tokens teach the ranker, in two passes: the candidates after each context are collected, for many rows at once
// and by several threads, while the trees do not change; then the models learn from them in order, while the trees may.
//
// The candidates do not depend on anything that is learned, so the models end with the same bits as if they had learned from
// each token as it was ranked. A block of at most `kBlock` tokens is held at a time, however many are to be learned.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "race.h"
#include "ranker.h"
#include "read_ahead.h"

namespace rolltree {

/// A row's text that is to be learned from, and where it begins.
struct Pupil {
  View view;
  Place place;
  Token last;
  SamplerNoise noise;
  std::uint64_t generated;     // tokens before the first, for the noise
  const std::int32_t* tokens;  // [count], held by the caller
  std::size_t count;
};

class Teaching {
 public:
  static constexpr std::size_t kBlock = 1024;  // tokens, about 1 MB

  void clear() {
    pupils_.clear();
    pieces_.clear();
    at_ = 0;
  }
  void add(const Pupil& pupil) {
    if (pupil.count > 0) pupils_.push_back(pupil);
  }
  /// Plans the next block; returns its number of pieces, each of another row, 0 when all is learned.
  std::size_t plan() {
    pieces_.clear();
    std::size_t used = 0;
    while (at_ < pupils_.size() && used < kBlock) {
      Pupil& pupil = pupils_[at_];
      const std::size_t count = std::min(pupil.count, kBlock - used);
      pieces_.push_back({at_, used, count});
      used += count;
      pupil.count -= count;
      if (pupil.count == 0) ++at_;
    }
    if (lists_.size() < used) lists_.resize(used);
    return pieces_.size();
  }
  /// Whether another block comes after the one that is planned.
  bool more() const { return at_ < pupils_.size(); }

  /// Collects the candidates of the pieces `from` to `to` - 1, at most ReadAhead::kMost, a token of each at a time.
  void collect(std::size_t from, std::size_t to) {
    ReadAhead ahead;
    bool some = true;
    for (std::size_t i = 0; some; ++i) {
      some = false;
      for (std::size_t k = from; k < to; ++k)
        if (i < pieces_[k].count) ahead.add(pupils_[pieces_[k].pupil].view, pupils_[pieces_[k].pupil].place);
      ahead.run();
      for (std::size_t k = from; k < to; ++k)
        if (i < pieces_[k].count) some |= collect_token(pieces_[k], i);
    }
  }
  /// Teaches what the block holds.
  void teach(Ranker& ranker, RaceModel& races) {
    for (const Piece& piece : pieces_) {
      Pupil& pupil = pupils_[piece.pupil];
      for (std::size_t i = 0; i < piece.count; ++i) {
        CandidateList& list = lists_[piece.first + i];
        const auto token = static_cast<Token>(pupil.tokens[i]);
        if (pupil.noise) {
          ranker.appraise(list);
          races.learn(list, Race(list, PlaceNoise(pupil.noise, pupil.generated + i)), token);
        }
        ranker.learn(list, token);
      }
      pupil.tokens += piece.count;
      pupil.generated += piece.count;
    }
  }

 private:
  struct Piece {
    std::size_t pupil, first, count;  // `first` of the lists
  };

  /// Returns whether the row goes on after its token `i` of this block.
  bool collect_token(const Piece& piece, std::size_t i) {
    Pupil& pupil = pupils_[piece.pupil];
    Ranker::collect(pupil.view, pupil.place, pupil.last, 1, lists_[piece.first + i]);
    const bool last = i + 1 == piece.count;
    if (last && pupil.count == 0) return false;  // nobody asks where it ends
    pupil.last = static_cast<Token>(pupil.tokens[i]);
    pupil.place = pupil.view.advance(pupil.place, pupil.last);
    return !last;
  }

  std::vector<Pupil> pupils_;
  std::vector<Piece> pieces_;
  std::vector<CandidateList> lists_;
  std::size_t at_ = 0;  // pupil with which the next block begins
};

}  // namespace rolltree
