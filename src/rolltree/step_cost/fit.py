"""The fit of a step-cost model to summarised steps: weighted, non-negative, pulled towards a prior, with a floor.

Pure linear algebra on arrays. `seconds = max(floor, features @ coefficients)`: the floor is the time in which weights
stream from memory, below which more tokens are free (roofline). It is taken only where it explains the steps clearly
better than a straight line does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rolltree.budget import Floats, non_negative_least_squares

PULL = 0.01
"""Weight of the prior per coefficient against 1 for an observation: a coefficient is known to a factor of three, a step
time to a tenth, and the ratio of these variances is 0.01."""
MIN_PULL_SHARE = 0.02
"""Share of a typical step up to which a coefficient that is zero in the prior may move."""
FLOOR_GAIN = 0.7
"""A floor must leave less than this share of the squared errors without it, and save at least FLOOR_ERROR."""
FLOOR_ERROR = 0.02
"""Root mean square of the relative error that a floor must explain: less than that changes no decision."""
FLAT_STEPS = 3
"""Shapes that must lie on either side of a floor."""
STARTS = (0.25, 0.5, 0.75)
"""Shares of the shapes, smallest first, that the search for a floor takes as flat to begin with."""
ROUNDS = 3
"""Rounds of a search: it settles after one or two."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted model and how well it fits."""

    coefficients: Floats
    floor: float
    loss: float
    """Weighted squared relative errors."""


class Fitter:
    """One fitting problem: n shapes with `features` [n, k], `seconds` [n] and the root of their `weight` [n]."""

    def __init__(self, features: Floats, seconds: Floats, weight: Floats, prior: Floats, prior_floor: float) -> None:
        self._features, self._seconds, self._weight = features, seconds, weight
        self._prior, self._prior_floor = prior, prior_floor
        self._design = features / seconds[:, None] * weight[:, None]
        # A coefficient may leave the prior by about its own size, and by a little of a step where the prior has none.
        typical = np.average(seconds, weights=weight) / np.average(features, axis=0, weights=weight).clip(1)
        self._pull = math.sqrt(PULL) / np.maximum(prior, MIN_PULL_SHARE * typical)

    def fit(self) -> Fit:
        """Return the straight line, or the prior's floor, unless another floor explains the steps clearly better."""
        flat = self._features @ self._prior < self._prior_floor
        usual = self._with_floor(flat)
        enough = FLOOR_ERROR**2 * float(self._weight @ self._weight)
        if len(flat) < 2 * FLAT_STEPS or usual.loss < enough:
            return usual
        best = min((self._search(share) for share in STARTS), key=lambda found: found.loss)
        clear = best.loss < FLOOR_GAIN * usual.loss and usual.loss - best.loss > enough
        return best if clear else usual

    def _search(self, share: float) -> Fit:
        order = np.argsort(self._features @ self._prior, kind="stable")
        flat = np.zeros(len(order), np.bool_)
        flat[order[: max(FLAT_STEPS, int(share * len(order)))]] = True
        found = self._with_floor(flat)
        for _ in range(ROUNDS):
            now = self._features @ found.coefficients < found.floor
            if (now == flat).all() or not FLAT_STEPS <= now.sum() <= len(now) - FLAT_STEPS:
                break
            flat = now
            found = self._with_floor(flat)
        return found

    def _with_floor(self, flat: Bools) -> Fit:
        """Fit the steps `flat` [n] by one constant, the others by a straight line."""
        target = np.concatenate((self._weight[~flat], self._pull * self._prior))
        coefficients = non_negative_least_squares(np.concatenate((self._design[~flat], np.diag(self._pull))), target)
        floor = self._prior_floor
        if flat.any():
            inverse = self._weight[flat] / self._seconds[flat]
            floor = float(inverse @ self._weight[flat]) / float(inverse @ inverse)
        relative = np.maximum(self._features @ coefficients, floor) / self._seconds - 1
        return Fit(coefficients, floor, float(np.square(relative * self._weight).sum()))
