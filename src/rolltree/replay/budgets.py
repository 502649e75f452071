"""The cost model that a drafter's budget is told before each simulated step.

Told exactly from the profile, or learned from the simulated steps as an engine would learn it from real ones.
"""

from __future__ import annotations

from typing import Protocol

from rolltree.budget import CostModel
from rolltree.replay.profiles import Load, Profile
from rolltree.step_cost import StepCostObserver


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
