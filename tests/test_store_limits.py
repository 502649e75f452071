"""What a store forgets by itself, whose ids it holds, where it lies; and trees that come back in the background."""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from rolltree import CacheConfig, RolloutCache, RolloutStore
from rolltree.errors import InvalidInputError, StoreError
from rolltree.serving.keeping import Keeping
from rolltree.serving.options import EngineOptions
from rolltree.store import info, schema, verify, writer
from rolltree.store.location import network_of

PROMPT = [1, 2, 3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rollouts.db"


def numbers(store: RolloutStore, prompt: list[int]) -> list[int]:
    return [int(rollout.token_ids[0]) for rollout in store.rollouts(prompt)]


def test_a_window_is_kept_by_the_thread_that_writes(path: Path) -> None:
    """The latest rollouts of each prompt; other prompts are left alone."""
    with RolloutStore(path) as store:
        for i in range(9):
            store.add([7], [i, 5])
    with RolloutStore(path, window=3) as store:
        for i in range(10):
            store.add(PROMPT, [i, 5])
            store.flush()
        store.flush()
        assert numbers(store, [7]) == list(range(9))
    with RolloutStore(path) as store:  # closing it ended the thread
        assert numbers(store, PROMPT) == [7, 8, 9]
        assert numbers(store, [7]) == list(range(9))
    assert verify(path) == []


def test_what_waits_in_memory_is_bounded_by_bytes(path: Path, monkeypatch, caplog) -> None:
    """Another process holds the file: of 40 rollouts of 20 kB the latest wait, and the log does not say each loss."""
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(writer, "MOST_BYTES", most := 200_000)
    monkeypatch.setattr(writer, "BATCH_BYTES", 50_000)
    with RolloutStore(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for i in range(40):
            store.add(PROMPT, np.full(5000, i))
            assert store._writer._pending.bytes <= most + 50_000
        assert store.waiting >= 9  # as many as fit, the latest
        assert store.waiting + store.dropped == 40
        other.execute("ROLLBACK")
        with pytest.raises(StoreError, match=f"{store.dropped} rollouts were dropped"):
            store.flush()
        assert numbers(store, PROMPT)[-9:] == list(range(31, 40))
        assert len(numbers(store, PROMPT)) + store.dropped == 40
    assert 1 <= caplog.text.count("rollouts lost to") <= 6


def test_one_that_is_larger_than_a_batch_is_written_alone(path: Path, monkeypatch) -> None:
    """And so is each of several: what is written is in memory twice meanwhile."""
    monkeypatch.setattr(writer, "BATCH_BYTES", 1000)
    with RolloutStore(path) as store:
        for i in range(5):
            store.add(PROMPT, np.full(5000, i))
        store.flush()
        assert numbers(store, PROMPT) == list(range(5))
        assert store.commits == 5


def test_a_file_stays_within_its_bytes_and_the_oldest_leave(path: Path) -> None:
    """Random text, which does not compress: ten times the limit is written."""
    rng, most = np.random.default_rng(0), 2**20
    with RolloutStore(path, most_bytes=most) as store:
        for i in range(1200):
            store.add([i % 7, 1], np.concatenate([[i], rng.integers(0, 60_000, 4000)]))
            if i % 100 == 99:
                store.flush()
        store.flush()
    assert store.forgotten > 900
    with RolloutStore(path) as again:
        kept = [int(rollout.token_ids[0]) for rollout in again]
        assert kept == list(range(kept[0], 1200))
        assert len(kept) == 1200 - store.forgotten
    assert info(path).token_bytes < most
    assert path.stat().st_size < 2 * most + 8100 * 100  # the limit, and what was written between two looks
    assert verify(path) == []


def test_limits_travel_with_a_store_and_bad_ones_are_refused(path: Path) -> None:
    import pickle

    with RolloutStore(path, window=3, most_bytes=2**21) as store, pickle.loads(pickle.dumps(store)) as other:
        assert other.keep == store.keep
    with pytest.raises(InvalidInputError, match=r"store\.window = -1"):
        RolloutStore(path, window=-1)


def test_a_store_remembers_whose_ids_it_holds(path: Path) -> None:
    with RolloutStore(path) as store:
        store.add(PROMPT, [5, 99, 6])
        store.add(PROMPT, [5, 6, 7])
        assert store.identify(vocab=100, model="a") == store.identify(vocab=100, model="a") == ""
    with RolloutStore(path) as store:
        assert "written for the model a, and this is b" in store.identify(vocab=120, model="b")
        with pytest.raises(InvalidInputError, match=r"holds ids of 120 words \(b\)"):
            store.identify(vocab=100, model="a")


def test_rollouts_of_an_old_file_whose_ids_do_not_fit_are_left_out(path: Path, caplog) -> None:
    with RolloutStore(path) as store:
        store.add(PROMPT, [5, 99, 6])
        store.add(PROMPT, [5, 6, 7])
        assert store.identify(vocab=50, model="a") == ""  # nothing was known of the file
        cache = RolloutCache(store=store)
        cache.open(PROMPT)
        assert (cache.stats().rollouts, cache.store_stats().unfit) == (1, 1)
    assert "beyond the model's 50 words" in caplog.text


MOUNTS = """22 1 8:1 / / rw,relatime - ext4 /dev/root rw
31 30 0:45 / {0}/local rw - tmpfs tmpfs rw
30 22 0:44 / {0} rw,relatime shared:3 - nfs4 server:/export rw
"""


def test_a_network_file_system_is_said_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    table = tmp_path / "mountinfo"
    (tmp_path / "local").mkdir()
    table.write_text(MOUNTS.format(tmp_path))
    monkeypatch.setattr("rolltree.store.location._MOUNTS", table)
    assert [network_of(tmp_path / name) for name in ("a.db", "local/a.db")] == ["nfs4", ""]
    RolloutStore(tmp_path / "local" / "a.db").close()
    assert "network" not in caplog.text
    RolloutStore(tmp_path / "a.db").close()
    assert "lies on a network file system (nfs4)" in caplog.text
    table.unlink()
    assert network_of(tmp_path / "a.db") == ""


@pytest.mark.parametrize("looks", range(4))
def test_a_file_that_another_process_makes_meanwhile_is_ours(looks: int, path: Path) -> None:
    """Made, in one transaction, after so many of the looks at it: then it is empty, or a store, and nothing else."""
    RolloutStore(path).close()
    made, empty = sqlite3.connect(path), sqlite3.connect(":memory:")
    seen = iter([empty] * looks)

    class Database:
        def execute(self, query: str) -> sqlite3.Cursor:
            return next(seen, made).execute(query)

    assert schema._is_ours(Database(), path) == (looks < 2)
    made.close()


def background(store: RolloutStore, **config: int) -> RolloutCache:
    return RolloutCache(CacheConfig(**config), store=store, rebuild="background")


def test_what_a_tree_took_in_meanwhile_is_there_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store is read, sessions of the prompt end here, and another engine tells of what the file has, too."""
    with RolloutStore(path) as store:
        cache, gate = background(store, shared_window=0), threading.Event()
        for i in range(3):
            store.add(PROMPT, [i, i, i])
        told = store.rollouts(PROMPT)[-1]
        rebuilds = cache._prompts.rebuilds
        read = rebuilds._read
        monkeypatch.setattr(rebuilds, "_read", lambda *names: (gate.wait(60), read(*names))[1])
        first = cache.open(PROMPT)
        cache.extend(first, [9, 8, 7])
        cache.restore(told, alone=False)
        cache.close(first)
        running = cache.open(PROMPT)
        cache.extend(running, [0, 0])
        assert cache.stats().rollouts == 2
        gate.set()
        cache.wait()
        cache.check()
        assert (cache.rollouts(PROMPT), cache.stats().waiting_prompts, cache.stats().rebuilt_prompts) == (4, 0, 1)
        assert cache.matches(np.array([running], np.int64)).tolist() == [5]  # prompt and two tokens
        cache.extend(running, [0])
        cache.close(running)
        assert cache.rollouts(PROMPT) == 5
        assert len(store) == 5


def test_expected_prompts_have_their_trees_when_they_are_opened(path: Path) -> None:
    """Those that the store knows, as of the version that is current; nothing is made of the others."""
    with RolloutStore(path) as store:
        store.add(PROMPT, [5, 6, 7], version=9)
        store.add([4], [5, 6, 7], key="chat")
        cache = background(store)
        cache.set_version(3)
        cache.expect(PROMPT)
        cache.expect([4], key="chat")
        cache.expect([8])
        cache.wait()
        assert (cache.prompts, cache.rollouts(PROMPT), cache.rollouts([4, 1], key="chat")) == (2, 1, 1)
        cache.expect(PROMPT)
        cache.open([4, 1], key="chat")
        assert (cache.stats().waiting_prompts, cache.stats().hits) == (0, 1)
        cache.check()


def test_a_tree_that_left_meanwhile_gets_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evicted, or all were cleared, while its history was read."""
    with RolloutStore(path) as store:
        store.add(PROMPT, [5, 6, 7])
        cache, gate = background(store), threading.Event()
        rebuilds = cache._prompts.rebuilds
        read = rebuilds._read
        monkeypatch.setattr(rebuilds, "_read", lambda *names: (gate.wait(60), read(*names))[1])
        cache.close(cache.open(PROMPT))
        cache.clear()
        gate.set()
        cache.wait()
        assert (cache.prompts, cache.stats().rebuilt_prompts) == (0, 0)


def test_a_history_that_fails_costs_its_prompt_alone(path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    with RolloutStore(path) as store:
        for prompt in ([1], [2]):
            store.add(prompt, [5, 6, 7])
        cache = background(store)
        read = cache._prompts.rebuilds._read

        def failing(prompt, key):
            if prompt[0] == 1:
                raise MemoryError("planted")
            return read(prompt, key)

        monkeypatch.setattr(cache._prompts.rebuilds, "_read", failing)
        for prompt in ([1], [2]):
            cache.open(prompt)
        cache.wait()
        assert [cache.rollouts(prompt) for prompt in ([1], [2])] == [0, 1]
    assert "left without its history" in caplog.text


def test_background_and_blocking_make_the_same_tree(path: Path) -> None:
    """Once it is there: the same counts, weights and versions, whatever the sessions that run."""
    rng = np.random.default_rng(1)
    with RolloutStore(path) as store:
        for version in range(4):
            for _ in range(5):
                store.add(PROMPT, rng.integers(0, 5, 60), version=version, context=[(3, 9)])
        text = rng.integers(0, 5, 40).astype(np.int32)
        made = []
        for when in ("blocking", "background"):
            cache = RolloutCache(CacheConfig(shared_window=0), store=store, rebuild=when)
            cache.set_version(3)
            session = cache.open(PROMPT)
            cache.extend(session, text)
            cache.wait()
            tree = cache._prompts.known(np.array(PROMPT, np.int32), None).tree
            cache._forest.finish()
            counts = [cache._forest.count(tree, text[i : i + 3]) for i in range(37)]
            made.append((counts, cache._forest.stats(tree)["tokens"], cache.longest_continuation(session, text[20:])))
            cache.close(session, keep=False)
        assert made[0] == made[1]
        assert sum(made[0][0]) > 37


@pytest.mark.parametrize(("leads", "count"), [(True, 1), (False, 0)])
def test_of_ranks_that_schedule_alone_the_first_one_keeps_and_none_reads(leads: bool, count: int, path: Path) -> None:
    """What a rank finds in the file depends on time, and their trees must be the same."""
    with RolloutStore(path) as store:
        store.add(PROMPT, [5, 6, 7])
    keeping = Keeping(EngineOptions(store=str(path)), vocab=50, model="m", log=logging.getLogger("test"))
    keeping.start(alone=True, leads=leads)
    cache = keeping.cache()
    cache.expect(PROMPT)
    cache.close(cache.open(PROMPT))
    cache.add(PROMPT, [8, 9])
    cache.wait()
    assert (cache.stats().rollouts, cache.stats().rebuilt_prompts) == (1, 0)
    keeping.close()
    with RolloutStore(path) as store:
        assert len(store) == 1 + count
