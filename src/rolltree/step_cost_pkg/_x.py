"""Learns the step-cost model from the steps that an engine runs anyway.

O(1) work and bounded memory per observation; no clock, no randomness: the same observations give the same model. Knows
neither engine nor drafter. `CostModel.fit` fits a designed experiment; this fits what happens to come by.

How: steps of like shape share a bucket, which keeps a low quantile of its latest times, because other work (garbage
collection, first-call compilation, a prefill in the step) can only slow a step down. The model is a non-negative
least-squares fit of relative errors over the buckets, recent ones first, with a weak pull of every coefficient towards
the prior's share. So what the steps do not tell apart (rows from tokens, when nothing was drafted) keeps the prior's
ratio, and only the scale follows. When all recent steps drafted alike, nothing can be learned about drafting: then a
`model` now and then is a probe, which makes one step draft more, or less, than it would.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rolltree.budget import CostModel

PRIOR = CostModel(base=1.0, row=0.01, token=0.01, cell=0.001, ragged=0.03)
"""Shape of the cost before any step: a token costs a hundredth of the base. Between a 2-core CPU (1/40 to 1/90,
measured on 1M to 135M parameters) and an H100 (1/295, bandwidth over compute): wrong for both, ruinous for none."""

BUCKETS = 256
"""Shapes remembered; the one not seen for longest leaves. A run meets some fifty."""
LATEST = 9
"""Times kept for each bucket: enough to outvote five slow ones."""
QUANTILE = 0.4
"""Taken of the latest times: just below the median, so that more than half of them may be disturbed."""
SMOOTHING = 1 / 8
"""Weight of a new quantile in the bucket's running mean."""
FULL_WEIGHT = 32
"""Observations after which a bucket weighs no more: a shape run for hours must not outvote all others."""
HALF_LIFE = 1024
"""Observations after which a bucket that is not met weighs half: contexts grow, machines change."""
PULL = 0.01
"""Weight of the prior per coefficient against 1 for an observation: a coefficient is known to a factor of three, a step
time to a tenth, and the ratio of these variances is 0.01."""
REFIT = 16
"""Observations between fits, once there have been that many; a fit takes some 100 microseconds."""
FIRST_PROBE = 4
"""Steps that drafted alike before the first probe; each next one waits twice as long, because a prior may be dear."""
PROBE_EVERY = 64
"""Steps that drafted alike before a probe later on."""
PROBE_SHARE = 0.005
"""Share of the time that probes may cost: after a dear one the next waits longer."""
PROBE_FACTOR = 4.0
"""How much cheaper or dearer a probe makes draft tokens look: reaches a prior that is wrong by that much."""
ALIKE = 1.5
"""Ratio of draft tokens per request within which steps count as drafting alike."""
IMPLAUSIBLE = 100.0
"""No shape is that many times faster than the prior says, or one bad clock would rule a fit of relative errors."""
SHORTEST, LONGEST = 1e-9, 1e9
"""Seconds between which a step time counts at all."""
MIN_PULL_SHARE = 0.02
"""Share of a typical step up to which a coefficient that the prior has at nought may move."""

Floats = npt.NDArray[np.float64]


class _Bucket:
    """Steps of like shape: their mean features, and a robust ratio of their times to the prior's."""

    __slots__ = ("count", "features", "latest", "ratio", "seen")

    def __init__(self, features: Floats) -> None:
        self.count, self.seen, self.ratio = 0, 0, 1.0
        self.features = features
        self.latest: deque[float] = deque(maxlen=LATEST)

    def add(self, features: Floats, ratio: float, now: int) -> None:
        self.count += 1
        self.seen = now
        self.latest.append(ratio)
        self.features = self.features + (features - self.features) * max(1 / self.count, SMOOTHING)
        quantile = sorted(self.latest)[int(QUANTILE * (len(self.latest) - 1))]
        whole = self.count - LATEST + 1
        self.ratio += (quantile - self.ratio) * (1.0 if whole <= 1 else max(1 / whole, SMOOTHING))

    def weight(self, now: int) -> float:
        return min(self.count, FULL_WEIGHT) * float(0.5 ** ((now - self.seen) / HALF_LIFE))


