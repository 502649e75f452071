"""Forked children: an open store is refused or harmless there, and a store of their own is as safe as any.

Each child is guarded by an alarm, so that one that hangs is a failure and not the end of the run.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rolltree import RolloutCache, RolloutStore
from rolltree.errors import InvalidInputError
from rolltree.store import connection as connection_module
from rolltree.store import verify

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]
GUARD = 600  # seconds until a child that hangs is ended by its alarm


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork waits for a statement as long as that takes: how fast this machine is decides nothing."""
    monkeypatch.setattr(connection_module, "FORK_SECONDS", 600.0)


def child(work: Callable[[], None]) -> int:
    """Fork, do `work` in the child, and return its pid."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(GUARD)
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)
    raise AssertionError


def ended(pid: int) -> int:
    """How a child ended: 0 is well, negative a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def refused(*calls: Callable[[], object]) -> None:
    for call in calls:
        with pytest.raises(InvalidInputError, match="process"):
            call()


@pytest.fixture
def store(tmp_path: Path):
    with RolloutStore(tmp_path / "rollouts.db") as made:
        made.add([1], [2, 3], key="a")
        made.flush()
        yield made


def test_everything_is_refused_in_a_child(store: RolloutStore) -> None:
    begun = iter(store)
    rollout = next(iter(store))

    def use() -> None:
        refused(
            lambda: store.add([1], [5]), lambda: store.put(rollout), store.flush, lambda: len(store),
            lambda: list(store), lambda: next(begun), lambda: store.rollouts([1]), lambda: store.rollouts(key="a"),
            lambda: store.recall([1]), lambda: store.load_into(RolloutCache()),
        )  # fmt: skip
        store.close()
        assert store.dropped == 0

    assert ended(child(use)) == 0
    store.add([1], [9])
    assert [one.token_ids.tolist() for one in store] == [[2, 3], [9]]


def test_a_cache_with_a_store_goes_on_in_a_child_until_it_would_commit(store: RolloutStore) -> None:
    cache = RolloutCache(store=store)

    def use() -> None:
        session = cache.open([1, 2])
        cache.extend(session, [3])
        refused(lambda: cache.close(session))
        assert cache.stats().sessions == 0

    assert ended(child(use)) == 0


class Held:
    """Holds what threads of a store hold while they work, in another thread, as long as the block runs."""

    def __init__(self, *locks: object) -> None:
        self.locks, self.taken, self.enough = locks, threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.hold)

    def hold(self) -> None:
        for lock in self.locks:
            lock.acquire()
        self.taken.set()
        self.enough.wait()
        for lock in self.locks:
            lock.release()

    def __enter__(self) -> None:
        self.thread.start()
        self.taken.wait()

    def __exit__(self, *_: object) -> None:
        self.enough.set()
        self.thread.join()


def test_a_child_ends_though_another_thread_held_every_lock(store: RolloutStore, monkeypatch) -> None:
    monkeypatch.setattr(connection_module, "FORK_SECONDS", 0.0)

    def use() -> None:
        refused(lambda: store.add([1], [5]), lambda: len(store), lambda: store.rollouts([1]), store.flush)
        with pytest.raises(InvalidInputError, match="at the fork"):  # SQLite was at work on it
            RolloutStore(store.path)
        store.close()
        store._finalizer()
        gc.collect()

    with Held(store._writer._changed, store._writer._database._lock, store._reader._database._lock):
        assert ended(child(use)) == 0
    store.add([1], [4])
    assert len(store) == 2


LEAVING = """
import os, signal, sys, threading
from rolltree import RolloutStore
store = RolloutStore(sys.argv[1])
store.add([1], [2, 3])
stop = False
def read():
    while not stop:
        store.rollouts([1])
        store.add([1], [4])
thread = threading.Thread(target=read)
thread.start()
codes = []
for _ in range(10):
    child = os.fork()
    if not child:
        signal.alarm(600)
        sys.exit(0)  # runs finalizers and takes the interpreter down
    codes.append(os.waitpid(child, 0)[1])
stop = True
thread.join()
store.flush()
print(codes == [0] * 10, store.dropped)
"""


def test_children_leave_by_the_front_door(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.db"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LEAVING, str(path)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True 0\n", "")
    assert verify(path) == []


def test_children_of_a_process_that_reads_and_writes_all_the_time(store: RolloutStore) -> None:
    stop = threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            store.add([number], [number])
            len(store)
            store.rollouts([number], last=3)

    threads = [threading.Thread(target=work, args=(number,)) for number in (7, 8)]
    for thread in threads:
        thread.start()

    def own() -> None:
        with RolloutStore(store.path) as mine:
            mine.add([100], [1])
            mine.flush()
            assert mine.rollouts([100])

    try:
        assert [ended(child(own)) for _ in range(8)] == [0] * 8
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(store.rollouts([100])) == 8
    assert store.dropped == 0


def test_what_a_child_commits_stays_when_its_parent_closes(tmp_path: Path) -> None:
    """SQLite believes in locks that it inherits: a child that opens the file anew would write into a log that goes."""
    path = tmp_path / "rollouts.db"
    store = RolloutStore(path)
    store.add([1], [0])
    store.flush()
    closed, close = os.pipe()
    told, tell = os.pipe()

    def own() -> None:
        mine = RolloutStore(path)
        mine.add([1], [1])
        mine.flush()
        os.write(tell, b"1")
        os.read(closed, 1)
        mine.add([1], [2])
        mine.flush()  # then it dies: what it was told is safe must be there

    pid = child(own)
    assert os.read(told, 1) == b"1"
    store.close()
    os.write(close, b"1")
    assert ended(pid) == 0
    with RolloutStore(path) as again:
        assert [one.token_ids.tolist() for one in again] == [[0], [1], [2]]
    assert verify(path) == []


def test_a_grandchild_is_like_a_child(store: RolloutStore) -> None:
    def between() -> None:
        with RolloutStore(store.path) as mine:
            assert ended(child(lambda: refused(lambda: len(mine), lambda: len(store)))) == 0
            mine.add([5], [5])

    assert ended(child(between)) == 0
    assert len(store.rollouts([5])) == 1
