"""How long an engine's decode steps take: from one step's outputs to the next one's, by the clock of the engine's core.

So it is the time that a request waits for its next tokens, drafting and scheduling included, whatever overlaps in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple


class Step(NamedTuple):
    """A step that gave tokens."""

    at: float
    """Seconds of the core's clock when its outputs were ready."""
    rows: int
    """Requests that got tokens."""
    is_prefill: bool
    """Some of them got their first."""


class StepClock:
    """Notes every step of an engine, whether its core is in this process or in another one.

    Wraps `get_output` of the core's client, which hands over one step at a time, stamped by the core.
    """

    def __init__(self, llm: Any) -> None:
        self._steps: list[Step] = []
        self._known: set[str] = set()
        client = llm.llm_engine.engine_core
        stock = client.get_output

        def get_output() -> Any:
            outputs = stock()
            self._note(outputs)
            return outputs

        client.get_output = get_output

    def _note(self, outputs: Any) -> None:
        names = [output.request_id for output in outputs.outputs]
        if names:
            self._steps.append(Step(outputs.timestamp, len(names), not self._known.issuperset(names)))
            self._known.update(names)

    def take(self) -> list[Step]:
        """Return the steps since the last call."""
        steps, self._steps = self._steps, []
        self._known.clear()
        return steps


def decode_seconds(steps: Sequence[Step]) -> list[float]:
    """Return seconds of the decode steps of at least half the rows of the largest one, in order."""
    most = max((step.rows for step in steps), default=0)
    return [b.at - a.at for a, b in pairwise(steps) if not b.is_prefill and 2 * b.rows >= most]
