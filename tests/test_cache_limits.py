"""Memory: the cap holds, nothing starves, long work is done in slices; sums and handles outlive `clear` and forks."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from rolltree import CacheConfig, DraftConfig, RolloutCache, TreeDrafter
from rolltree._native import Drafts, Forest
from rolltree.bench.pauses import CALLS, measure_pauses
from rolltree.errors import InvalidInputError

MIB = 2**20


def noise(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50_000, length).astype(np.int32)


def within(cache: RolloutCache, *, running: int = 0) -> bool:
    """Cap and a twentieth, and what running rollouts may add."""
    return cache.bytes <= 1.05 * cache.config.capacity_bytes + running


def test_the_shared_tree_starves_no_prompt() -> None:
    """Filled four times over: both trees are inside their parts all the time, and the youngest prompts are held."""
    cache = RolloutCache(CacheConfig(capacity_bytes=8 * MIB))
    for prompt in range(500):
        cache.add([prompt], noise(prompt, 800))
        assert within(cache)
        assert cache._forest.shared_stats()["bytes"] <= 1.05 * MIB
    held = cache.stats().prompts
    assert cache._forest.own_bytes() > 0.8 * 7 * MIB
    assert all(cache.rollouts([prompt]) == 1 for prompt in range(500 - held, 500))
    assert cache._forest.shared_stats()["kept"] >= 4
    cache.check()


def test_the_shared_trees_part_is_set_and_counted() -> None:
    small, large = (RolloutCache(CacheConfig(capacity_bytes=8 * MIB, shared_fraction=part)) for part in (0.1, 0.5))
    for prompt in range(300):
        small.add([prompt], noise(prompt, 800))
        large.add([prompt], noise(prompt, 800))
        assert within(large)
    assert small.stats().prompts > large.stats().prompts
    assert small._forest.shared_stats()["bytes"] < large._forest.shared_stats()["bytes"]
    trees = sum(large._forest.stats(entry.tree)["bytes"] for entry in large._prompts)
    large._forest.finish()
    assert large.bytes == trees + large._forest.shared_stats()["bytes"]


def test_one_prompt_larger_than_the_cap_keeps_its_latest_rollouts() -> None:
    cache = RolloutCache(CacheConfig(capacity_bytes=8 * MIB))
    reader = cache.open([1], read_only=True)
    for seed in range(120):
        cache.add([1], noise(seed, 4000))
        assert within(cache)
    assert 3 <= cache.rollouts([1]) < 64
    drafter = TreeDrafter(cache)
    latest = noise(119, 4000)
    handle = drafter.open([1])
    cache.extend(handle, latest[:100])
    batch = drafter.draft(np.array([handle]), np.array([8], np.int32))
    assert batch.tokens[0, : batch.lengths[0]].tolist() == latest[100 : 100 + batch.lengths[0]].tolist()
    assert batch.lengths[0] > 0
    cache.close(reader)
    cache.close(handle)


def test_live_prompts_give_way_to_each_other() -> None:
    cache = RolloutCache(CacheConfig(capacity_bytes=8 * MIB, shared_window=0))
    readers = [cache.open([prompt], read_only=True) for prompt in range(6)]
    for seed in range(400):
        cache.add([seed % 6], noise(seed, 1000))
        assert within(cache)
    assert all(cache.rollouts([prompt]) >= 1 for prompt in range(6))
    assert cache.stats().evicted_prompts == 0
    for reader in readers:
        cache.close(reader)
    cache.check()


def test_running_rollouts_come_on_top() -> None:
    """1,024 live siblings: nothing raises; their text counts twice, in their own tree and in the shared one."""
    cache = RolloutCache(CacheConfig(capacity_bytes=MIB))
    sessions = np.array([cache.open([1, 2]) for _ in range(1024)])
    offsets = np.arange(0, 1025 * 8, 8, dtype=np.int32)
    for step in range(5):
        cache.append(sessions, noise(step, 1024 * 8), offsets)
    tokens = 5 * 8 * 1024
    assert within(cache, running=2 * 160 * tokens)
    for session in sessions.tolist():
        cache.close(session)
    for _ in range(200):  # calls that find what waits
        cache.close(cache.open([3]))
    assert within(cache)
    cache.check()


def test_text_that_leaves_leaves_in_slices() -> None:
    cache = RolloutCache(CacheConfig(shared_window=0))
    keeper, aborted = cache.open([1]), cache.open([1])
    text = noise(0, 60_000)
    cache.extend(aborted, text)
    tree = cache._live[keeper].tree
    cache.close(aborted, keep=False)
    assert cache._forest.stats(tree)["pending"]
    assert cache._forest.count(tree, text[-8:]) > 0
    calls = 0
    while cache._forest.stats(tree)["pending"]:
        cache.extend(keeper, [7])
        calls += 1
    assert calls > 5
    assert cache._forest.count(tree, text[-8:]) == 0
    cache.check()


def test_the_same_calls_leave_the_same_drafts() -> None:
    """Slices are counted in states, not in time."""

    def drafts() -> list[list[int]]:
        cache = RolloutCache(CacheConfig(capacity_bytes=2 * MIB))
        drafter, out = TreeDrafter(cache, DraftConfig(min_survival=0.001)), []
        for seed in range(40):
            handle = drafter.open([seed % 3])
            text = noise(seed % 7, 1500)
            cache.extend(handle, text[:700])
            batch = drafter.draft(np.array([handle]), np.array([16], np.int32))
            out.append(batch.tokens[0, : batch.lengths[0]].tolist())
            cache.extend(handle, text[700:])
            drafter.close(handle, keep=seed % 4 > 0)
        return out

    first = drafts()
    assert sum(map(len, first)) > 50
    assert drafts() == first


def test_clear_keeps_handles_and_sums() -> None:
    cache = RolloutCache()
    drafter = TreeDrafter(cache)
    for _ in range(4):
        cache.add([1, 2, 3], [4, 5, 6])
    old = [drafter.open([1, 2, 3]) for _ in range(3)]
    drafter.draft(old, [3] * 3)
    drafter.advance(old, [4, 5, 4, 5, 4, 5], [0, 2, 4, 6])
    for handle in old:
        drafter.close(handle)
    late, before = TreeDrafter(cache), cache.stats()
    cache.clear()
    assert cache.bytes < 2000
    assert not set(old) & {cache.open([1, 2, 3]) for _ in range(20)}
    assert all(value == 0 for value in late.snapshot().drafted_by_source.values())
    assert sum(drafter.snapshot().drafted_by_source.values()) == drafter.stats.drafted > 0
    assert cache.stats().opened == before.opened + 20


def test_an_empty_first_prompt_under_a_key() -> None:
    cache = RolloutCache(CacheConfig(shared_window=0))
    cache.open([], key="k")
    second = cache.open([7, 8, 9], key="k")
    tree = cache._live[second].tree
    assert [cache._forest.count(tree, np.array([token], np.int32)) for token in (7, 8, 9)] == [16] * 3


@pytest.mark.parametrize("what", ["set_threads", "delete", "draft"])
def test_a_forked_child_does_not_hang(what: str) -> None:
    forest = Forest()
    forest.set_threads(2)
    tree = forest.add_tree(np.array([1], np.int32))
    handles = np.array([forest.open(tree) for _ in range(64)])
    for handle in handles.tolist():
        forest.append(handle, np.array([1, 2, 3], np.int32))
    out, limits = Drafts(64, 4), np.full(64, 4, np.int32)
    forest.draft_batch(handles, limits, 0.0, 1, False, out)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        if what == "set_threads":
            forest.set_threads(1)
        elif what == "draft":
            forest.draft_batch(handles, limits, 0.0, 1, False, out)
        else:
            del forest
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_whole_numbers_are_taken_as_they_come() -> None:
    drafter = TreeDrafter()
    handle = drafter.open([1, 2, 3])
    for handles, limits in (
        ([handle], [4]),
        (np.array([handle], np.int32), np.array([4], np.uint8)),
        ((handle,), (4,)),
    ):
        assert len(drafter.draft(handles, limits).lengths) == 1  # type: ignore[arg-type]
        drafter.advance(handles, [5], [0, 1])  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="handles"):
        drafter.draft([1.5], [4])  # type: ignore[list-item]
    with pytest.raises(InvalidInputError, match="tokens = 4294967296"):
        drafter.advance([handle], [2**32], [0, 1])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["capacity_bytes", "window", "shared_window", "depth", "threads"])
def test_counts_are_whole_numbers(name: str) -> None:
    for value in (1.5, "4GB", True, float("nan"), None):
        with pytest.raises(InvalidInputError, match=rf"cache\.{name} = .* a whole number"):
            CacheConfig(**{name: value})  # type: ignore[arg-type]


def test_the_most_frequent_child_of_a_hub_is_in_the_raw_rule() -> None:
    """SRT's rule takes the likeliest child, also where it is not among the first."""
    forest = Forest(window=10_000)
    tree = forest.add_tree(np.array([1], np.int32))
    for token in [*range(100, 140), *[200] * 60]:
        session = forest.open(tree)
        forest.append(session, np.array([token], np.int32))
        forest.close(session)
    out = Drafts(1, 4)
    forest.draft_batch(np.array([forest.open(tree)]), np.array([4], np.int32), 0.0, 1, False, out, True)
    assert out.tokens[0, 0] == 200
    assert out.survival[0, 0] == pytest.approx(0.6)


def test_pauses_are_measured_for_every_call() -> None:
    (case,) = measure_pauses([200], live=8, samples=4, steps=60, cache=CacheConfig(window=4))
    assert set(case["milliseconds"]) == set(CALLS)  # type: ignore[call-overload]
    assert case["bytes"] > 0  # type: ignore[operator]
