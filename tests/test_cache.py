from __future__ import annotations

import threading

import numpy as np
import pytest

import rolltree.prompts as prompts_module
from rolltree import CacheConfig, RolloutCache
from rolltree._native import Forest
from rolltree.errors import InvalidInputError, SessionClosedError

PROMPT = [1, 2, 3, 4]


def tree_of(cache: RolloutCache, session: int) -> int:
    return cache._live[session].tree


def count(cache: RolloutCache, session: int, text: list[int]) -> float:
    return cache._forest.count(tree_of(cache, session), np.array(text, np.int32)) / 64


def bytes_of_trees(cache: RolloutCache) -> int:
    return sum(cache._forest.stats(entry.tree)["bytes"] for entry in cache._prompts)


def test_sessions_of_one_prompt_share_a_tree() -> None:
    cache = RolloutCache()
    a, b = cache.open(PROMPT), cache.open(np.array(PROMPT))
    cache.extend(a, [7, 8])
    assert count(cache, b, [4, 7, 8]) == 1
    cache.extend(b, [7, 8])
    assert count(cache, b, [7, 8]) == 2
    assert cache.stats().prompts == 1
    cache.open([1, 2, 3])
    assert cache.stats().prompts == 2


def test_closing_keeps_or_forgets() -> None:
    cache = RolloutCache()
    for keep in (True, False):
        session = cache.open(PROMPT)
        cache.extend(session, [9, 9])
        cache.close(session, keep=keep)
    probe = cache.open(PROMPT)
    assert count(cache, probe, [9, 9]) == 1
    assert cache.stats().rollouts == 1


def test_readers_never_write() -> None:
    cache = RolloutCache()
    reader = cache.open(PROMPT, read_only=True)
    cache.extend(reader, [5, 6])
    assert count(cache, reader, [5]) == 0
    cache.close(reader)
    assert cache.stats().rollouts == 0


def test_a_user_key_joins_turns_and_prompts() -> None:
    cache = RolloutCache()
    first = cache.open(PROMPT, key="chat")
    cache.extend(first, [5, 6])
    cache.extend(first, [40, 41], context=True)
    cache.close(first)
    second = cache.open([*PROMPT, 5, 6, 40, 41], key="chat")
    assert cache.stats().prompts == 1
    assert "chat" in cache
    assert count(cache, second, [5, 6]) == 1.25  # a generated and a quoted occurrence
    other = cache.open([77, 78], key="chat")
    assert count(cache, other, [77]) == 0.25
    assert count(cache, other, [4, 77]) == 0  # not glued to the first prompt
    cache.check()


def test_a_hash_collision_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "prompt_key", lambda prompt, key=None: "same")
    cache = RolloutCache()
    a, b, c = cache.open([1]), cache.open([2]), cache.open([1])
    assert tree_of(cache, a) == tree_of(cache, c) != tree_of(cache, b)


def test_empty_prompts_are_a_prompt() -> None:
    cache = RolloutCache()
    a, b = cache.open([]), cache.open([])
    assert tree_of(cache, a) == tree_of(cache, b)


def test_eviction_is_lru_and_spares_live_prompts() -> None:
    cache = RolloutCache(CacheConfig(capacity_bytes=150_000, shared_window=0))
    live = cache.open([0])
    cache.extend(live, list(range(1000)))
    for prompt in range(1, 40):
        cache.add([prompt], np.arange(100) + prompt)
        if prompt == 30:
            cache.close(cache.open([29]))  # touched: younger than 30
    stats = cache.stats()
    assert stats.bytes <= 150_000
    assert stats.evicted_prompts > 0
    assert count(cache, live, [500, 501]) == 1
    kept = [e.key for e in cache._prompts]
    assert kept[-1] == prompts_module.prompt_key([39])
    cache.check()


def test_one_prompt_larger_than_the_cap_is_dropped_only_when_idle() -> None:
    cache = RolloutCache(CacheConfig(capacity_bytes=1000, shared_window=0))
    session = cache.open(PROMPT)
    cache.extend(session, list(range(5000)))
    assert cache.stats().prompts == 1
    cache.close(session)
    assert cache.stats().prompts == 0
    assert cache.bytes == 0


