"""Feeds a step-cost observer from vLLM's schedules: the time from one to the next, between decoding steps.

The clock is passed in. Steps that read a prompt, or follow a pause of the engine, are left out.
"""

from __future__ import annotations

from typing import Any

from rolltree.budget import CostModel
from rolltree.step_cost import StepCostObserver


class StepTimes:
    """Remembers the step that runs, to time it when the next one is scheduled."""

    def __init__(self, observer: StepCostObserver) -> None:
        self._observer = observer
        self._running: tuple[float, int, int, int] | None = None

    def take(self, schedule: Any, now: float) -> CostModel:
        """Note that vLLM scheduled a step at `now`, seconds; return the model to draft by."""
        if self._running is not None and schedule.scheduled_cached_reqs.req_ids:
            began, rows, drafted, longest = self._running
            self._observer.observe(rows, drafted, longest, now - began)
        drafts = schedule.scheduled_spec_decode_tokens
        rows = len(schedule.num_scheduled_tokens)
        drafted = sum(map(len, drafts.values()))
        is_decoding = rows > 0 and schedule.total_num_scheduled_tokens == rows + drafted
        self._running = (now, rows, drafted, max(map(len, drafts.values()), default=0)) if is_decoding else None
        return self._observer.model