class StepCostObserver:
    """Fits a `CostModel` to observed steps.

    Args:
        prior: the cost model to start from. Its ratios are kept until steps say otherwise, its scale is not trusted.

    """

    def __init__(self, prior: CostModel | None = None) -> None:
        self.prior = prior or PRIOR
        self.observations = 0
        """Steps that counted."""
        self._shares = np.array(list(asdict(self.prior).values()))
        self._buckets: OrderedDict[tuple[int, int, int], _Bucket] = OrderedDict()
        self._fitted, self._fitted_at = self.prior, 0
        self._probe = _Probe()

    @property
    def model(self) -> CostModel:
        """The model to draft by in the next step: the fit, or a probe."""
        return self._probe.apply(self.freeze())

    def freeze(self) -> CostModel:
        """Return the fit without probes, for tests, replays and reports."""
        if self.observations - self._fitted_at >= min(REFIT, max(1, self._fitted_at)):
            self._fitted, self._fitted_at = self._fit(), self.observations
        return self._fitted

    def observe(self, rows: int, drafted: int, longest: int, seconds: float) -> None:
        """Take one engine step into account. Leave out the time of a prefill in it if it is known.

        Args:
            rows: requests in the step; a step without any is ignored.
            drafted: draft tokens verified, over all rows.
            longest: most of them in one row.
            seconds: duration of the step; what is no plausible duration (a clock that jumped) is ignored.

        """
        if rows < 1 or not SHORTEST < seconds < LONGEST:
            return
        expected = self.freeze().seconds(rows, 0)
        self.observations += 1
        key = (_grade(rows), _grade(drafted), _grade(longest))
        features = _features(rows, drafted, longest)
        bucket = self._buckets.setdefault(key, _Bucket(features))
        self._buckets.move_to_end(key)
        bucket.add(features, seconds / float(features @ self._shares), self.observations)
        if len(self._buckets) > BUCKETS:
            self._buckets.popitem(last=False)
        self._probe.observe(drafted / rows, bucket.ratio * float(features @ self._shares) / expected - 1)

    def save(self, path: str | Path) -> None:
        """Write the fit; `CostModel.load` reads it frozen, `load` to learn on from."""
        self.freeze().save(path)

    @classmethod
    def load(cls, path: str | Path) -> StepCostObserver:
        """Start from a model written by `save`.

        Raises:
            InvalidInputError: not such a file.

        """
        return cls(CostModel.load(path))

    def _fit(self) -> CostModel:
        buckets = self._buckets.values()
        features = np.array([bucket.features for bucket in buckets])
        weight = np.sqrt([bucket.weight(self.observations) for bucket in buckets])
        ratio = np.array([bucket.ratio for bucket in buckets])
        scale = _weighted_median(ratio, weight)
        prior = self._shares * scale
        seconds = np.maximum(ratio, scale / IMPLAUSIBLE) * (features @ self._shares)
        # A coefficient may leave the prior by about its own size, and by a little of a step where the prior has none.
        typical = np.average(seconds, weights=weight) / np.average(features, axis=0, weights=weight).clip(1)
        pull = math.sqrt(PULL) / np.maximum(prior, MIN_PULL_SHARE * typical)
        design = np.concatenate((features / seconds[:, None] * weight[:, None], np.diag(pull)))
        base, row, token, cell, ragged = _non_negative(design, np.concatenate((weight, pull * prior)))
        floor = 1e-6 * float(seconds.min())  # nothing is free: an unbounded budget would follow
        return CostModel(base=base, row=row, token=max(token, floor), cell=cell, ragged=ragged)


class _Probe:
    """Decides when a step should draft otherwise than the fit says, so that there is something to learn from."""

    def __init__(self) -> None:
        self._least = self._most = 0.0
        self._alike, self._usual, self._factor = 0, FIRST_PROBE, PROBE_FACTOR
        self._wait = self._usual

    @property
    def _due(self) -> bool:
        return self._alike >= self._wait

    def apply(self, model: CostModel) -> CostModel:
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


def _features(rows: int, drafted: int, longest: int) -> Floats:
    """Terms of `CostModel.seconds` in the order of its fields."""
    return np.array([1.0, rows, rows + drafted, rows * (1 + longest), drafted > 0])


def _grade(size: int) -> int:
    """Half octaves, nought apart."""
    return int(2 * math.log2(size)) + 1 if size > 0 else 0


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _non_negative(design: Floats, target: Floats) -> list[float]:
    """Least squares; negative coefficients leave one by one."""
    scale = np.linalg.norm(design, axis=0)
    kept = list(range(len(scale)))
    while True:
        solution = np.linalg.lstsq(design[:, kept] / scale[kept], target, rcond=None)[0]
        if (solution >= 0).all():
            break
        kept.pop(int(solution.argmin()))
    full = np.zeros(len(scale))
    full[kept] = solution / scale[kept]
    return [float(value) for value in full]
