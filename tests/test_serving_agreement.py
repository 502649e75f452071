"""Agreement between ranks, without an engine: each rank is a thread, and the collective a barrier."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rolltree import CostModel
from rolltree.errors import RolltreeError
from rolltree.serving.agreement import Agreement, State, Verdict, _digest
from rolltree.types import Int64Array

RANKS = 3
TEXT, DRAFTS = [[1], [2, 3], []], [[5, 6], [], [7]]
COSTS = [CostModel(base=1.0 + rank / 3, token=0.1, floor=1e-300) for rank in range(RANKS)]


class Group:
    """Ranks that meet in every `gather`."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(RANKS, timeout=60)
        self._values: list[Int64Array] = [np.zeros(0, np.int64)] * RANKS
        self.agreements = [Agreement(self._gather_of(rank), leads=rank == 0) for rank in range(RANKS)]

    def _gather_of(self, rank: int) -> Callable[[Int64Array], Int64Array]:
        def gather(mine: Int64Array) -> Int64Array:
            self._values[rank] = mine
            self._barrier.wait()
            everyone = np.stack(self._values)
            self._barrier.wait()
            return everyone

        return gather

    def compare(
        self, *, states: dict[int, State] | None = None, texts: dict[int, object] | None = None,
        drafts: dict[int, object] | None = None, costs: Sequence[CostModel | None] | None = None,
    ) -> Verdict:  # fmt: skip
        """What all ranks were told, which must be the same; the arguments say which ranks differ from the usual."""

        def one(rank: int) -> Verdict:
            state = (states or {}).get(rank, State.DRAFTED)
            text, draft = (texts or {}).get(rank, TEXT), (drafts or {}).get(rank, DRAFTS)
            return self.agreements[rank].compare(state, text, draft, costs[rank] if costs else None)  # type: ignore[arg-type]

        with ThreadPoolExecutor(RANKS) as threads:
            first, *others = threads.map(one, range(RANKS))
        assert others == [first] * (RANKS - 1)
        return first


@pytest.fixture(name="group")
def fixture_group() -> Group:
    return Group()


def test_equal_drafts_stand(group: Group) -> None:
    """Step after step."""
    for _ in range(3):
        assert group.compare().drafts_stand


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize(
    "other",
    [[[5, 6], [], [8]], [[5, 6], [7], []], [[5], [6], [7]], [[], [], []], [[5, 6], []]],
    ids=["token", "row", "lengths", "none", "rows"],
)
def test_other_drafts_of_one_rank_are_found(group: Group, rank: int, other: list[list[int]]) -> None:
    """Whatever is different, and on whichever rank, the leader included."""
    verdict = group.compare(drafts={rank: other})
    assert (verdict.drafts_stand, verdict.parted) == (False, "drafts")
    assert "part in their drafts" in verdict.complaint


def test_other_text_of_one_rank_is_found_though_nobody_drafts(group: Group) -> None:
    """It is named before the drafts, which it makes different."""
    assert group.compare(texts={1: [[1], [2, 4], []]}, drafts={1: []}).parted == "text"
    assert group.compare(texts={2: [[1]]}, states={0: State.PAUSED}).parted == "text"


def test_a_rank_that_missed_a_step_is_found(group: Group) -> None:
    """Its comparisons would be of another step from then on."""
    group.agreements[1]._steps += 1
    assert group.compare().parted == "step"


@pytest.mark.parametrize(
    ("states", "worst"),
    [
        ({0: State.PAUSED}, State.PAUSED),
        ({2: State.FAILED}, State.FAILED),
        ({0: State.FAILED, 1: State.PAUSED}, State.FAILED),
    ],
)
def test_the_worst_state_counts_for_all(group: Group, states: dict[int, State], worst: State) -> None:
    """No draft stands, and what the others drafted is no disagreement."""
    verdict = group.compare(states=states, drafts={rank: [[], [], []] for rank in states})
    assert (verdict.state, verdict.parted, verdict.drafts_stand) == (worst, "", False)


def test_the_cost_is_the_leaders_to_the_bit(group: Group) -> None:
    """Rounding would let budgets part; None stays None."""
    assert group.compare(costs=COSTS).cost == COSTS[0]
    assert group.compare(costs=[COSTS[0], None, None]).cost == COSTS[0]
    assert group.compare().cost is None


def test_check_values_are_the_same_in_every_process() -> None:
    """Python's hash of text is not; that of numbers is."""
    code = "from rolltree.serving.agreement import _digest; print(_digest([[1, 2**31 - 1], [], [151643]]))"
    here = _digest([[1, 2**31 - 1], [], [151643]])
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code]
        there = subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, timeout=120)
        assert int(there.stdout) == here


def test_ranks_that_cannot_be_reached_end_the_step() -> None:
    """There is no safe way on: this rank cannot know what the others verify."""

    def gather(mine: Int64Array) -> Int64Array:
        raise TimeoutError("no answer in 1800 s")

    with pytest.raises(RolltreeError, match=r"step 1: another rank cannot be reached .*no answer"):
        Agreement(gather, leads=True).compare(State.DRAFTED, TEXT, DRAFTS, None)
