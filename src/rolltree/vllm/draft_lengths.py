"""One draft length for all rows, out of those that the engine captured full CUDA graphs for; or ragged drafts.

A decode step whose rows have one query length replays a full graph where vLLM captured that length; any other one is
launched piece by piece. So a row with fewer drafts than the others is filled up with its last sampled token: fillers
are verified and cost as drafts do. The length follows from what the first rank broadcasts and from the schedule, which
all ranks have, so all ranks cut alike.

Knows no engine: `sizes` and `Graphs` are all that it is told. `rolltree.budget.one_length` is the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rolltree.budget import allocate, one_length, rate_of
from rolltree.serving.lengths import Drafted
from rolltree.serving.timing import Scheduled
from rolltree.types import Int32Array
from rolltree.vllm.ragged import shortened

RAGGED = -1
"""In place of a length: each row has its own."""


@dataclass(frozen=True, slots=True)
class Graphs:
    """Which decode steps the engine has full CUDA graphs for."""

    replays: Callable[[int, int, int], bool]
    """Takes requests, their draft tokens, and the most of one request; returns whether such a step replays one."""
    any_lengths: bool
    """Whether ragged steps do as well as others."""

    def left_by(self, step: Scheduled) -> bool:
        """Whether a step replays none of them: one that reads a prompt fits no graph of one length."""
        reads = step.read > 0 and not self.any_lengths
        return reads or not self.replays(step.rows, step.drafted, step.longest)


@dataclass(frozen=True, slots=True)
class Verified:
    """What the step that runs verifies of each request: places, and drafts among them."""

    places: Mapping[str, int]
    drafts: Mapping[str, int]
    fills: bool = True
    """Whether there can be more places than drafts."""

    def measured(self, ids: Sequence[str], places: Sequence[int]) -> Verified:
        """Return the same where the engine itself has cut the places of these requests."""
        return Verified({id: max(0, n) for id, n in zip(ids, places, strict=True)}, self.drafts)

    def fewer(self) -> dict[str, int]:
        """Return the requests of the step whose drafts had not all a place, with the places that there were."""
        places = self.places
        return {id: places[id] for id, n in self.drafts.items() if id in places and places[id] < n}

    def fillers(self, sampled: Mapping[str, int]) -> tuple[int, int]:
        """Return the fillers verified, and how many of them were accepted.

        Args:
            sampled: tokens that each request got in the step; those that got none verified nothing.

        """
        spare = {id: (n, self.drafts.get(id, 0)) for id, n in self.places.items() if sampled.get(id, 0)}
        filled = sum(max(0, n - drafts) for n, drafts in spare.values())
        return filled, sum(max(0, sampled[id] - 1 - drafts) for id, (_, drafts) in spare.items())


class DraftLengths:
    """How long the drafts of a step are: the rule of one engine, and what its current step does.

    Args:
        way: the option `lengths`.
        sizes: draft lengths that the engine may have full graphs for.
        widest: draft tokens of a request at most.

    """

    def __init__(self, way: str, sizes: Collection[int], *, widest: int) -> None:
        self._way, self._sizes, self._widest = way, sorted({0, *sizes}), widest
        self._graphs: Graphs | None = None
        self._width = widest
        self.length = RAGGED
        """Of all rows of the next step, as `cut` has chosen it."""
        self.verified = Verified({}, {})
        """By the step that runs."""

    @property
    def decides(self) -> bool:
        """Whether `cut` knows more than the budget does by itself."""
        return self._way == "uniform" or self._may_leave or self._width < self._widest

    @property
    def _may_leave(self) -> bool:
        """Whether ragged steps leave full graphs that there are."""
        return self._graphs is not None and not self._graphs.any_lengths

    def begin(self, width: int, graphs: Graphs | None) -> None:
        """Begin to draft for the next step, which has `width` places for each row."""
        self._graphs, self._width = graphs, width
        self.length = 0 if self._way == "uniform" else RAGGED

    def cut(self, drafted: Drafted) -> Int32Array:
        """Choose `length`, and return the lengths to verify, int32 [A]; see `LengthRule`."""
        drafted = replace(drafted, lengths=np.minimum(drafted.lengths, self._width))
        if self._way == "uniform":
            self.length = self._best(drafted)[0]
            return np.minimum(drafted.lengths, self.length)
        if drafted.cost is None:
            return drafted.lengths
        cost = drafted.cost.outside_graphs if self._may_leave else drafted.cost
        ragged = allocate(drafted.survival, drafted.lengths, cost)
        if self._may_leave and self._way == "auto":
            length, rate = self._best(drafted)
            if rate >= rate_of(drafted.survival, ragged, cost, rows=drafted.rows):
                self.length = length
                return np.minimum(drafted.lengths, length)
        return ragged

    def _best(self, drafted: Drafted) -> tuple[int, float]:
        """Return the best one length, and its tokens per second."""
        sizes = self.choices(drafted.rows, drafted.room)
        if drafted.cost is None:  # every draft is to be verified
            longest = int(drafted.lengths.max(initial=0))
            return next((size for size in sizes if size >= longest), max(sizes)), 0.0
        return one_length(drafted.survival, drafted.lengths, sizes, drafted.cost, rows=drafted.rows)

    def choices(self, rows: int, room: int) -> dict[int, bool]:
        """Return the lengths that the next step has places and room for, each with whether it stays in the graphs."""
        sizes = [size for size in self._sizes if size <= self._width and size * rows <= room]
        return {size: self._graphs is None or self._graphs.replays(rows, rows * size, size) for size in sizes}

    def shortened(self, schedule: Any, drafts: Mapping[str, int], length: int) -> Any:
        """Return the schedule with the places that are to be verified; see `ragged.shortened`.

        Steps that read a prompt, or lack places for one length, stay ragged or get a shorter one.

        Args:
            schedule: vLLM's `SchedulerOutput`.
            drafts: draft tokens of each request; none for those that are missing.
            length: of all rows, or RAGGED.

        """
        common = common_places(schedule) if length != RAGGED else None
        places = drafts
        if common is not None:
            length = max(size for size in self._sizes if size <= min(length, common))
            places = dict.fromkeys(schedule.num_scheduled_tokens, length)
        short = shortened(schedule, places)
        return self.whole(short, drafts, fills=common is not None or short.has_structured_output_requests)

    def whole(self, schedule: Any, drafts: Mapping[str, int], *, fills: bool = True) -> Any:
        """Note what the schedule verifies as it is, and return it."""
        places = schedule.scheduled_spec_decode_tokens
        self.verified = Verified({id: len(places.get(id, ())) for id in schedule.num_scheduled_tokens}, drafts, fills)
        return schedule


def common_places(schedule: Any) -> int | None:
    """Return how many draft places every row of a decode step has at least; None where a row reads its prompt."""
    places, counts = schedule.scheduled_spec_decode_tokens, schedule.num_scheduled_tokens
    rows = [len(places.get(id, ())) for id in counts]
    return min(rows, default=0) if schedule.total_num_scheduled_tokens == len(rows) + sum(rows) else None
