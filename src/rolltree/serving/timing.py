"""Feeds a step-cost observer with the time from one step's begin to the next, between decoding steps.

The clock is passed in. Steps that read a prompt, or follow a pause of the engine, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from rolltree.budget import CostModel
from rolltree.step_cost import StepCostObserver


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """The shape of a step that the engine begins."""

    rows: int
    """Requests in it."""
    drafted: int
    """Draft tokens that it verifies."""
    longest: int
    """Most of them in one row."""
    decodes: bool
    """No request reads its prompt."""
    continues: bool
    """Requests of the step before go on, so that the engine was not idle in between."""
    ungraphed: bool = False
    """The engine has full CUDA graphs, and none of them fits this step."""


class StepTimer:
    """Remembers the step that runs, to time it when the next one begins."""

    def __init__(self, observer: StepCostObserver) -> None:
        self._observer = observer
        self._running: tuple[float, Scheduled] | None = None

    def take(self, step: Scheduled, now: float) -> CostModel:
        """Note that a step begins at `now`, seconds; return the model to draft by."""
        if self._running is not None and step.continues:
            began, last = self._running
            self._observer.observe(last.rows, last.drafted, last.longest, now - began, ungraphed=last.ungraphed)
        self._running = (now, step) if step.decodes and step.rows else None
        return self._observer.model
