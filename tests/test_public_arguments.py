"""Whatever a caller hands over: it is taken, or it is an error of rolltree's own that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rolltree
from rolltree import CacheConfig, DraftConfig, RolloutCache, TreeDrafter
from rolltree._native import Drafts
from rolltree.errors import InvalidInputError, RolltreeError
from rolltree.runahead import RunAheadConfig

ARRAYS = [
    np.zeros((2, 2), np.int32), np.array([1.5]), np.array([1, 2], np.uint64), np.arange(6, dtype=np.int32)[::2],
    np.array([], np.float32), np.array(["a"]), np.array([None]), np.array(3), np.array([2**63], np.uint64),
]  # fmt: skip
NUMBERS = st.integers(-(2**70), 2**70) | st.integers(-2, 9) | st.floats() | st.booleans()
JUNK = (
    NUMBERS | st.none() | st.text(max_size=3) | st.binary(max_size=3) | st.sampled_from(ARRAYS) | st.just(object())
    | st.lists(NUMBERS | st.none() | st.text(max_size=2), max_size=4) | st.lists(st.integers(0, 5), max_size=4)
    | st.lists(st.lists(st.integers(0, 3), max_size=2), max_size=3) | st.dictionaries(st.text(), NUMBERS, max_size=2)
)  # fmt: skip

RULE: dict[str, Any] = {"min_survival": 0.1, "min_match": 1, "tree": True}
Call = Callable[[TreeDrafter, int, Any], object]
CALLS: dict[str, Call] = {
    "open prompt": lambda d, h, x: d.open(x),
    "open key": lambda d, h, x: d.open([1], key=x),
    "open seed": lambda d, h, x: d.open([1], seed=x, coupled=True),
    "open version": lambda d, h, x: d.cache.open([1], version=x),
    "draft handles": lambda d, h, x: d.draft(x, [4]),
    "draft limits": lambda d, h, x: d.draft([h], x),
    "advance handles": lambda d, h, x: d.advance(x, [5], [0, 1]),
    "advance tokens": lambda d, h, x: d.advance([h], x, [0, 1]),
    "advance offsets": lambda d, h, x: d.advance([h], [5], x),
    "close": lambda d, h, x: d.close(x),
    "extend session": lambda d, h, x: d.cache.extend(x, [5]),
    "extend tokens": lambda d, h, x: d.cache.extend(h, x),
    "append sessions": lambda d, h, x: d.cache.append(x, [5], [0, 1]),
    "append tokens": lambda d, h, x: d.cache.append([h], x, [0, 1]),
    "append offsets": lambda d, h, x: d.cache.append([h], [5], x),
    "settle sessions": lambda d, h, x: d.cache.settle(x, Drafts(1, 4), [-1], [0], [5], [0, 1]),
    "settle drafts": lambda d, h, x: d.cache.settle([h], x, [-1], [0], [5], [0, 1]),
    "settle rows": lambda d, h, x: d.cache.settle([h], Drafts(1, 4), x, [0], [5], [0, 1]),
    "settle verified": lambda d, h, x: d.cache.settle([h], Drafts(1, 4), [0], x, [5], [0, 1]),
    "cache.draft sessions": lambda d, h, x: d.cache.draft(x, [4], Drafts(1, 4), **RULE),
    "cache.draft out": lambda d, h, x: d.cache.draft([h], [4], x, **RULE),
    "matches": lambda d, h, x: d.cache.matches(x),
    "continuation session": lambda d, h, x: d.cache.longest_continuation(x, [1]),
    "continuation text": lambda d, h, x: d.cache.longest_continuation(h, x),
    "annotate": lambda d, h, x: d.cache.annotate(h, sample=x, reward=x, logprobs=x),
    "set_version": lambda d, h, x: d.cache.set_version(x),
    "add": lambda d, h, x: d.cache.add([1], x),
    "rollouts": lambda d, h, x: d.cache.rollouts(x, key=None),
    "rollouts key": lambda d, h, x: d.cache.rollouts([1], key=x),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=60, deadline=None)
@given(value=JUNK)
def test_no_argument_leads_to_an_error_of_the_core(name: str, value: object) -> None:
    """Lists and whole numbers of any kind are taken; all else is a typed error, and the cache goes on."""
    drafter = TreeDrafter(RolloutCache(CacheConfig(capacity_bytes=1 << 20, shared_window=4)))
    handle = drafter.open([1, 2, 3])
    with suppress(RolltreeError):
        CALLS[name](drafter, handle, value)
    drafter.cache.check()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (CacheConfig, "cache.window"), (CacheConfig, "cache.depth"), (CacheConfig, "cache.threads"),
        (DraftConfig, "draft.max_draft"), (DraftConfig, "draft.min_match"),
        (RunAheadConfig, "runahead.samples"), (RunAheadConfig, "runahead.budget_tokens"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [2.5, 8.0, "8", True, np.array([8]), [8], float("nan"), -(2**70)])
def test_settings_that_are_whole_numbers_say_so(make: Callable[..., object], name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} = .*must be a whole number from"):
        make(**{name.split(".")[1]: value})


def test_tokens_that_the_drafter_refuses_leave_a_hole() -> None:
    """A session that lacks a token is not kept, whoever refused it."""
    drafter = TreeDrafter()
    handle = drafter.open([1])
    drafter.advance([handle], [5], [0, 1])
    with pytest.raises(InvalidInputError, match="tokens"):
        drafter.advance([handle], ["no"], [0, 1])  # type: ignore[arg-type]
    drafter.close(handle)
    assert drafter.cache.rollouts([1]) == 0


@pytest.mark.parametrize("name", ["InvalidInputError", "SessionClosedError", "DraftBatch", "Drafter", "CostModel"])
def test_what_a_caller_needs_is_public(name: str) -> None:
    assert name in rolltree.__all__
    assert getattr(rolltree, name).__module__.startswith("rolltree.")
