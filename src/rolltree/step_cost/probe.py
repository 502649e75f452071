"""When a step should draft otherwise than the fitted cost says, so that there is something to learn from.

Needed when all recent steps drafted alike: nothing, in the worst case, because of a cost that was never true.
"""

from __future__ import annotations

import math
from dataclasses import replace

from rolltree.budget import CostModel

FIRST_PROBE = 4
"""Steps that drafted alike before the first probe; each next one waits twice as long: a probe may be expensive."""
PROBE_EVERY = 64
"""Steps that drafted alike before a probe later on."""
PROBE_SHARE = 0.005
"""Share of the time that probes may cost: after an expensive one the next waits longer."""
PROBE_FACTOR = 4.0
"""How much cheaper or more expensive a probe makes draft tokens look: reaches a prior that is wrong by that much."""
ALIKE = 1.5
"""Ratio of draft tokens per request within which steps count as drafting alike."""


class CostProbe:
    """Decides when a step should draft otherwise than the fit says, so that there is something to learn from."""

    def __init__(self) -> None:
        self._least = self._most = 0.0
        self._alike, self._usual, self._factor = 0, FIRST_PROBE, PROBE_FACTOR
        self._wait = self._usual

    @property
    def _due(self) -> bool:
        return self._alike >= self._wait

    def apply(self, model: CostModel) -> CostModel:
        """Return `model`, or the probe that is due: cheaper drafts where there were none, else more expensive ones."""
        if not self._due:
            return model
        factor = 1 / self._factor if self._most == 0 else self._factor
        return replace(model, token=model.token * factor, cell=model.cell * factor, ragged=model.ragged * factor)

    def observe(self, density: float, excess: float) -> None:
        """Take `density`, draft tokens per request, and `excess`, extra seconds as a share of an undrafted step."""
        low, high = min(self._least, density), max(self._most, density)
        if self._alike and high > ALIKE * low:
            self._factor = PROBE_FACTOR
            self._next(max(excess, 0.0) / PROBE_SHARE if self._due else 0.0)
            return
        self._least, self._most = (low, high) if self._alike else (density, density)
        if self._due:  # even so nothing else came: look further next time
            self._factor = min(self._factor * 2, PROBE_FACTOR**3)
            self._next(0.0)
        self._alike += 1

    def _next(self, least_wait: float) -> None:
        self._usual = min(2 * self._usual, PROBE_EVERY)
        self._alike, self._wait = 0, max(self._usual, math.ceil(least_wait))
