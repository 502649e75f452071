"""A store that several replicas write to, together with sharing: a rollout is in a tree once, however it came."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rolltree import RolloutCache, RolloutStore
from rolltree.rebuilding import Rebuilds
from rolltree.sharing.counts import SharingCounts
from rolltree.sharing.inbox import Inbox
from rolltree.sharing.message import Text
from rolltree.tokens import prompt_key
from rolltree.types import Int32Array

PROMPT = np.array([5, 6, 7], np.int32)
NAME = prompt_key(PROMPT)
TEXTS = [np.random.default_rng(n).integers(0, 50, 200 + n).astype(np.int32) for n in range(4)]


class Replica:
    """A cache with a store, and an inbox for what another replica tells."""

    def __init__(self, store: RolloutStore, rebuild: Any) -> None:
        self.cache = RolloutCache(store=store, rebuild=rebuild)
        self.inbox = Inbox(self.cache, SharingCounts(), logging.getLogger("rolltree"))

    def begin(self) -> None:
        """A request of the prompt begins, whose tree comes back from the store."""
        self.own = self.cache.open(PROMPT, read_only=True)
        self.inbox.wants()

    def take(self, number: int, text: Int32Array, *, start: int = 0, is_done: bool = True) -> None:
        """What the exchange answers."""
        told = Text(
            stream=f"other/{number}", name=NAME, start=start, tokens=text[start:], is_done=is_done, version=3,
            prompt=PROMPT if start == 0 else None,
        )  # fmt: skip
        self.inbox.take([told], {}, [])
        self.inbox.enter(1 << 30)

    def held(self) -> int:
        """Finished rollouts in the prompt's tree."""
        self.cache.wait()
        self.cache.check()
        return self.cache.rollouts(PROMPT)


@pytest.fixture(name="store")
def fixture_store(tmp_path: Path) -> Any:
    """Two rollouts that another replica has finished."""
    with RolloutStore(tmp_path / "shared.db") as store:
        for text in TEXTS[:2]:
            store.add(PROMPT, text, version=3)
        store.flush()
        yield store


@pytest.mark.parametrize("rebuild", ["blocking", "background"])
def test_what_came_back_from_the_store_is_not_taken_in_again(store: RolloutStore, rebuild: str) -> None:
    """Nor is the tree any other than without the exchange; what is new enters, and a second one that is alike."""
    here = Replica(store, rebuild)
    here.begin()
    assert here.held() == 2
    before = here.cache.stats().tokens
    for number, text in enumerate(TEXTS[:2]):
        here.take(number, text)
    assert (here.held(), here.cache.stats().tokens) == (2, before)
    here.take(2, TEXTS[2])
    here.take(3, TEXTS[0])
    assert here.held() == 4


@pytest.mark.parametrize("rebuild", ["blocking", "background"])
def test_a_rollout_that_was_followed_when_the_tree_came_back_is_there_once(store: RolloutStore, rebuild: str) -> None:
    """It is committed, and read with the history, before its end is told."""
    here = Replica(store, rebuild)
    here.begin()
    here.held()
    here.take(1, TEXTS[1][:150], is_done=False)
    here.take(1, TEXTS[1], start=150)
    assert here.held() == 2


def test_what_is_told_while_the_store_is_read_is_there_once(
    store: RolloutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has read the file when the exchange tells of the same rollouts."""
    here, read = Replica(store, "background"), Rebuilds._read
    has_read, told = threading.Event(), threading.Event()

    def slow(self: Rebuilds, *arguments: Any) -> Any:
        found = read(self, *arguments)
        has_read.set()
        told.wait()
        return found

    monkeypatch.setattr(Rebuilds, "_read", slow)
    here.begin()
    has_read.wait()
    for number, text in enumerate(TEXTS[:2]):
        here.take(number, text)
    assert here.cache.rollouts(PROMPT) == 2
    told.set()
    assert here.held() == 2


def test_a_tree_that_was_evicted_and_came_back_knows_what_it_has(store: RolloutStore) -> None:
    here = Replica(store, "blocking")
    here.begin()
    here.take(0, TEXTS[0])
    here.cache.close(here.own)
    here.cache.clear()
    assert not here.cache._prompts.rebuilds._told  # a tree without its history would be refused them otherwise
    here.begin()
    assert here.held() == 2
    for number, text in enumerate(TEXTS[:2]):
        here.take(number + 10, text)
    assert here.held() == 2


def test_text_is_kept_whole_only_beside_a_store(store: RolloutStore) -> None:
    """Without one nothing can come twice, and what others generate would be in memory beside the trees."""
    told = Text(stream="other/1", name=NAME, start=0, tokens=TEXTS[2], is_done=False, version=3, prompt=PROMPT)
    for cache, kept in ((RolloutCache(store=store), len(TEXTS[2])), (RolloutCache(), 0)):
        inbox = Inbox(cache, SharingCounts(), logging.getLogger("rolltree"))
        cache.open(PROMPT, read_only=True)
        inbox.wants()
        inbox.take([told], {}, [])
        inbox.enter(1 << 30)
        assert inbox.counts.shared_received == len(TEXTS[2])
        assert sum(map(len, inbox._followed["other/1"].entered)) == kept
