// Several drafters on one forest, each in a thread of its own, under ThreadSanitizer: open, draft, settle, close, look.
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../forest.h"

using namespace rolltree;
using Tokens = std::vector<std::int32_t>;

namespace {

constexpr std::size_t kRows = 40, kWidth = 4;  // more rows than a thread drafts alone: the worker threads take part

/// One engine's life: drafts for its rows, emits some of them, ends and begins requests.
void engine(Forest& forest, std::int64_t tree, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::int64_t> sessions;
  for (std::size_t b = 0; b < kRows; ++b) sessions.push_back(forest.open(tree, 0, false, true, {b % 2 == 0 ? SamplerNoise::Hash::rolltree : SamplerNoise::Hash::murmur3, random()}));
  Tokens tokens(kRows * kWidth), parents(kRows * kWidth), lengths(kRows), limits(kRows, kWidth), rows(kRows), offsets(kRows + 1), accepted(kRows);
  std::vector<float> survival(kRows * kWidth);
  std::vector<std::uint8_t> source(kRows * kWidth);
  const DraftArrays d{kRows, kWidth, tokens.data(), parents.data(), survival.data(), source.data(), lengths.data()};
  for (std::int64_t step = 0; step < 30; ++step) {
    forest.draft_batch(sessions.data(), limits.data(), DraftOptions{}, d);
    Tokens emitted;
    for (std::size_t b = 0; b < kRows; ++b) {
      rows[b] = static_cast<std::int32_t>(b);
      emitted.push_back(static_cast<std::int32_t>(random() % 7));
      offsets[b + 1] = static_cast<std::int32_t>(emitted.size());
    }
    forest.settle(sessions.data(), kRows, d, rows.data(), lengths.data(), emitted.data(), emitted.size(), offsets.data(), accepted.data());
    const std::size_t b = random() % kRows;
    forest.close(sessions[b], step % 2 == 0);
    sessions[b] = forest.open(tree, step, false, true, {});
    (void)forest.learned();
    (void)forest.bytes();
    (void)forest.source_sums();
  }
  for (auto session : sessions) forest.close(session, true);
}

}  // namespace

int main() {
  Forest forest(TreeOptions{16, 8, 0.9, 16}, 64, Limits{200000, 100000, 50});
  forest.set_threads(2);
  const Tokens prompt{1, 2, 3};
  const auto shared = forest.add_tree(prompt.data(), prompt.size(), 0), other = forest.add_tree(prompt.data(), 2, 0);
  std::vector<std::thread> threads;
  for (std::uint64_t i = 0; i < 3; ++i) threads.emplace_back([&, i] { engine(forest, i < 2 ? shared : other, i); });
  for (std::thread& t : threads) t.join();
  forest.finish();
  for (auto tree : {shared, other}) {
    const std::string fault = forest.check(tree);
    if (fault.empty() && forest.stats(tree).live == 0) continue;
    std::printf("threads_test: %s\n", fault.c_str());
    return 1;
  }
  if (!forest.check_shared().empty()) return 1;
  std::printf("threads_test: 1 passed, 0 failed\n");
  return 0;
}
