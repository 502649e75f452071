"""The processes of a training, and what each tells the others once a step, by the trainer's own process group.

In colocate mode each process, or each group of `tensor_parallel_size` neighbours, has an engine of its own: a prompt
meets its history with chance 1/engines, unless they share. In server mode the main process alone has something to say,
and nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one engine did since its last report."""

    sums: dict[str, float] = field(default_factory=dict)
    """Counters that grow."""
    held: dict[str, float] = field(default_factory=dict)
    """What the engine's cache holds now."""
    seconds: float = 0.0
    """Spent in generation calls."""
    share_seconds: float = 0.0
    """Spent in taking in what the others had finished."""
    rollouts: tuple[dict[str, Any], ...] = ()
    """What was finished, in the fields of the trace format."""


class Ranks:
    """This process among all.

    Args:
        processes: of the training.
        index: of this one.
        group: processes that share an engine, beside one another; 0: there is one engine, elsewhere.

    """

    def __init__(self, processes: int, index: int, group: int) -> None:
        self._group = group
        self.speaks = not group or index % group == 0
        """Whether this process tells of its engine."""
        self._engine = index // group if group else 0
        self.engines = processes // group if group else 1

    def gather(self, mine: Report) -> list[Report]:
        """Return every engine's report, in the order of engines; a collective where there are several processes."""
        if not self._group:
            return [mine]
        from accelerate.utils import gather_object

        return list(gather_object([mine])[:: self._group])

    def of_others(self, every: Sequence[Report]) -> list[Report]:
        """Return the reports of the other engines."""
        return [each for engine, each in enumerate(every) if engine != self._engine]
