"""Cache and store together: what is committed, what comes back, and that drafts are the same afterwards."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rolltree import CacheConfig, RolloutCache, RolloutStore, TreeDrafter
from rolltree.errors import InvalidInputError
from rolltree.traces.rollout import StoredRollout

PROMPT = [1, 2, 3, 4]


@pytest.fixture
def store(tmp_path: Path):
    with RolloutStore(tmp_path / "rollouts.db") as made:
        yield made


def drafts(cache: RolloutCache, prompt: list[int], text: list[int], key: str | None = None) -> list[tuple[int, float]]:
    drafter = TreeDrafter(cache)
    session = cache.open(prompt, key=key, read_only=True)
    cache.extend(session, text)
    batch = drafter.draft(np.array([session]), np.array([16], np.int32))
    cache.close(session)
    n = batch.lengths[0]
    return list(zip(batch.tokens[0, :n].tolist(), batch.survival[0, :n].tolist(), strict=True))


def advance(drafter: TreeDrafter, sessions: list[int], tokens: list[list[int]]) -> None:
    handles = np.array(sessions, np.int64)
    drafter.draft(handles, np.full(len(handles), 4, np.int32))
    offsets = np.cumsum([0, *map(len, tokens)]).astype(np.int32)
    drafter.advance(handles, np.concatenate(tokens).astype(np.int32), offsets)


def test_closing_a_kept_session_commits_its_rollout(store: RolloutStore) -> None:
    cache = RolloutCache(store=store)
    cache.set_version(3)
    drafter = TreeDrafter(cache)
    a, b, c = (drafter.open(PROMPT, key=key) for key in ("chat", None, None))
    advance(drafter, [a, b, c], [[5, 6], [7], [9, 9]])
    cache.extend(a, [40, 41], context=True)
    advance(drafter, [a, c, b], [[8], [9], [10, 11, 12]])
    cache.annotate(b, sample=2, logprobs=[-1, -2, -3, -4])
    drafter.close(a)
    drafter.close(b)
    drafter.close(c, keep=False)
    chat, plain = store
    assert (chat.token_ids.tolist(), chat.context, chat.key) == ([5, 6, 40, 41, 8], ((2, 4),), "chat")
    assert (plain.token_ids.tolist(), plain.sample, plain.version, plain.key) == ([7, 10, 11, 12], 2, 3, None)
    np.testing.assert_array_equal(plain.logprobs, [-1, -2, -3, -4])


def test_readers_and_empty_rollouts_are_not_committed(store: RolloutStore) -> None:
    cache = RolloutCache(store=store)
    reader = cache.open(PROMPT, read_only=True)
    cache.extend(reader, [1, 2])
    cache.close(reader)
    cache.close(cache.open(PROMPT))
    cache.add(PROMPT, [5])
    assert [r.token_ids.tolist() for r in store] == [[5]]


def fill(cache: RolloutCache) -> None:
    rng = np.random.default_rng(0)
    words = [rng.integers(0, 90, 6) for _ in range(30)]
    for version in range(4):
        cache.set_version(version)
        for prompt in range(3):
            for _ in range(3):
                cache.add([prompt, *PROMPT], np.concatenate([words[i] for i in rng.integers(0, 30, 12)]))
        session = cache.open([50, version], key="chat")
        cache.extend(session, words[version])
        cache.extend(session, words[version + 1], context=True)
        cache.extend(session, words[version + 2])
        cache.close(session)


@pytest.mark.parametrize("on_demand", [False, True])
def test_a_new_process_drafts_as_the_old_one_did(store: RolloutStore, on_demand: bool) -> None:
    config = CacheConfig(shared_window=0)
    first = RolloutCache(config, store=store)
    fill(first)
    second = RolloutCache(config, store=store if on_demand else None)
    if on_demand:
        second.set_version(3)
    else:
        assert store.load_into(second, window=64) == 40
        assert second.version == 3
    found = 0
    for rollout in list(store)[-13:]:
        prompt, text = rollout.prompt_token_ids.tolist(), rollout.token_ids[:7].tolist()
        before = drafts(first, prompt, text, rollout.key)
        assert drafts(second, prompt, text, rollout.key) == before
        found += len(before)
    assert found > 20
    assert second.stats().rollouts == first.stats().rollouts
    assert second.stats().rebuilt_prompts == 4 * on_demand
    second.check()
    assert len(store) == 40  # nothing was committed twice


def test_an_evicted_prompt_comes_back_when_it_is_opened(store: RolloutStore) -> None:
    cache = RolloutCache(CacheConfig(capacity_bytes=1, shared_window=0), store=store)
    for prompt in range(5):
        cache.add([prompt], list(range(100)))
    assert cache.stats().evicted_prompts == 5
    assert [token for token, _ in drafts(cache, [2], list(range(10)))][:3] == [10, 11, 12]
    assert cache.stats().rebuilt_prompts == 1
    without = RolloutCache(CacheConfig(capacity_bytes=1, shared_window=0))
    without.add([2], list(range(100)))
    assert drafts(without, [2], list(range(10))) == []


def test_versions_beyond_the_present_one_count_as_of_it(store: RolloutStore) -> None:
    for version in (2, 9):
        store.add(PROMPT, [version, 5, 6], version=version)
    cache = RolloutCache()
    store.load_into(cache, version=4)
    assert cache.version == 4
    cache.set_version(5)  # the training that goes on from its checkpoint at 4
    with pytest.raises(InvalidInputError, match="only grow"):
        store.load_into(cache, version=4)


def test_loading_can_be_bounded(store: RolloutStore) -> None:
    for i in range(10):
        store.add([i % 2], [i] * 5)
    for limits, kept in (({"window": 1}, [8, 9]), ({"max_tokens": 17}, [7, 8, 9]), ({"window": 2}, [6, 7, 8, 9])):
        cache = RolloutCache(CacheConfig(window=100))
        assert store.load_into(cache, **limits) == len(kept)
        assert cache.stats().tokens == 5 * len(kept) + 2


def test_a_store_that_breaks_does_not_stop_generation(store: RolloutStore, caplog) -> None:
    store.add(PROMPT, [7] * 100)
    store.flush()
    cache = RolloutCache(store=store)
    store._reader._database.execute("UPDATE rollout SET tokens = x'0700'")
    session = cache.open(PROMPT)
    cache.extend(session, [1, 2])
    cache.close(session)
    assert "Going on without" in caplog.text
    assert len(store) == 2


def test_a_closed_store_is_an_error_that_leaves_the_cache_sound(store: RolloutStore) -> None:
    cache = RolloutCache(store=store)
    session = cache.open(PROMPT)
    cache.extend(session, [1, 2])
    store.close()
    with pytest.raises(InvalidInputError, match="closed"):
        cache.close(session)
    assert cache.stats().sessions == 0
    cache.check()


def test_listeners_hear_of_kept_rollouts_and_of_nothing_else(store: RolloutStore) -> None:
    for cache in (RolloutCache(), RolloutCache(store=store)):
        heard: list[list[int]] = []

        def fail(rollout: object) -> None:
            raise OSError("gone")

        cache.listen(fail)  # reaches neither who generates nor the other listener
        cache.listen(lambda rollout, heard=heard: heard.append(rollout.token_ids.tolist()))
        cache.add(PROMPT, [5, 6], key="k", version=0)
        for options, keep in (({"read_only": True}, True), ({"run_ahead": True}, True), ({}, False)):
            session = cache.open(PROMPT, **options)
            cache.extend(session, [7])
            cache.close(session, keep=keep)
        for rollout in store.rollouts(key="k") or cache_rollouts():
            cache.restore(rollout)  # told by another
        assert heard == [[5, 6]]
    assert len(store) == 1


def cache_rollouts() -> list[StoredRollout]:
    return [StoredRollout.of(PROMPT, [8, 9])]


def test_an_alike_rollout_that_ends_while_a_history_is_read_takes_none_away(
    store: RolloutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told apart from what is read by its content, so the store is looked at again."""
    for _ in range(2):
        store.add(PROMPT, [5, 6])
    store.flush()
    recall, reading, ended = store.recall, threading.Event(), threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        found = recall(*args, **options)
        reading.set()
        assert ended.wait(60)
        return found

    monkeypatch.setattr(store, "recall", slow)
    cache = RolloutCache(store=store, rebuild="background")
    session = cache.open(PROMPT)
    cache.extend(session, [5, 6])
    assert reading.wait(60)
    cache.close(session)
    ended.set()
    cache.wait()
    assert cache.rollouts(PROMPT) == 3
