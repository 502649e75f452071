"""What a drafter's budget is told before each simulated step: the cost model, and what a token of a request is worth.

Told exactly from the profile, or learned from the simulated steps as an engine would learn it from real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rolltree.budget import CostModel
from rolltree.lengths import LengthEstimator, makespan_weights
from rolltree.replay.profiles import Load, Profile
from rolltree.replay.records import Rollout
from rolltree.step_cost import StepCostObserver
from rolltree.types import Float32Array, Int64Array

_NO_LIMIT = 2**31 - 1  # a recording does not say how long a rollout might have become


class Budget(Protocol):
    """Where the cost model comes from."""

    def model(self, load: Load) -> CostModel:
        """The cost model for a step like `load`, whose drafts are not known yet."""

    def observe(self, load: Load, seconds: float) -> None:
        """Hear how long a step took."""


class Told:
    """The profile's own cost model: what an engine knows that has learned perfectly."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def model(self, load: Load) -> CostModel:
        """See Budget."""
        return self._profile.model(load)

    def observe(self, load: Load, seconds: float) -> None:
        """See Budget."""


class Learned:
    """A `StepCostObserver` that starts knowing nothing; steps that prefill are not shown to it."""

    def __init__(self) -> None:
        self._observer = StepCostObserver()

    def model(self, load: Load) -> CostModel:
        """See Budget."""
        return self._observer.model

    def observe(self, load: Load, seconds: float) -> None:
        """See Budget."""
        if not load.prefill:
            self._observer.observe(load.rows, load.drafted, load.longest, seconds)


class Worth:
    """What a token of each request is worth when the trainer waits for the last rollout: see `rolltree.lengths`."""

    def __init__(self) -> None:
        self._lengths = LengthEstimator()

    def learn(self, rollouts: Sequence[Rollout]) -> None:
        """Hear of finished rollouts."""
        for rollout in rollouts:
            self._lengths.add(rollout.prompt_id, len(rollout.tokens))

    def weights(self, rollouts: Sequence[Rollout], position: Int64Array) -> Float32Array:
        """Return float32 [B] for live rollouts that stand at `position` [B]."""
        limits = position + _NO_LIMIT
        return makespan_weights(self._lengths.remaining([r.prompt_id for r in rollouts], position, limits))
