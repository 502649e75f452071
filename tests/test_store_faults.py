"""What fails while a store writes or reads: who is told, what is kept, in which order, and who does not wait."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from rolltree import RolloutCache, RolloutStore
from rolltree.errors import InvalidInputError, StoreError
from rolltree.store import StoredRollout, compact, schema, writer
from rolltree.store.journal import Journal
from rolltree.store.pending import Pending

PROMPT = [3, 1, 2]
NO_OTHER_USER = 77


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rollouts.db"


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.05)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The file's write lock, held by another connection."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def without(path: Path, condition: str) -> Iterator[None]:
    """A file that refuses rows, as a broken constraint does."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as other:
        other.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT ON rollout WHEN {condition}"
            " BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
        yield
        other.execute("DROP TRIGGER refuse")


def texts(rollouts) -> list[list[int]]:
    return [rollout.token_ids.tolist() for rollout in rollouts]


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_the_order_of_puts_survives_failed_writes(path: Path, quick, failures: int) -> None:
    with RolloutStore(path) as store:
        with locked(path):
            for i in range(40):
                store.add(PROMPT, [i])
            for _ in range(failures):  # each puts all of them back
                with pytest.raises(StoreError, match="locked"):
                    store.flush()
                assert texts(store.rollouts(PROMPT)) == [[i] for i in range(40)]
            for i in range(40, 60):
                store.add(PROMPT, [i])
            assert texts(store.rollouts(PROMPT)) == [[i] for i in range(60)]  # from memory
        store.flush()
        assert texts(store) == [[i] for i in range(60)]
        ids = [one.id for one in store]
        assert ids == sorted(set(ids))
        assert store.dropped == 0


def test_one_row_at_fault_costs_no_other(path: Path, caplog) -> None:
    with RolloutStore(path) as store:
        with without(path, "NEW.version IN (13, 31)"):
            for version in range(50):
                store.add(PROMPT, [version], version=version, key="theirs" if version == 13 else None, sample=4)
            with pytest.raises(StoreError, match=r"2 rollouts were dropped and are lost: .*not this one"):
                store.flush()
        store.flush()  # said once
        assert store.dropped == 2
        assert [one.version for one in store] == [v for v in range(50) if v not in (13, 31)]
        assert "key 'theirs', version 13, sample 4, 1 tokens" in caplog.text
        assert "version 31" in caplog.text
        store.add(PROMPT, [13], version=13)
        store.flush()
        assert len(store) == 49


def test_a_row_at_fault_is_said_even_when_the_others_wait(path: Path, quick, caplog) -> None:
    store = RolloutStore(path)
    with without(path, "NEW.version = 1"):
        store.add(PROMPT, [1], version=1)
        list(store)  # waits for the attempt, and does not use up what `flush` must say
    assert store.dropped == 1
    with locked(path):
        store.add(PROMPT, [2], version=2)
        with pytest.raises(StoreError, match=r"1 rollouts were dropped.*1 more wait in memory"):
            store.flush()
    store.close()
    with RolloutStore(path) as again:
        assert texts(again) == [[2]]


def test_what_is_left_when_a_store_closes_on_a_locked_file_is_counted_and_said(path: Path, quick, caplog) -> None:
    store = RolloutStore(path)
    with locked(path):
        for i in range(5):
            store.add(PROMPT, [i])
        store.close()  # raises nothing
    assert store.dropped == 5
    assert "5 rollouts lost" in caplog.text


def test_a_full_disk_keeps_what_waits(path: Path, caplog) -> None:
    rng = np.random.default_rng(0)
    added = [rng.integers(0, 2**31 - 1, 3000).tolist() for _ in range(10)]
    with RolloutStore(path) as store:
        pages = store._writer._database.execute("PRAGMA page_count")[0][0]
        store._writer._database.execute(f"PRAGMA max_page_count = {pages + 2}")
        for tokens in added:
            store.add(PROMPT, tokens)
        with pytest.raises(StoreError, match=r"full.*Free some space"):
            store.flush()
        assert texts(store.rollouts(PROMPT)) == added
        assert len(store) == 10
        store._writer._database.execute("PRAGMA max_page_count = 1000000")
        store.flush()
        assert texts(store) == added
    assert caplog.text.count("Rollouts wait in memory") == 1


