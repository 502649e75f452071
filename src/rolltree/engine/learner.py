"""Gives the drafter a step-cost model learned from the engine's own steps.

Reads the engine's phase clocks, so a prefill in the step does not count. Does not decide what is drafted.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from rolltree.budget import CostModel, add_estimate
from rolltree.engine.stats import PHASES, EngineStats
from rolltree.step_cost import StepCostObserver
from rolltree.types import Drafter, Int64Array

STEP_PHASES = tuple(phase for phase in PHASES if phase != "prefill")


@runtime_checkable
class _Budgeted(Protocol):
    cost: CostModel | None


class CostLearner:
    """Feeds a `StepCostObserver`, and sets `drafter.cost` after each step where the drafter has such a budget."""

    def __init__(self, drafter: Drafter | None) -> None:
        """A cost model that the drafter has already becomes the prior."""
        self._drafter = drafter if isinstance(drafter, _Budgeted) else None
        self.observer = StepCostObserver(self._drafter.cost if self._drafter else None)
        self._before = 0.0
        if self._drafter is not None:
            self._drafter.cost = self.observer.model

    def observe(self, counts: Int64Array, emitted: Int64Array, stats: EngineStats) -> None:
        """Take a step into account: row b verified `counts[b]` tokens and emitted `emitted[b]`.

        `stats` holds the clocks after it, and gets the estimate of what drafts saved once the cost is known.
        """
        now = sum(stats.seconds[phase] for phase in STEP_PHASES)
        seconds, self._before = now - self._before, now
        rows, drafted, longest = len(counts), int(counts.sum()) - len(counts), int(counts.max()) - 1
        self.observer.observe(rows, drafted, longest, seconds)
        shape = {"row_steps": rows, "tokens": int(emitted.sum()), "drafted": drafted, "longest": longest}
        add_estimate(stats, self.observer.known, steps=1, **shape)
        if self._drafter is not None:
            self._drafter.cost = self.observer.model
