"""Agreement between ranks that take part in the same forward pass while each schedules for itself.

Such ranks verify what each of them drafted, so different drafts are different inputs of one forward pass: wrong text on
all of them, without an error. So every rank drafts, from the same text by the same cost model, and before drafts are
acted on the ranks compare, in one small collective a step: that all are drafting, the step, what was sampled, what was
drafted. Drafts stand when all agree. The cost model is the leader's, sent along, because clocks differ.

Knows no host: a `gather` callable is all it needs. Has no timeout of its own; the host's group has one.

Invariants: every rank calls `compare` once for every step in which any does; every rank gets the same verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from enum import IntEnum

import numpy as np

from rolltree.budget import CostModel
from rolltree.errors import RolltreeError
from rolltree.types import Int64Array

Gather = Callable[[Int64Array], Int64Array]
"""Takes this rank's int64 [n], returns every rank's, int64 [ranks, n], the leader's first. Blocks until all have it."""

COMPLAINT = (
    "rolltree drafts no more: the ranks of this engine, each of which schedules for itself, part in their {}. "
    "No draft of this step is verified. Give requests, weight updates and commands (load, clear, set_version, pause) "
    "to every rank alike and in the same order; if they were, please report this line with the versions and options "
    "of the engine and of rolltree."
)


class State(IntEnum):
    """What a rank did in a step; the worst of all ranks counts for all."""

    DRAFTED = 0
    PAUSED = 1
    FAILED = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all ranks do now."""

    state: State
    """The worst of all ranks."""
    parted: str
    """What the ranks have different: `step`, `text` or `drafts`; empty when they agree, or did not all draft."""
    cost: CostModel | None
    """The leader's cost model, to draft by from the next step on."""

    @property
    def drafts_stand(self) -> bool:
        """Whether this step's drafts may be verified."""
        return self.state == State.DRAFTED and not self.parted

    @property
    def complaint(self) -> str:
        """What the user should read when the ranks have parted."""
        return COMPLAINT.format(self.parted)


class Agreement:
    """One rank's side of it.

    Args:
        gather: see `Gather`.
        leads: whether this is the first of the ranks.

    """

    def __init__(self, gather: Gather, *, leads: bool) -> None:
        self.leads = leads
        self._gather = gather
        self._steps = 0

    def compare(
        self,
        state: State,
        sampled: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]],
        cost: CostModel | None,
    ) -> Verdict:
        """Learn of all ranks' step, and tell them of this one's.

        Args:
            state: what this rank did.
            sampled: tokens that each row got in this step.
            drafts: tokens that each row would have verified next.
            cost: the model to draft by; only the leader's counts.

        Returns:
            The same on all ranks.

        Raises:
            RolltreeError: the ranks could not be asked. They may part now, so this must end the engine.

        """
        self._steps += 1
        mine = np.array([state, self._steps, _digest(sampled), _digest(drafts)], np.int64)
        try:
            ranks = self._gather(np.concatenate((mine, _pack(cost))))
        except Exception as error:
            raise RolltreeError(
                f"step {self._steps}: another rank cannot be reached to agree on drafts: {error}"
            ) from error
        worst = State(int(ranks[:, 0].max()))
        return Verdict(worst, _parted(ranks[:, 1:4], worst), _unpack(ranks[0, 4:]))


def _parted(ranks: Int64Array, worst: State) -> str:
    """Name the first column that is not the same for all; ranks that did not draft are not asked for drafts."""
    names = ("step", "text", "drafts") if worst == State.DRAFTED else ("step", "text")
    return next((name for name, column in zip(names, ranks.T, strict=False) if (column != column[0]).any()), "")


def _digest(rows: Sequence[Sequence[int]]) -> int:
    """A check value of 64 bits. Python's hash of integers and tuples of them is the same in every process."""
    return hash(tuple(map(tuple, rows)))


def _pack(cost: CostModel | None) -> Int64Array:
    """The coefficients' bits; all zero for None, which no cost model has."""
    return np.array(astuple(cost) if cost else (0.0,) * len(CostModel.__dataclass_fields__), np.float64).view(np.int64)


def _unpack(bits: Int64Array) -> CostModel | None:
    values = np.ascontiguousarray(bits).view(np.float64).tolist()
    names = CostModel.__dataclass_fields__
    return CostModel(**dict(zip(names, values, strict=True))) if any(values) else None
