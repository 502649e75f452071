"""Watches steps and keeps what a fit needs: robust times by shape.

Steps of like shape share a bucket, which keeps a low quantile of its latest times, because other work (garbage
collection, first-call compilation, a prefill in the step) can only slow a step down. The model is fitted to the
buckets, recent ones first, with a weak pull of every coefficient towards the prior's share (`fit`). So what the steps
do not tell apart (rows from tokens, when nothing was drafted) keeps the prior's ratio, and only the scale follows. What
reading prompts adds to a step has terms of its own in the fit, which nobody is told: drafts do not depend on it. When
all recent steps drafted alike, a `model` now and then is a probe (`probe`).
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np

from rolltree.budget import TERMS, CostModel, Floats, terms
from rolltree.step_cost.fit import Fitter
from rolltree.step_cost.probe import CostProbe

PRIOR = CostModel(base=1.0, row=0.01, token=0.01, cell=0.001, ragged=0.03, ungraphed=0.3)
"""Shape of the cost before any step: a token costs a hundredth of the base. Between a 2-core CPU (1/40 to 1/90,
measured on 1M to 135M parameters) and an H100 (1/295, bandwidth over compute): wrong for both, ruinous for none. A step
outside the graphs: between nothing, where kernels outlast their launches, and the half of a step that others report."""

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
REFIT = 32
"""Observations between fits, once there have been that many; a fit takes up to a millisecond."""
YOUNG, SLOW, DOUBT = 3, 8.0, 1 / 64
"""A shape that was met fewer times than that, and is so many times slower than most by the prior's measure, weighs so
much less: kernels are made when they are first launched, for seconds."""
IMPLAUSIBLE = 100.0
"""No shape is that many times faster than the prior says, or one bad clock would rule a fit of relative errors."""
KNOWN_AFTER = 128
"""Steps that counted after which the cost is taken for known: by then it was fitted several times."""
SHORTEST, LONGEST = 1e-9, 1e9
"""Seconds between which a step time counts at all."""


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
        self._shares = np.array((*self.prior.coefficients, 0.0, self.prior.token))  # and of reading: a step, a token
        self._buckets: OrderedDict[tuple[int, ...], _Bucket] = OrderedDict()
        self._fitted, self._fitted_at = self.prior, 0
        self._reading = np.zeros(2)  # what reading adds, fitted: to a step, for each token
        self._probe = CostProbe()

    @property
    def model(self) -> CostModel:
        """The model to draft by in the next step: the fit, or a probe."""
        return self._probe.apply(self.freeze())

    def freeze(self) -> CostModel:
        """Return the fit without probes, for tests, replays and reports."""
        if self.observations - self._fitted_at >= min(REFIT, max(1, self._fitted_at)):
            self._fitted, self._fitted_at = self._fit(), self.observations
        return self._fitted

    @property
    def known(self) -> CostModel | None:
        """The fit once it rests on enough steps, to estimate by; None before."""
        return self.freeze() if self.observations >= KNOWN_AFTER else None

    def observe(
        self, rows: int, drafted: int, longest: int, seconds: float, *, ungraphed: bool = False, read: int = 0
    ) -> None:
        """Take one engine step into account. Leave out the time of a prefill in it if it is known.

        Args:
            rows: requests in the step; a step without any is ignored.
            drafted: draft tokens verified, over all rows.
            longest: most of them in one row.
            seconds: duration of the step; what is no plausible duration (a clock that jumped) is ignored.
            ungraphed: the engine has full graphs, and the step left them.
            read: tokens of prompts that were read besides.

        """
        if rows < 1 or not SHORTEST < seconds < LONGEST:
            return
        expected = self.freeze().seconds(rows, 0) + float(self._reading @ (read > 0, read))
        self.observations += 1
        key = (_grade(rows), _grade(drafted), _grade(longest), _grade(read), ungraphed)
        features = np.array((*terms(rows, drafted, longest, ungraphed=float(ungraphed)), read > 0, read), np.float64)
        bucket = self._buckets.setdefault(key, _Bucket(features))
        self._buckets.move_to_end(key)
        usual = max(self.prior.floor, float(features @ self._shares))
        bucket.add(features, seconds / usual, self.observations)
        if len(self._buckets) > BUCKETS:
            self._buckets.popitem(last=False)
        self._probe.observe(drafted / rows, bucket.ratio * usual / expected - 1)

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
        young = np.array([bucket.count < YOUNG for bucket in buckets])
        weight[young & (ratio > SLOW * _weighted_median(ratio, weight**2))] *= math.sqrt(DOUBT)
        scale = _weighted_median(ratio, weight)
        seconds = np.maximum(ratio, scale / IMPLAUSIBLE) * np.maximum(features @ self._shares, self.prior.floor)
        found = Fitter(features, seconds, weight, self._shares * scale, self.prior.floor * scale).fit()
        least = 1e-6 * float(seconds.min())  # nothing is free: an unbounded budget would follow
        self._reading = found.coefficients[len(TERMS) :]
        return CostModel.of(found.coefficients[: len(TERMS)].tolist(), least_token=least, floor=found.floor)


def _grade(size: int) -> int:
    """Half octaves; zero is one of its own."""
    return int(2 * math.log2(size)) + 1 if size > 0 else 0


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
