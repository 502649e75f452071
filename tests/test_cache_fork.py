"""A fork while other threads use a cache: the child can use it, or is told that it cannot; it never hangs."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rolltree import RolloutCache, RolloutStore, forking
from rolltree.errors import InvalidInputError
from rolltree.store import connection
from tests.test_store_fork import Held, child, ended

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]
forks: list[Callable[[], object]] = []
"""What is called when a fork has begun, before anything is held for it."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lambda: [call() for call in forks])


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """How fast this machine is decides nothing."""
    monkeypatch.setattr(forking, "SECONDS", 600.0)
    monkeypatch.setattr(connection, "FORK_SECONDS", 600.0)
    yield
    forks.clear()


def use(cache: RolloutCache) -> None:
    """Whatever takes the lock, once."""
    with cache.session([1, 2]) as session:
        cache.extend(session, [3, 4])
    cache.set_version(cache.version + 1)
    assert cache.stats().sessions == 0
    assert cache.rollouts([1, 2]) > 0


def test_a_child_can_use_a_cache_that_another_thread_was_using() -> None:
    """The fork waits for the other thread, which goes on only once the fork has begun."""
    cache, begun = RolloutCache(), threading.Event()
    taken = threading.Event()

    def hold() -> None:
        with cache._lock:
            taken.set()
            begun.wait()
            cache.add([1, 2], [5])

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    forks.append(begun.set)

    def whole() -> None:
        assert cache.rollouts([1, 2]) == 1  # never in the midst of a change
        use(cache)

    assert ended(child(whole)) == 0
    thread.join()
    use(cache)


def test_a_child_is_refused_a_cache_that_was_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that another thread holds for ever: the fork goes on after its time, and the child does not hang."""
    monkeypatch.setattr(forking, "SECONDS", 0.0)
    cache, other = RolloutCache(), RolloutCache()

    def refused() -> None:
        for call in (lambda: cache.open([1]), cache.stats, cache.clear, lambda: cache.set_version(3)):
            with pytest.raises(InvalidInputError, match="when this process forked"):
                call()
        use(other)
        use(RolloutCache())
        gc.collect()
        assert ended(child(lambda: use(other))) == 0  # a child's child, likewise

    with Held(cache._lock):
        assert ended(child(refused)) == 0
    use(cache)
    assert ended(child(lambda: use(cache))) == 0


def test_a_fork_does_not_part_a_cache_from_its_store(tmp_path: Path) -> None:
    """A thread that holds the cache's lock and waits for the store's file is not waited for with that file held."""
    with RolloutStore(tmp_path / "rollouts.db") as store:
        cache, begun, taken = RolloutCache(store=store), threading.Event(), threading.Event()
        cache.add([1, 2], [3])
        store.flush()

        def read() -> None:
            with cache._lock:
                taken.set()
                begun.wait()
                assert len(store) == 1

        thread = threading.Thread(target=read)
        thread.start()
        taken.wait()
        forks.append(begun.set)
        assert ended(child(lambda: cache.stats() and None)) == 0
        thread.join()


def test_children_of_a_process_whose_threads_use_a_cache_all_the_time(tmp_path: Path) -> None:
    """Among them one that makes trees again from the store."""
    with RolloutStore(tmp_path / "rollouts.db") as store:
        for number in range(64):
            store.add([number, 2], list(range(200)))
        cache, stop = RolloutCache(store=store, rebuild="background"), threading.Event()

        def work(number: int) -> None:
            while not stop.is_set():
                cache.expect([number % 64, 2])
                with cache.session([number % 64, 2]) as session:
                    cache.extend(session, [3])
                number += 7

        threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()

        def draft() -> None:
            session = cache.open([7, 2], read_only=True)
            cache.extend(session, [3])
            cache.close(session)

        try:
            assert [ended(child(draft)) for _ in range(10)] == [0] * 10
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        cache.wait()
