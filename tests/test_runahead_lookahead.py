"""Looking ahead changes neither what a trainer gets nor what its checkpoints say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolltree.runahead import LookAhead


class Loader:
    """A loader as trainers have them: shuffled by a generator of its own, resumable, its state handed out live."""

    def __init__(self, size: int = 7) -> None:
        self.size, self.state = size, {"epoch": 0, "taken": 0}

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.size))
        random.Random(self.state["epoch"]).shuffle(order)
        while self.state["taken"] < self.size:
            self.state["taken"] += 1
            yield order[self.state["taken"] - 1] + 100 * self.state["epoch"]
        self.state |= {"epoch": self.state["epoch"] + 1, "taken": 0}

    def state_dict(self) -> dict[str, int]:
        return self.state

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.state = dict(state)


def run(loader: Loader, depths: list[int], steps: int) -> tuple[list[int], list[dict[str, int]]]:
    """What a trainer gets in `steps` steps, looking `depths[i]` ahead in step i, and its checkpoint after each."""
    got: list[int] = []
    saved: list[dict[str, int]] = []
    ahead = LookAhead(iter(loader), loader.state_dict)
    for step in range(steps):
        seen = ahead.peek(depths[step % len(depths)]) if depths else ()
        try:
            batch = next(ahead)
        except StopIteration:
            ahead = LookAhead(iter(loader), loader.state_dict)
            batch = next(ahead)
        if seen:
            assert batch == seen[0]
        got.append(batch)
        state = ahead.state_dict()
        assert isinstance(state, dict)
        saved.append(dict(state))
    return got, saved


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.integers(1, 30), st.integers(0, 29))
def test_order_and_checkpoints_are_those_of_a_run_without(depths: list[int], steps: int, cut: int) -> None:
    plain, states = run(Loader(), [], steps)
    ahead, seen_states = run(Loader(), depths, steps)
    assert ahead == plain
    assert seen_states == states
    loader = Loader()
    loader.load_state_dict(seen_states[cut % steps])  # interrupted and resumed, with and without
    rest = run(loader, depths, 5)[0]
    loader.load_state_dict(states[cut % steps])
    assert rest == run(loader, [], 5)[0]


def test_a_source_that_fails_does_so_where_it_would_have() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("no such shard")

    ahead = LookAhead(source())
    assert ahead.peek(5) == (1,)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="shard"):
        next(ahead)
    assert ahead.peek() == ()


def test_random_numbers_that_the_source_draws_can_be_put_back() -> None:
    @contextmanager
    def isolated() -> Iterator[None]:
        state = random.getstate()
        yield
        random.setstate(state)

    random.seed(3)
    ahead = LookAhead((random.random() for _ in range(9)), isolated=isolated)
    first = random.getstate()
    ahead.peek(4)
    assert random.getstate() == first
