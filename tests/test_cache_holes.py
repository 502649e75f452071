"""A session that missed a token is never kept: trees and store hold what was generated, whatever fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rolltree import RolloutCache, RolloutStore, TreeDrafter
from rolltree.errors import InvalidInputError, SessionClosedError

PROMPT = [1, 2, 3]


class Failure(Exception):
    pass


class FailsAt:
    """Calls `inner` but for its n-th call, which fails before or after the inner call."""

    def __init__(self, inner: Callable[..., object], n: int, *, after: bool) -> None:
        self.inner, self.left, self.after = inner, n, after

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Failure
        result = self.inner(*args, **kwargs)
        if self.left == 0:
            raise Failure
        return result


def generate(drafter: TreeDrafter, texts: list[list[int]]) -> list[list[int]]:
    """Rollouts two tokens a step; a step that fails is lost, as in an engine that goes on. What was emitted."""
    handles = [drafter.open(PROMPT) for _ in texts]
    for at in range(0, len(texts[0]), 2):
        try:
            drafter.draft(np.array(handles), np.full(len(handles), 4, np.int32))
            emitted = np.array([token for text in texts for token in text[at : at + 2]], np.int32)
            drafter.advance(np.array(handles), emitted, np.arange(0, 2 * len(texts) + 1, 2, dtype=np.int32))
        except Failure:
            pass
    for handle in handles:
        drafter.close(handle)
    return texts


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize("owner", ["journal", "core"])
def test_a_failing_step_is_in_neither_trees_nor_store(tmp_path: Path, owner: str, call: int, after: bool) -> None:
    with RolloutStore(tmp_path / "s.db") as store:
        cache = RolloutCache(store=store)
        drafter = TreeDrafter(cache)
        generate(drafter, [[10, 11, 12, 13, 14, 15, 16, 17]])
        target = cache._journal if owner == "journal" else cache
        name = "advance" if owner == "journal" else "_write_along"
        setattr(target, name, FailsAt(getattr(target, name), call, after=after))
        generate(drafter, [[20, 21, 22, 23, 24, 25, 26, 27], [30, 31, 32, 33, 34, 35, 36, 37]])
        generate(drafter, [[40, 41, 42, 43, 44, 45, 46, 47]])
        store.flush()
        kept = [rollout.token_ids.tolist() for rollout in store.rollouts(PROMPT)]
        assert kept == [[10, 11, 12, 13, 14, 15, 16, 17], [40, 41, 42, 43, 44, 45, 46, 47]]
        assert cache.rollouts(PROMPT) == 2
        cache._forest.finish()
        probe = cache.open(PROMPT)
        tree = cache._live[probe].tree
        counts = [cache._forest.count(tree, np.array([token], np.int32)) for token in (10, 21, 24, 30, 36, 47)]
        assert counts == [64, 0, 0, 0, 0, 64]
        cache.check()


def test_refused_tokens_leave_a_hole_in_settle_and_none_in_extend() -> None:
    drafter = TreeDrafter()
    cache, handle = drafter.cache, drafter.open(PROMPT)
    with pytest.raises(InvalidInputError):
        cache.extend(handle, [5, -1])
    cache.extend(handle, [5])
    drafter.close(handle)
    assert cache.rollouts(PROMPT) == 1
    handle = drafter.open(PROMPT)
    with pytest.raises(InvalidInputError):
        drafter.advance(np.array([handle]), np.array([-1], np.int32), np.array([0, 1], np.int32))
    drafter.advance(np.array([handle]), np.array([6], np.int32), np.array([0, 1], np.int32))
    drafter.close(handle, keep=True)
    assert cache.rollouts(PROMPT) == 1
    assert cache.stats().sessions == 0


def test_a_closed_session_in_a_batch_spoils_its_neighbours_of_that_step() -> None:
    cache = RolloutCache()
    good, gone = cache.open(PROMPT), cache.open(PROMPT)
    cache.extend(good, [5])
    cache.close(gone, keep=False)
    with pytest.raises(SessionClosedError):
        cache.append(np.array([good, gone]), np.array([6, 6], np.int32), np.array([0, 1, 2], np.int32))
    cache.close(good)
    assert cache.rollouts(PROMPT) == 0


def test_a_session_block_keeps_what_is_whole() -> None:
    cache = RolloutCache()
    with cache.session(PROMPT) as session:
        cache.extend(session, [7])
    with pytest.raises(SessionClosedError), cache.session(PROMPT) as session:
        cache.close(session, keep=False)
    with pytest.raises(InvalidInputError), cache.session(PROMPT) as session:
        cache.extend(session, [-8])
    assert cache.rollouts(PROMPT) == 1
    assert cache.stats().sessions == 0


def test_an_open_that_fails_leaves_no_session(tmp_path: Path) -> None:
    with RolloutStore(tmp_path / "s.db") as store:
        cache = RolloutCache(store=store)
        assert cache._journal is not None
        cache._journal.open = FailsAt(cache._journal.open, 1, after=False)  # type: ignore[method-assign]
        with pytest.raises(Failure):
            cache.open(PROMPT)
        probe = cache.open(PROMPT)
        assert cache._forest.stats(cache._live[probe].tree)["live"] == 1