def test_accounting_equals_the_sum_of_the_trees() -> None:
    cache = RolloutCache(CacheConfig(window=2, shared_window=0))
    for version in range(6):
        cache.set_version(version)
        for prompt in range(4):
            cache.add([prompt], [version] * 50)
    assert cache.bytes == cache.stats().bytes == bytes_of_trees(cache)
    assert cache.stats().rollouts == 8


def test_versions_only_grow_and_age_the_text() -> None:
    cache = RolloutCache(CacheConfig(decay=0.5))
    cache.add(PROMPT, [5])
    cache.set_version(3)
    cache.add(PROMPT, [6])
    probe = cache.open(PROMPT)
    assert count(cache, probe, [6]) == 8 * count(cache, probe, [5])
    with pytest.raises(InvalidInputError, match="version = 2: must be 3 or more"):
        cache.set_version(2)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, -1], r"tokens\[1\] = -1"),
        ([2**31], r"tokens\[0\] = 2147483648"),
        ([1.5], "dtype = 'float64'"),
        ([[1], [2]], "ndim = 2"),
        (["a"], "dtype"),
        (np.array([True]), "dtype = 'bool'"),
    ],
)
def test_bad_tokens_change_nothing(tokens: object, message: str) -> None:
    cache = RolloutCache()
    session = cache.open(PROMPT)
    before = cache.stats()
    with pytest.raises(InvalidInputError, match=message):
        cache.extend(session, tokens)  # type: ignore[arg-type]
    assert cache.stats() == before
    cache.check()


def test_closed_and_unknown_sessions() -> None:
    cache = RolloutCache()
    session = cache.open(PROMPT)
    cache.close(session)
    for call in (lambda: cache.extend(session, [1]), lambda: cache.close(session), lambda: cache.close(-5)):
        with pytest.raises(SessionClosedError, match="closed or never existed"):
            call()


def test_the_native_core_refuses_other_dtypes_and_shapes() -> None:
    forest = Forest()
    tree = forest.add_tree(np.zeros(0, np.int32))
    session = forest.open(tree)
    for bad in (np.array([1], np.int64), np.array([1.0]), np.array([[1]], np.int32), np.arange(6, dtype=np.int32)[::2]):
        with pytest.raises(TypeError):
            forest.append(session, bad)
    with pytest.raises(InvalidInputError, match=r"tokens\[0\] = '-3'"):
        forest.append(session, np.array([-3], np.int32))
    with pytest.raises(InvalidInputError, match="offsets"):
        forest.append_batch(np.array([session]), np.array([1], np.int32), np.array([0, 2], np.int32))
    with pytest.raises(SessionClosedError):
        forest.append_batch(np.array([session, 99]), np.array([1], np.int32), np.array([0, 1, 1], np.int32))
    assert forest.stats(tree)["tokens"] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("depth", 1), ("window", -1), ("decay", 0), ("decay", 1.5), ("capacity_bytes", 0), ("context_weight", 2)],
)
def test_settings_are_checked(name: str, value: float) -> None:
    with pytest.raises(InvalidInputError, match=rf"cache\.{name} = "):
        CacheConfig(**{name: value})  # type: ignore[arg-type]


def test_clear_needs_closed_sessions() -> None:
    cache = RolloutCache()
    session = cache.open(PROMPT)
    with pytest.raises(InvalidInputError, match="sessions = 1"):
        cache.clear()
    cache.close(session)
    cache.clear()
    assert cache.stats().prompts == 0


def test_threads_share_a_cache() -> None:
    cache = RolloutCache(CacheConfig(capacity_bytes=300_000, window=3, shared_window=8))
    errors: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            random = np.random.default_rng(worker)
            for _ in range(300):
                session = cache.open([int(random.integers(5))])
                for _ in range(5):
                    cache.extend(session, random.integers(0, 50, 20))
                cache.close(session, keep=bool(random.integers(2)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    cache.check()
    assert cache.stats().sessions == 0
    assert bytes_of_trees(cache) + cache._forest.shared_stats()["bytes"] == cache.stats().bytes == cache.bytes
    assert cache._forest.shared_stats()["kept"] <= 8
