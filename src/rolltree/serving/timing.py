"""Feeds a step-cost observer with the time from one step's begin to the next.

The clock is passed in. Steps that mostly read prompts, or that a pause of the engine follows, are left out. Those that
read a little are not: where requests come and go all the time, hardly any other step exists.
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
    continues: bool
    """Requests of the step before go on, so that the engine was not idle in between."""
    read: int = 0
    """Tokens of prompts that it reads besides."""
    ungraphed: bool = False
    """The engine has full CUDA graphs, and none of them fits this step."""

    @property
    def decodes(self) -> bool:
        """Whether no request reads its prompt."""
        return not self.read

    @property
    def mostly_decodes(self) -> bool:
        """Whether at most half of its tokens are of prompts: what it takes tells what rows and drafts cost."""
        return self.rows > 0 and self.read <= self.rows + self.drafted


class StepTimer:
    """Remembers the step that runs, to time it when the next one begins."""

    def __init__(self, observer: StepCostObserver) -> None:
        self._observer = observer
        self._running: tuple[float, Scheduled] | None = None

    def take(self, step: Scheduled, now: float) -> CostModel:
        """Note that a step begins at `now`, seconds; return the model to draft by."""
        if self._running is not None and step.continues:
            began, last = self._running
            self._observer.observe(
                last.rows, last.drafted, last.longest, now - began, ungraphed=last.ungraphed, read=last.read
            )
        self._running = (now, step) if step.mostly_decodes else None
        return self._observer.model
