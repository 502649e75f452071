"""How many draft tokens a step should verify: goodput over the whole batch against a step-cost model.

Water-filling (goodput rule; SmartSpec 2406.14066, DAS 2511.13841): draft tokens of all requests are taken in the order
of their survival probability as long as expected tokens per second rise. Requests are never coupled by a common length.
Pure arithmetic on given numbers: no clock, no state, so the same survivals give the same budget.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from rolltree import _native
from rolltree.errors import InvalidInputError
from rolltree.types import Float32Array, Int32Array
from rolltree.writing import to_json, write_text

MOST_SECONDS = 1e12
"""Far beyond any step; sums over a batch stay finite below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Seconds of one engine step over `rows` requests that verifies `drafted` draft tokens, at most `longest` in a row.

    `base + row * rows + token * (rows + drafted) + cell * rows * (1 + longest) (+ ragged when drafted)`, and never
    below `floor`. Only ratios matter to the budget.
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
    floor: float = 0.0
    """Seconds of the smallest step: while weights stream from memory a few more tokens cost nothing (roofline)."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not _is_seconds(value):
                raise InvalidInputError(f"cost.{name}", value, f"a number of seconds from 0 to {MOST_SECONDS:g}")
        if self.base + self.row + self.token + self.cell + self.floor <= 0:
            raise InvalidInputError("cost", asdict(self), "positive for a step of one token")

    def seconds(self, rows: float, drafted: float = 0, longest: float = 0) -> float:
        """Seconds of a step; see the class. Means over steps may be given as well."""
        return max(self.floor, self._line(rows, drafted, longest))

    def _line(self, rows: float, drafted: float, longest: float) -> float:
        per_row = self.row + self.token + self.cell * (1 + longest)
        return self.base + per_row * rows + self.token * drafted + (self.ragged if drafted else 0.0)

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
        rows, drafted, longest, seconds = table.T
        terms = [np.ones_like(rows), rows, rows + drafted, rows * (1 + longest), drafted > 0]
        design = np.stack(terms, axis=1) / seconds[:, None]
        base, row, token, cell, ragged = _non_negative(design, np.ones_like(seconds))
        return cls(base=base, row=row, token=max(token, 1e-12), cell=cell, ragged=ragged)

    def save(self, path: str | Path) -> None:
        """Freeze into a JSON file, for tests and replays."""
        write_text(path, to_json(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> CostModel:
        """Read a file written by `save`."""
        try:
            return cls(**json.loads(Path(path).read_text()))
        except (TypeError, ValueError, OSError, RecursionError) as error:  # of the file, its text, or its numbers
            raise InvalidInputError("cost.path", str(path), "a file written by CostModel.save", str(error)) from error


def _is_seconds(value: object) -> bool:
    number: Any = value
    return isinstance(value, Real) and not isinstance(value, bool) and bool(0 <= number <= MOST_SECONDS)


def _non_negative(design: np.ndarray, target: np.ndarray) -> list[float]:
    """Least squares with the negative coefficients dropped one by one (an active set of four needs no library)."""
    columns = list(range(design.shape[1]))
    while True:
        solution = np.linalg.lstsq(design[:, columns], target, rcond=None)[0]
        if (solution >= 0).all():
            return [float(solution[columns.index(i)]) if i in columns else 0.0 for i in range(design.shape[1])]
        columns.pop(int(np.argmin(solution * np.linalg.norm(design[:, columns], axis=0))))


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
    _native.allocate(np.ascontiguousarray(survival), lengths, **asdict(cost), verified=verified)
    return verified
