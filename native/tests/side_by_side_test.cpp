// Rows that are worked on side by side, and by several threads: every draft, survival and sum has the bits of one row at a time.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../step.h"
#include "check.h"

using namespace rolltree;
using Tokens = std::vector<std::int32_t>;

namespace {

Tokens text(std::mt19937_64& random, std::size_t n) {
  Tokens made(n);
  for (std::size_t i = 0; i < n; ++i)
    made[i] = random() % 8 == 0 || i < 2 ? static_cast<std::int32_t>(random() % 60) : (made[i - 1] * 3 + made[i - 2]) % 12;
  return made;
}

/// Everything that a run shows.
struct Seen {
  std::vector<std::int32_t> drafts;
  std::vector<std::uint64_t> sums;
  std::vector<float> survival;
  bool operator==(const Seen&) const = default;
};

/// Steps over `trees` prompts with `rows` requests, some with noise; requests end and begin, windows and limits are passed.
Seen play(std::size_t threads, std::size_t trees, std::size_t rows) {
  constexpr std::size_t kWidth = 8, kStride = 400;
  Forest forest(TreeOptions{16, 4, 0.9, 16}, 12, Limits{400000, 200000, 200});
  forest.set_threads(threads);
  std::mt19937_64 random(3);
  std::vector<std::int64_t> handles;
  for (std::size_t i = 0; i < trees; ++i) {
    const Tokens prompt = text(random, 5);
    handles.push_back(forest.add_tree(prompt.data(), prompt.size(), 0));
  }
  const auto begin = [&](std::size_t b, std::int64_t version) {
    const auto hash = static_cast<SamplerNoise::Hash>(b % 3);
    return forest.open(handles[b % trees], version, b % 11 == 10, true, {hash, random()});
  };
  Tokens buffers(Step::buffer_size(rows, kWidth)), texts(rows * kStride), lengths(rows), prompts(rows);
  Step step(forest, rows, kWidth, 1, buffers.data());
  std::vector<std::int64_t> sessions(rows);
  for (std::size_t b = 0; b < rows; ++b) {
    sessions[b] = begin(b, 0);
    const Tokens made = text(random, kStride);
    std::copy(made.begin(), made.end(), texts.begin() + static_cast<std::ptrdiff_t>(b * kStride));
  }
  Seen seen;
  std::uint64_t taken = 0, drafted = 0, accepted = 0;
  for (std::size_t i = 0; i < 40; ++i) {
    Turn* turn = step.next();
    CHECK(turn);
    turn->sessions = sessions;
    turn->prompts = prompts;
    for (std::size_t b = 0; b < rows; ++b) {
      turn->slots[b] = static_cast<std::int32_t>(b);
      turn->ends[b] = kStride;
      turn->limits[b] = b % 7 == 6 ? 2 : kWidth;
    }
    step.hand_over({rows, texts.data(), rows, kStride, INT32_MAX, rows * 3, 0.02f, 1, i % 2 == 0, {1, 0, 1e-3, 0, 0, 0}});
    for (std::size_t b = 0; b < rows; ++b) {
      turn->counts[b] = static_cast<std::int32_t>(i == 5 ? 150 : random() % 4);  // once more than a block of samples holds
      turn->lengths[b] = lengths[b] = std::min<std::int32_t>(lengths[b] + turn->counts[b], kStride);
    }
    step.run(*turn);
    CHECK(turn->outcome == StepOutcome::whole);
    seen.drafts.insert(seen.drafts.end(), turn->drafts, turn->drafts + rows * (kWidth + 1));
    taken += turn->tokens.size();
    drafted += turn->drafted;
    accepted += turn->accepted;
    const std::size_t b = random() % rows;
    forest.close(sessions[b], i % 3 != 0);
    sessions[b] = begin(b, static_cast<std::int64_t>(i / 4));
    prompts[b] = lengths[b];  // it goes on where the other ended
  }
  CHECK(accepted > 50);
  std::vector<std::int32_t> tokens(rows * kWidth), parents(rows * kWidth), nodes(rows), limits(rows, kWidth);
  std::vector<std::uint8_t> source(rows * kWidth);
  seen.survival.resize(rows * kWidth);
  const DraftArrays out{rows, kWidth, tokens.data(), parents.data(), seen.survival.data(), source.data(), nodes.data()};
  forest.draft_batch(sessions.data(), limits.data(), DraftOptions{}, out);
  for (const SourceSums& sum : forest.source_sums()) seen.sums.insert(seen.sums.end(), {sum.drafted, sum.accepted});
  seen.sums.insert(seen.sums.end(), {taken, drafted, accepted, forest.learned(), forest.bytes(), forest.shared_stats().states});
  for (auto tree : handles) {
    seen.sums.push_back(forest.stats(tree).bytes);
    CHECK(forest.check(tree).empty());
  }
  CHECK(forest.check_shared().empty());
  return seen;
}

void any_number_of_threads_gives_the_same() {
  for (std::size_t trees : {1, 13}) {
    const Seen one = play(1, trees, 70);
    for (std::size_t threads : {2, 3, 4}) CHECK(play(threads, trees, 70) == one);
  }
}

/// Two lanes over text of which some was forgotten, so that edges of no count are about.
struct Lanes {
  PromptTree own, shared;
  Sequence* session;
  Sequence* same;
  explicit Lanes(std::mt19937_64& random) : own({16, 3, 0.9, 16}, 0, nullptr, 0), shared({16, 5, 0.9, 16}, 0, nullptr, 0) {
    std::unique_ptr<Automaton> old;
    for (int i = 0; i < 12; ++i)
      for (PromptTree* tree : {&own, &shared}) {
        const Tokens made = text(random, 60);
        Sequence* s = tree->open(i / 3, false, true);
        tree->append(*s, made.data(), made.size(), false);
        tree->close(s, true);
        while (tree->pending()) tree->work(UINT64_MAX, old);
      }
    session = own.open(4, false, true);
    same = shared.open(4, false, true);
  }
  View view() const { return {{&own.automaton(), &shared.automaton()}, session->serial, own.first_of_newest()}; }
  Place place() const { return {own.place(*session), shared.place(*same)}; }
};

bool equal(const Place& a, const Place& b) {
  bool same = true;
  for (std::size_t lane = 0; lane < 2; ++lane) same &= a[lane].state == b[lane].state && a[lane].length == b[lane].length;
  return same;
}

/// What the ranker found of a candidate leads where looking it up leads.
void a_candidate_leads_where_its_token_does() {
  std::mt19937_64 random(5);
  std::size_t looked_up = 0, known = 0;
  for (int round = 0; round < 30; ++round) {
    const Lanes lanes(random);
    const View view = lanes.view();
    Place place = lanes.place();
    const Ranker ranker;
    CandidateList list;
    Token last = 0;
    for (std::int32_t token : text(random, 200)) {
      ranker.rank(view, place, last, 1 + static_cast<std::uint32_t>(round % 3), list);
      for (const Candidate& c : list) {
        CHECK(equal(view.advance(place, list, c), view.advance(place, c.token)));
        (list.direct[0] && c.count[0] > 0 ? known : looked_up) += 1;
      }
      place = view.advance(place, last = static_cast<Token>(token));
    }
  }
  CHECK(known > 1000 && looked_up > 1000);
}

/// Blocks of samples leave the models as learning from each token as it is ranked does.
void models_learn_as_from_one_token_at_a_time() {
  std::mt19937_64 random(9);
  const Lanes lanes(random);
  std::vector<Tokens> texts;
  for (std::size_t n : {3, 0, 700, 1, 2500, 900, 40}) texts.push_back(text(random, n));
  Ranker plain, taught;
  RaceModel plain_races, taught_races;
  Teaching teaching;
  CandidateList list;
  teaching.clear();
  for (std::size_t b = 0; b < texts.size(); ++b) {
    const SamplerNoise noise{static_cast<SamplerNoise::Hash>(b % 3), 77};
    teaching.add({lanes.view(), lanes.place(), 0, noise, 10 * b, texts[b].data(), texts[b].size()});
    Place at = lanes.place();
    Token last = 0;
    for (std::size_t i = 0; i < texts[b].size(); ++i) {
      plain.rank(lanes.view(), at, last, 1, list);
      const auto token = static_cast<Token>(texts[b][i]);
      if (noise) plain_races.learn(list, Race(list, PlaceNoise(noise, 10 * b + i)), token);
      plain.learn(list, token);
      at = lanes.view().advance(at, last = token);
    }
  }
  for (std::size_t pieces; (pieces = teaching.plan()) > 0; teaching.teach(taught, taught_races))
    for (std::size_t from = 0; from < pieces; from += ReadAhead::kMost) teaching.collect(from, std::min(pieces, from + ReadAhead::kMost));
  CHECK(plain.seen() == taught.seen() && plain.seen() == 4144);
  CHECK(std::memcmp(&plain_races, &taught_races, sizeof plain_races) == 0);
  Place at = lanes.place();
  CandidateList other;
  Token last = 0;
  for (std::int32_t token : text(random, 300)) {
    plain.rank(lanes.view(), at, last, 1, list);
    taught.rank(lanes.view(), at, last, 1, other);
    for (std::uint32_t i = 0; i < list.size; ++i) CHECK(list.items[i].probability == other.items[i].probability);
    at = lanes.view().advance(at, last = static_cast<Token>(token));
  }
}

}  // namespace

int main() {
  any_number_of_threads_gives_the_same();
  a_candidate_leads_where_its_token_does();
  models_learn_as_from_one_token_at_a_time();
  std::printf("side_by_side_test: 3 passed, 0 failed\n");
  return 0;
}