def test_a_read_tells_what_failed_from_what_another_wrote_meanwhile(path: Path) -> None:
    """The rows of a transaction that failed had ids, which another process may use after that."""
    big = np.arange(200_000)
    with RolloutStore(path) as store, RolloutStore(path) as other:
        store.add(PROMPT, [0])
        store.flush()
        store._writer._database.execute("PRAGMA max_page_count = 20")
        added = [[1], [2], big.tolist()]
        for tokens in added:
            store.add(PROMPT, tokens)
        with pytest.raises(StoreError, match="full"):
            store.flush()
        for tokens in ([7], [8], [9]):
            other.add(PROMPT, tokens)
        other.flush()
        assert texts(store.rollouts(PROMPT)) == [[0], [7], [8], [9], *added]
        assert len(store) == 7
        assert texts(store.recall(PROMPT, last=4)) == [[9], *added]


HOLD = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the write lock until its input ends."""
    RolloutStore(path).close()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.communicate("")


def test_no_read_waits_for_a_lock_that_another_process_holds(path: Path, holder, monkeypatch) -> None:
    """With the lock held for good and no end to the writer's patience, every read must come back."""
    monkeypatch.setattr(schema, "BUSY_SECONDS", 1e6)
    store, came_back = RolloutStore(path), threading.Event()

    def read() -> None:
        cache = RolloutCache(store=store)
        for prompt in range(4):
            for _ in range(2):
                session = cache.open([prompt, 1])
                cache.extend(session, [5, 6])
                cache.close(session)
            assert texts(store.rollouts([prompt, 1])) == [[5, 6]] * 2
            assert cache.rollouts([prompt, 1]) == 2
        again = RolloutCache(store=store)
        again.open([0, 1])
        assert again.rollouts([0, 1]) == 2  # from what waits in memory
        assert len(store) == 8
        assert store.load_into(RolloutCache(), window=1) == 4
        came_back.set()

    threading.Thread(target=read, daemon=True).start()
    assert came_back.wait(timeout=600), "a read waits for the lock"
    assert holder.poll() is None  # the lock was held all the time
    assert store._writer.commits == 0
    holder.communicate("")
    store.flush()
    assert len(list(store)) == 8
    store.close()


@contextmanager
def unreadable(store: RolloutStore) -> Iterator[None]:
    """A file that cannot be read for a while: it is gone from its place."""
    away = store.path.with_name("away")
    store.path.rename(away)
    yield
    away.rename(store.path)


def test_a_store_that_cannot_be_read_is_gone_without_until_a_commit(path: Path, caplog) -> None:
    with RolloutStore(path) as store:
        for prompt in range(6):
            store.add([prompt], [prompt, 7])
        store.flush()
        cache = RolloutCache(store=store)
        with unreadable(store):
            for prompt in range(3):
                cache.open([prompt])
                assert cache.rollouts([prompt]) == 0
        assert caplog.text.count("Going on without what the store knows") == 1
        journal = cache._journal
        assert journal is not None
        cache.open([3])
        assert cache.rollouts([3]) == 0  # not tried again yet
        assert journal.unread == 4
        store.add([9], [9])
        store.flush()
        cache.open([4])
        assert cache.rollouts([4]) == 1
        assert journal.unread == 4


def test_a_file_that_was_moved_takes_nothing_more_and_gets_it_when_it_is_back(path: Path) -> None:
    with RolloutStore(path) as store:
        store.add(PROMPT, [1])
        store.flush()
        with unreadable(store):
            store.add(PROMPT, [2])
            with pytest.raises(StoreError, match="moved, deleted or replaced"):
                store.flush()
            with pytest.raises(StoreError, match="moved, deleted or replaced"):
                len(store)
        store.flush()
        assert texts(store) == [[1], [2]]


def test_a_damaged_rollout_costs_its_prompt_nothing_else(path: Path, caplog) -> None:
    with RolloutStore(path) as store:
        for i in range(4):
            store.add(PROMPT, [i] * 9)
        store.flush()
        store._reader._database.execute("UPDATE rollout SET version = 5 WHERE id = 2")
        cache = RolloutCache(store=store)
        cache.open(PROMPT)
        assert cache.rollouts(PROMPT) == 3
    assert "rollout 2" in caplog.text


