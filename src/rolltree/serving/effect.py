"""What drafting brings an engine, step by step: the time that it saved is estimated, and the user is told once.

Only counts and speaks: nothing that is drafted depends on it. `SavedTime` prices a step, `Watch` decides what to say.
"""

from __future__ import annotations

import logging

from rolltree.budget import CostModel
from rolltree.serving.counts import ServingCounts
from rolltree.serving.saved import SavedTime
from rolltree.serving.timing import Scheduled
from rolltree.serving.watch import Watch, pays
from rolltree.step_cost import StepCostObserver


class Effect:
    """Of the steps of one engine.

    Args:
        observer: learns the step cost; None: no time is estimated.
        counts: where seconds and steps are added.
        width: draft tokens of a request at most.
        log: where lines for the user go.

    """

    def __init__(
        self, observer: StepCostObserver | None, counts: ServingCounts, *, width: int, log: logging.Logger
    ) -> None:
        self._saved, self._watch = SavedTime(observer, counts), Watch()
        self._counts, self._width, self._log = counts, width, log

    def begin(self, step: Scheduled) -> None:
        """Note the shape of the step that begins."""
        self._saved.begin(step)

    def price(self, rows: int, tokens: int) -> None:
        """Estimate what the drafts of the step saved, in which `rows` requests got `tokens`."""
        self._saved.add(rows, tokens)

    def watch(self, rows: int, tokens: int, drafted: int, *, cost: CostModel | None, paused: bool) -> None:
        """Note a step whose requests could be drafted for, and say what is to be said.

        Args:
            rows: requests that got tokens.
            tokens: how many.
            drafted: draft tokens proposed.
            cost: the step cost that drafts are cut by.
            paused: drafting is paused now.

        """
        if self._watch.add(rows, tokens, drafted):
            pay = pays(cost, self._watch.mean_rows, self._width)
            if line := self._watch.judge(self._counts, paused=paused, pays=pay):
                self._log.log(line.level, "rolltree: %s", line.text)
