"""Estimates the seconds that drafts saved, step by step, by the step cost that this engine has shown.

Only counts: nothing that is drafted depends on it. A step that reads a prompt is left out, and so is every step until
the cost is known; a frozen cost may be another machine's, so nothing is estimated with one.
"""

from __future__ import annotations

from rolltree.budget import add_estimate
from rolltree.serving.counts import ServingCounts
from rolltree.serving.timing import Scheduled
from rolltree.step_cost import StepCostObserver


class SavedTime:
    """Prices each decoding step with its drafts, and what its tokens would have taken without.

    Args:
        observer: learns the step cost; None: nothing is estimated.
        counts: where the seconds are added.

    """

    def __init__(self, observer: StepCostObserver | None, counts: ServingCounts) -> None:
        self._observer, self._counts = observer, counts
        self._step: Scheduled | None = None

    def begin(self, step: Scheduled) -> None:
        """Note the shape of the step that begins."""
        self._step = step

    def add(self, rows: int, tokens: int) -> None:
        """Price the step that has ended, in which `rows` requests got `tokens`; others of it got one each."""
        step, self._step = self._step, None
        if step is None or self._observer is None or not step.decodes:
            return
        made = min(tokens + max(step.rows - rows, 0), step.rows + step.drafted)  # what is more was only caught up
        shape = {"row_steps": step.rows, "tokens": made, "drafted": step.drafted, "longest": step.longest}
        add_estimate(self._counts, self._observer.known, steps=1, ungraphed=float(step.ungraphed), **shape)