def test_compact_on_a_locked_or_full_file_forgets_nothing(path: Path, quick) -> None:
    with RolloutStore(path) as store:
        for i in range(9):
            store.add(PROMPT, [i])
    with locked(path), pytest.raises(StoreError, match="locked"):
        compact(path, window=1)
    with RolloutStore(path) as store:
        assert len(store) == 9
    for window in (1.5, True, float("nan"), 2**70, "2", 0):
        with pytest.raises(InvalidInputError, match="window"):
            compact(path, window=window)


def test_a_thread_that_cannot_start_is_a_sentence(path: Path, monkeypatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(StoreError, match="can't start new thread"):
            RolloutStore(path)
    RolloutStore(path).close()


def test_the_bound_drops_the_oldest_and_never_what_is_being_written(path: Path, quick, monkeypatch, caplog) -> None:
    monkeypatch.setattr(writer, "MOST_WAITING", 8)
    with RolloutStore(path) as store:
        with locked(path):
            for i in range(500):
                store.add(PROMPT, [i])
            kept = texts(store.rollouts(PROMPT))
            assert kept[-8:] == [[i] for i in range(492, 500)]
            assert kept == sorted(kept)
            assert len(kept) + store.dropped == 500
        with pytest.raises(StoreError, match="dropped"):
            store.flush()
        assert texts(store) == sorted(texts(store))
        assert len(store) + store.dropped == 500
    assert 0 < caplog.text.count("ERROR") < 20  # not one line for each


def test_what_is_being_written_is_not_dropped() -> None:
    pending = Pending()
    for i in range(6):
        pending.add(StoredRollout.of([1], [i]), b"digest")
    flying = pending.first(2, 2**30)
    assert [pending.drop().number for _ in range(2)] == [3, 4]
    assert pending.at_rest == 2
    pending.remove(flying[0])
    pending.landed()  # the write of the other failed
    assert pending.at_rest == 3
    assert [one.number for one in pending.first(9, 9999)] == [2, 5, 6]
    assert [one.number for one in pending.of(b"digest", None)] == [2, 5, 6]
    assert pending.drop() is None
    pending.landed()
    assert [pending.drop().number for _ in range(3)] == [2, 5, 6]
    assert (pending.drop(), len(pending), pending.of(b"digest", None)) == (None, 0, [])
    assert (pending.bytes, pending.bytes_at_rest) == (0, 0)


def journal_of(store: RolloutStore) -> tuple[Journal, np.ndarray]:
    journal = Journal(store)
    journal.open(1, np.array(PROMPT, np.int32), None, 0)
    journal.open(2, np.array(PROMPT, np.int32), "b", 0)
    return journal, np.array([1, 2], np.int64)


def test_a_spoiled_session_is_never_committed(path: Path, caplog) -> None:
    with RolloutStore(path) as store:
        journal, both = journal_of(store)
        journal.advance(both, np.array([5, 6, 7], np.int32), np.array([0, 1, 3], np.int32))
        journal.spoil(1)
        journal.advance(both, np.array([8, 9], np.int32), np.array([0, 1, 2], np.int32))
        journal.extend(1, np.array([4], np.int32), False)
        journal.annotate(1, reward=1.0)
        journal.close(1, True)
        journal.close(2, True)
        journal.spoil(2)  # it has ended: nothing happens
        assert texts(store) == [[6, 7, 9]]
        assert journal.spoiled == 1
    assert "is not stored" in caplog.text


@pytest.mark.parametrize(
    ("tokens", "offsets"),
    [([5, 6], [0, 1]), (["a", "b"], [0, 1, 2]), ([5, 6], ["x", "y", "z"])],
    ids=["offsets that end early", "text", "no numbers"],
)
def test_an_advance_that_fails_half_way_spoils_all_it_names(path: Path, tokens, offsets) -> None:
    with RolloutStore(path) as store:
        journal, both = journal_of(store)
        journal.open(3, np.array(PROMPT, np.int32), None, 0)
        journal.advance(both, np.array(tokens), np.array(offsets))
        journal.extend(3, np.array([1], np.int32), False)
        for session in (1, 2, 3):
            journal.close(session, True)
        assert texts(store) == [[1]]
        assert journal.spoiled == 2


def test_annotations_add_up(path: Path) -> None:
    with RolloutStore(path) as store:
        cache = RolloutCache(store=store)
        session = cache.open(PROMPT)
        cache.extend(session, [5, 6])
        cache.annotate(session, sample=2, reward=1.0)
        cache.annotate(session, reward=np.float32(0.5))
        cache.annotate(session, logprobs=[-1.0, -2.0])
        cache.annotate(session, sample=3)
        for bad in ({"sample": 1.5}, {"reward": "1"}, {"logprobs": [["x"]]}, {"sample": 2**63}, {"logprobs": "ab"}):
            with pytest.raises(InvalidInputError, match=next(iter(bad))):
                cache.annotate(session, **({"sample": 9} | bad))
        cache.close(session)
        (one,) = store
        assert (one.sample, one.reward, one.logprobs.tolist()) == (3, 0.5, [-1.0, -2.0])


def test_log_probabilities_that_do_not_fit_cost_themselves_alone(path: Path, caplog) -> None:
    with RolloutStore(path) as store:
        cache = RolloutCache(store=store)
        session = cache.open(PROMPT)
        cache.extend(session, [5, 6])
        cache.annotate(session, logprobs=[-1.0], reward=1.0)
        cache.close(session)
        (one,) = store
        assert (one.token_ids.tolist(), one.reward, one.logprobs) == ([5, 6], 1.0, None)
    assert "without 1 log-probabilities for 2 tokens" in caplog.text


def test_the_prompt_is_what_it_was_when_the_session_began(path: Path) -> None:
    with RolloutStore(path) as store:
        cache, prompt = RolloutCache(store=store), np.array(PROMPT, np.int32)
        session = cache.open(prompt)
        prompt[:] = 99  # an engine that uses its buffers again
        cache.extend(session, [5])
        cache.close(session)
        assert next(iter(store)).prompt_token_ids.tolist() == PROMPT


def test_generation_goes_on_without_a_closed_store(path: Path, caplog) -> None:
    store = RolloutStore(path)
    cache = RolloutCache(store=store)
    store.close()
    for prompt in range(3):
        session = cache.open([prompt])
        cache.extend(session, [1])
        with pytest.raises(InvalidInputError, match="closed"):
            cache.close(session)
    assert cache.stats().sessions == 0
    assert caplog.text.count("Going on without") == 1


@pytest.mark.parametrize("method", ["recall", "put"])
@pytest.mark.parametrize("error", [MemoryError, StoreError, KeyError])
def test_no_failure_of_the_store_reaches_who_generates(path: Path, monkeypatch, caplog, method: str, error) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error("injected")

    with RolloutStore(path) as store:
        cache = RolloutCache(store=store)
        with monkeypatch.context() as patch:
            patch.setattr(store, method, fails)
            for prompt in range(3):
                cache.add([prompt], [prompt, 5])
        assert cache.stats().sessions == 0
        assert [cache.rollouts([prompt]) for prompt in range(3)] == [1, 1, 1]
        cache.add([9], [9])
        assert texts(store) == ([[0, 5], [1, 5], [2, 5], [9]] if method == "recall" else [[9]])
    assert "injected" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("place", ["file", "folder"])
def test_what_may_not_be_written_is_a_sentence(tmp_path: Path, place: str) -> None:
    """As another user where this one may do everything."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    store = folder / "r.db"
    RolloutStore(store).close()
    (store if place == "file" else folder).chmod(0o444 if place == "file" else 0o555)
    for above in (tmp_path, *list(tmp_path.parents)[:2]):
        if os.geteuid() == 0:
            above.chmod(above.stat().st_mode | 0o055)
    child = os.fork()
    if not child:
        code = 1
        try:
            if os.geteuid() == 0:
                try:
                    os.setgid(65534)
                    os.setuid(65534)
                except OSError:
                    code = NO_OTHER_USER
                    return
            with pytest.raises(StoreError, match=r"can be written|Check"):
                RolloutStore(store if place == "file" else folder / "new.db").add([1], [2])
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == NO_OTHER_USER:
        pytest.skip("there is no other user here")
    assert code == 0


def test_the_log_is_quiet_when_nothing_is_wrong(path: Path, caplog) -> None:
    with caplog.at_level(logging.DEBUG), RolloutStore(path) as store:
        store.add(PROMPT, [1])
        store.flush()
        list(store)
    assert caplog.text == ""
