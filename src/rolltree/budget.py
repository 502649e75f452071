"""How many draft tokens a step should verify: goodput over the whole batch against a step-cost model.

Water-filling (goodput rule; SmartSpec 2406.14066, DAS 2511.13841): draft tokens of all requests are taken in the order
of their survival probability as long as expected tokens per second rise. Requests are never coupled by a common length.
Pure arithmetic on given numbers: no clock, no state, so the same survivals give the same budget.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rolltree.errors import InvalidInputError
from rolltree.types import Float32Array, Int32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Seconds of one engine step that verifies `tokens` tokens in `rows` rows.

    `base + row * rows + token * tokens (+ ragged when any draft is verified)`. Only ratios matter to the budget.
    """

    base: float
    """Seconds of a step whatever its size: weights are read, kernels launched."""
    row: float = 0.0
    """Seconds for each request in the batch."""
    token: float
    """Seconds for each token in the batch, drafts included."""
    ragged: float = 0.0
    """Extra seconds of a step with drafts: gathering, verification."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (np.isfinite(value) and value >= 0):
                raise InvalidInputError(f"cost.{name}", value, "a finite number of seconds, 0 or more")
        if self.base + self.row + self.token <= 0:
            raise InvalidInputError("cost", asdict(self), "positive for a step of one token")

    def seconds(self, rows: float, drafted: float) -> float:
        """Seconds of a step over `rows` requests that verifies `drafted` draft tokens in all."""
        return self.base + self.row * rows + self.token * (rows + drafted) + (self.ragged if drafted else 0.0)

    @classmethod
    def fit(cls, observations: Sequence[tuple[int, int, float]]) -> CostModel:
        """Least squares, non-negative, over (rows, drafted, seconds); relative errors count, not absolute ones."""
        table = np.array(observations, dtype=np.float64)
        if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] != 3 or not (table[:, 2] > 0).all():
            raise InvalidInputError("cost.observations", observations, "two or more (rows, drafted, seconds > 0)")
        rows, drafted, seconds = table.T
        design = np.stack([np.ones_like(rows), rows, rows + drafted, drafted > 0], axis=1) / seconds[:, None]
        base, row, token, ragged = _non_negative(design, np.ones_like(seconds))
        return cls(base=base, row=row, token=max(token, 1e-12), ragged=ragged)

    def save(self, path: str | Path) -> None:
        """Freeze into a JSON file, for tests and replays."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> CostModel:
        """Read a file written by `save`."""
        try:
            return cls(**json.loads(Path(path).read_text()))
        except (TypeError, json.JSONDecodeError) as error:
            raise InvalidInputError("cost.path", str(path), "a file written by CostModel.save", str(error)) from error


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

    Args:
        survival: float32 [B, K], falling along each row; entries past `lengths` are ignored.
        lengths: int32 [B], drafted nodes.
        cost: the step-cost model.

    Returns:
        int32 [B], at most `lengths`. All zero when speculation would lose.

    """
    rows = len(lengths)
    offered = np.arange(survival.shape[1]) < lengths[:, None]
    values = np.sort(survival[offered])[::-1].astype(np.float64)
    if not len(values):
        return np.zeros_like(lengths)
    drafted = np.arange(1, len(values) + 1)
    seconds = cost.seconds(rows, 0) + cost.ragged + cost.token * drafted
    rate = (rows + np.cumsum(values)) / seconds
    best = int(np.argmax(rate))
    if rate[best] <= rows / cost.seconds(rows, 0):
        return np.zeros_like(lengths)
    return np.asarray((offered & (survival >= values[best])).sum(axis=1), dtype=np.int32)
