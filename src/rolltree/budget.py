"""How many draft tokens a step should verify: goodput over the whole batch against a step-cost model.

Water-filling (goodput rule; SmartSpec 2406.14066, DAS 2511.13841): draft tokens of all requests are taken in the order
of their survival probability as long as expected tokens per second rise. Requests have a common length only where the
engine's graphs want one (`one_length`). Pure arithmetic on given numbers: no clock, no state, so the same survivals
give the same budget.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Real
from operator import mul
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from rolltree import _native
from rolltree.errors import InvalidInputError
from rolltree.metrics import Counters
from rolltree.types import Float32Array, Int32Array
from rolltree.writing import to_json, write_text

MOST_SECONDS = 1e12
"""Far beyond any step; sums over a batch stay finite below it."""

TERMS = ("base", "row", "token", "cell", "ragged", "ungraphed")
"""The fields of `CostModel` that are coefficients of `terms`."""

Floats: TypeAlias = npt.NDArray[np.float64]
Number = TypeVar("Number", float, Floats)


def terms(rows: Number, drafted: Number, longest: Number, *, ungraphed: float = 0.0) -> tuple[Any, ...]:
    """What each of `TERMS` is multiplied by: the one place of the formula in Python (the core's is `StepCost`).

    Args:
        rows: requests in the step; this and the two next are numbers, or arrays [n] of n steps.
        drafted: draft tokens verified, over all rows.
        longest: most of them in one row.
        ungraphed: 1 where the engine has full graphs and the step leaves them, else 0; a share, over several steps.

    """
    return 1.0, rows, rows + drafted, rows * (1 + longest), (drafted > 0) * 1.0, ungraphed


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Seconds of one engine step over `rows` requests that verifies `drafted` draft tokens, at most `longest` in a row.

    `base + row * rows + token * (rows + drafted) + cell * rows * (1 + longest) (+ ragged when drafted) (+ ungraphed
    where it leaves the engine's graphs)`, and never below `floor`. Only ratios matter to the budget.
    """

    base: float
    """Seconds of a step whatever its size: weights are read, kernels launched."""
    row: float = 0.0
    """Seconds for each request in the batch."""
    token: float
    """Seconds for each token in the batch, drafts included."""
    cell: float = 0.0
    """Seconds for each cell of the padded rectangle rows x (1 + longest draft): engines that pad their attention."""
    ragged: float = 0.0
    """Extra seconds of a step with drafts: gathering, verification."""
    ungraphed: float = 0.0
    """Extra seconds of a step outside the full CUDA graphs of an engine that has them: its kernels are launched."""
    floor: float = 0.0
    """Seconds of the smallest step: while weights stream from memory a few more tokens cost nothing (roofline)."""

    def __post_init__(self) -> None:
        for name, value in self.fields.items():
            if not _is_seconds(value):
                raise InvalidInputError(f"cost.{name}", value, f"a number of seconds from 0 to {MOST_SECONDS:g}")
        if self.base + self.row + self.token + self.cell + self.floor <= 0:
            raise InvalidInputError("cost", self.fields, "positive for a step of one token")

    @property
    def fields(self) -> dict[str, float]:
        """All fields by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def named(self) -> dict[str, float]:
        """The fields that the core's `StepCost` has, made once: read in every step. Not to be changed."""
        return {name: value for name, value in self.fields.items() if name != "ungraphed"}

    @cached_property
    def outside_graphs(self) -> CostModel:
        """The cost where every step leaves the graphs, made once."""
        return replace(self, base=self.base + self.ungraphed, ungraphed=0.0) if self.ungraphed else self

    @cached_property
    def coefficients(self) -> tuple[float, ...]:
        """The fields `TERMS`, made once."""
        return tuple(getattr(self, name) for name in TERMS)

    def seconds(self, rows: float, drafted: float = 0, longest: float = 0, *, ungraphed: float = 0.0) -> float:
        """Seconds of a step, arguments as of `terms`; see the class. Means over steps may be given as well."""
        return max(self.floor, self._line(rows, drafted, longest, ungraphed))

    def _line(self, rows: float, drafted: float, longest: float, ungraphed: float = 0.0) -> float:
        return float(sum(map(mul, self.coefficients, terms(rows, drafted, longest, ungraphed=ungraphed))))

    def break_even(self, rows: int) -> float:
        """Survival below which no draft token pays in a batch of `rows` requests, whatever else is drafted.

        A token that costs `token` seconds must bring at least the rate of the step without drafts; drafting only raises
        that rate, and the other terms only raise the cost. 0 below the floor, where the first tokens are free.
        """
        plain = self._line(rows, 0, 0)
        return self.token * rows / plain if plain >= self.floor and plain > 0 else 0.0

    @classmethod
    def fit(cls, observations: Sequence[tuple[int, int, int, float]]) -> CostModel:
        """Least squares, non-negative, of relative errors over (rows, drafted, longest, seconds)."""
        allowed = "two or more (rows, drafted, longest, seconds), of finite numbers"
        try:
            table = np.array(observations, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInputError("cost.observations", observations, allowed) from error
        shaped = table.ndim == 2 and table.shape[0] >= 2 and table.shape[1] == 4
        if not (shaped and np.isfinite(table).all() and (table >= 0).all() and (table[:, 3] > 0).all()):
            raise InvalidInputError("cost.observations", observations, allowed)
        seconds = table[:, 3]
        design = np.stack(np.broadcast_arrays(*terms(*table.T[:3])), axis=1)
        found = non_negative_least_squares(design / seconds[:, None], np.ones_like(seconds)).tolist()
        return cls.of(found, least_token=1e-12)

    @classmethod
    def of(cls, coefficients: Iterable[float], *, least_token: float, floor: float = 0.0) -> CostModel:
        """Make a model from the coefficients of `TERMS`; a token costs at least `least_token`."""
        named = dict(zip(TERMS, coefficients, strict=True))
        return cls(**named | {"token": max(named["token"], least_token)}, floor=floor)

    def save(self, path: str | Path) -> None:
        """Freeze into a JSON file, for tests and replays."""
        write_text(path, to_json(self.fields, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> CostModel:
        """Read a file written by `save`."""
        try:
            return cls(**json.loads(Path(path).read_text()))
        except (TypeError, ValueError, OSError, RecursionError) as error:  # of the file, its text, or its numbers
            raise InvalidInputError("cost.path", str(path), "a file written by CostModel.save", str(error)) from error


def priced_steps(
    cost: CostModel, *, steps: float, row_steps: float, tokens: float, drafted: float, longest: float | None = None,
    ungraphed: float = 0.0,
) -> tuple[float, float]:  # fmt: skip
    """Price steps that verified drafts, and what their tokens would have taken without: an estimate of time saved.

    With `rows = row_steps / steps`: `steps * cost(rows, drafted / steps, longest)` in place of
    `tokens / rows * cost(rows)`, that is `tokens` row steps of one token each at the same number of rows.

    Args:
        cost: the step-cost model of this machine.
        steps: engine steps, more than 0; all else is over all of them.
        row_steps: pairs of a request and a step, more than 0.
        tokens: what they generated.
        drafted: draft tokens verified.
        longest: most of them in a row of a step; None: their mean.
        ungraphed: share of the steps that left the engine's graphs; without drafts none would.

    Returns:
        Seconds with drafts, seconds without.

    """
    rows = row_steps / steps
    longest = drafted / row_steps if longest is None else longest
    return steps * cost.seconds(rows, drafted / steps, longest, ungraphed=ungraphed), tokens / rows * cost.seconds(rows)


def add_estimate(counts: Counters, cost: CostModel | None, **shape: float) -> None:
    """Add the price of steps to the counters, arguments as of `priced_steps`; nothing while the cost is not known."""
    if cost is not None:
        used, plain = priced_steps(cost, **shape)
        counts.estimated_seconds += used
        counts.estimated_seconds_plain += plain


def _is_seconds(value: object) -> bool:
    number: Any = value
    if type(value) is float:
        return 0 <= value <= MOST_SECONDS
    return isinstance(value, Real) and not isinstance(value, bool) and bool(0 <= number <= MOST_SECONDS)


def non_negative_least_squares(design: Floats, target: Floats) -> Floats:
    """Least squares of `design` [n, k] against `target` [n]; negative coefficients leave one by one.

    An active set that only shrinks: five coefficients need no library.
    """
    scale = np.linalg.norm(design, axis=0)
    scale[scale == 0] = 1.0
    kept = list(range(len(scale)))
    while True:
        solution = np.linalg.lstsq(design[:, kept] / scale[kept], target, rcond=None)[0]
        if (solution >= 0).all():
            break
        kept.pop(int(solution.argmin()))
    full = np.zeros(len(scale))
    full[kept] = solution / scale[kept]
    return full


def allocate(survival: Float32Array, lengths: Int32Array, cost: CostModel) -> Int32Array:
    """Cut drafts to the lengths that maximise expected tokens per second over the whole batch.

    For every useful cap on the longest draft (which the padded rectangle pays for), tokens are taken in the order of
    their survival; the best (cap, number of tokens) wins.

    Args:
        survival: float32 [B, K], falling along each row; entries past `lengths` are ignored.
        lengths: int32 [B], drafted nodes.
        cost: the step-cost model.

    Returns:
        int32 [B], at most `lengths`. All zero when speculation would lose.

    """
    verified = np.empty_like(lengths)
    _native.allocate(np.ascontiguousarray(survival), lengths, **cost.named, verified=verified)
    return verified


def one_length(
    survival: Float32Array, lengths: Int32Array, sizes: Mapping[int, bool], cost: CostModel, *, rows: int | None = None
) -> tuple[int, float]:
    """Choose one draft length for all rows of a step: that with the most expected tokens per second.

    Rows whose draft is shorter are filled up; the fillers are verified and cost as drafts do, and bring nothing.

    Args:
        survival: float32 [B, K], falling along each row; entries past `lengths` are ignored.
        lengths: int32 [B], drafted nodes.
        sizes: the lengths to choose from, each with whether such a step stays in the engine's full graphs; all true
            where it has none. 0, no drafts, may be chosen in any case.
        cost: the step-cost model.
        rows: requests of the step, B or more; those that are not in `survival` have no draft. None: B.

    Returns:
        The length, of equally good ones the smaller, and its expected tokens per second.

    """
    return best_length(_gains(survival, lengths), sizes, cost, rows=len(lengths) if rows is None else rows)


def best_length(gains: Floats, sizes: Mapping[int, bool], cost: CostModel, *, rows: int) -> tuple[int, float]:
    """As `one_length`, by `gains`, float64 [K]: tokens that each place is expected to bring, over all rows."""
    best = 0, 0.0
    for size, replayed in sorted({0: True, **sizes}.items()):
        tokens = rows + float(gains[: min(size, len(gains))].sum())
        rate = tokens / cost.seconds(rows, rows * size, size, ungraphed=float(not replayed))
        best = (size, rate) if rate > best[1] else best
    return best


def rate_of(survival: Float32Array, verified: Int32Array, cost: CostModel, *, rows: int) -> float:
    """Return expected tokens per second of a step that verifies these lengths, int32 [B]; the rest as above."""
    tokens = rows + float(_gains(survival, verified).sum())
    return tokens / cost.seconds(rows, int(verified.sum()), int(verified.max(initial=0)))


def _gains(survival: Float32Array, lengths: Int32Array) -> Floats:
    """Return the tokens that each place brings over all rows, float64 [K]."""
    drafted = np.arange(survival.shape[1]) < lengths[:, None]
    gains: Floats = np.where(drafted, survival, 0.0).sum(axis=0, dtype=np.float64)
    return gains
