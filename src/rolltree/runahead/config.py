"""Settings of run-ahead: frozen, keyword-only, checked when made."""

from __future__ import annotations

from dataclasses import dataclass

from rolltree.errors import InvalidInputError
from rolltree.tokens import check_number, check_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAheadConfig:
    """How much idle compute may be used, and on what."""

    budget_share: float = 0.25
    """Most run-ahead tokens of a training step, relative to its own real tokens (those of the step before)."""
    budget_tokens: int | None = None
    """Most run-ahead tokens of a training step; None: `budget_share` alone."""
    max_slowdown: float = 0.25
    """Most that run-ahead may lengthen an engine step of the tail, relative to the step without."""
    samples: int = 2
    """Rollouts generated ahead for one prompt."""
    warm_rollouts: int = 4
    """Prompts whose tree holds this many rollouts are not run ahead."""
    holdout: int = 8
    """One prompt in this many is never run ahead: what run-ahead saves is measured against them. 0: no measurement, and
    then run-ahead never turns itself off."""
    always: bool = False
    """Launch where it is not expected to pay as well: to measure, not to use."""

    def __post_init__(self) -> None:
        check_number("runahead.budget_share", self.budget_share, 0, 100)
        check_number("runahead.max_slowdown", self.max_slowdown, 0, 100)
        check_whole("runahead.samples", self.samples, 1, 1024)
        check_whole("runahead.warm_rollouts", self.warm_rollouts, 1, 2**31)
        if type(self.holdout) is not int or not (self.holdout == 0 or 2 <= self.holdout <= 65535):
            raise InvalidInputError("runahead.holdout", self.holdout, "0 or a whole number from 2 to 65535")
        if self.budget_tokens is not None:
            check_whole("runahead.budget_tokens", self.budget_tokens, 0, 2**62)
        if not isinstance(self.always, bool):
            raise InvalidInputError("runahead.always", self.always, "true or false")
