"""Whether run-ahead pays: seconds of generation that it saved against seconds that it cost the tail.

Saved: prompts that were run ahead are compared with cold prompts of the same steps that were left alone (the holdout).
Each rollout has a pace, tokens per row-step, and holds the engine for some seconds: each step's time, shared equally
among the real requests in it. So the last requests of a tail weigh what they cost, and all seconds add up to the
generation time. With v the time-weighted mean pace of each side, S treated seconds would have been S v_treated /
v_control: saved = S (v_treated / v_control - 1). This takes the order in which requests end as given, and understates
the gain where a tree that all prompts share lets the holdout profit too.

Prompts differ, so v has a standard error (of a ratio of sums over prompts), and sums run over several training steps.
The expected saving of a token generated ahead is the precision-weighted mean of what was measured and a prior; there is
a verdict only where saved and cost differ by more than the error.

Cost: run-ahead row-steps times the seconds that a row adds to a step, while real requests were live, plus what
prefills and cancelling took. No clock, no randomness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FADE = 0.8
"""Factor on all sums per training step: a verdict rests on about the last five."""
MIN_PROMPTS = 4.0
"""Prompts on either side before anything counts as measured: fewer have no error to speak of."""
PRIOR_SAVING = 0.05
"""Seconds saved by a token generated ahead before anything is measured, in seconds per real row-step: replayed GRPO
traces (aime24, 40 rollouts a step, H100 profile) gave 0.04 with one or two rollouts ahead for 8 samples."""
PRIOR_ERROR = 0.05
"""Standard error of that prior."""


@dataclass(slots=True)
class _Side:
    """Prompts that were treated, or not: sums of seconds s and of s times pace, and of their squares and product."""

    prompts: float = 0.0
    seconds: float = 0.0
    paced: float = 0.0
    seconds2: float = 0.0
    paced2: float = 0.0
    both: float = 0.0

    def add(self, seconds: float, paced: float) -> None:
        self.prompts += 1
        self.seconds += seconds
        self.paced += paced
        self.seconds2 += seconds * seconds
        self.paced2 += paced * paced
        self.both += seconds * paced

    def fade(self) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) * FADE)

    @property
    def pace(self) -> float:
        """Tokens per row-step, time-weighted."""
        return self.paced / self.seconds

    @property
    def relative_variance(self) -> float:
        """Squared standard error of `pace` over its square, prompts being the sample."""
        spread = self.paced2 - 2 * self.pace * self.both + self.pace**2 * self.seconds2
        return max(spread, 0.0) / self.paced**2 * self.prompts / (self.prompts - 1)


class ReturnMeter:
    """Sums of both sides; `close_step` once a training step."""

    def __init__(self) -> None:
        self.saved_seconds = self.cost_seconds = 0.0
        """Since it was made."""
        self._treated, self._control = _Side(), _Side()
        self._ahead_tokens = self._step_treated = 0.0
        self._step_cost = self._step_seconds = 0.0
        self._step_rows = 0
        self._recent_cost = self._row_step_seconds = 0.0
        self._sown = 0.0  # cost of the step before, whose gain comes in this one

    def add_cost(self, seconds: float) -> None:
        """Add seconds that the tail took longer."""
        self._step_cost += seconds

    def add_generation(self, seconds: float, live_steps: int) -> None:
        """Add engine time of the real requests: `live_steps` (request, step) pairs."""
        self._step_seconds += seconds
        self._step_rows += live_steps

    def add_outcome(self, *, treated: bool, seconds: float, paced: float, ahead_tokens: int = 0) -> None:
        """Add a prompt's real rollouts (see `PromptOutcome`); `ahead_tokens`: what was generated ahead for it."""
        (self._treated if treated else self._control).add(seconds, paced)
        self._ahead_tokens += ahead_tokens
        self._step_treated += seconds if treated else 0.0

    def close_step(self) -> None:
        """End a training step's generation: what it saved counts, and older steps fade."""
        if self._step_rows:
            self._row_step_seconds = self._step_seconds / self._step_rows
        self.saved_seconds += self._step_treated * self.saving
        self.cost_seconds += self._step_cost
        self._recent_cost = (self._recent_cost + self._sown) * FADE  # what this step harvested
        self._sown = self._step_cost
        self._treated.fade()
        self._control.fade()
        self._ahead_tokens *= FADE
        self._step_treated = self._step_cost = self._step_seconds = 0.0
        self._step_rows = 0

    @property
    def saving(self) -> float:
        """Seconds saved per treated second, measured; 0 while one side has too few prompts."""
        return self._treated.pace / self._control.pace - 1 if self.is_measured else 0.0

    @property
    def saving_error(self) -> float:
        """Standard error of `saving`; infinite while it is not measured."""
        if not self.is_measured:
            return math.inf
        return (1 + self.saving) * math.sqrt(self._control.relative_variance + self._treated.relative_variance)

    @property
    def saving_per_ahead_token(self) -> float:
        """Seconds saved for each token generated ahead: measured and prior, by their precision."""
        prior = PRIOR_SAVING * self.row_step_seconds
        if not (self.is_measured and self._ahead_tokens):
            return prior
        leverage = self._treated.seconds / self._ahead_tokens
        variance, doubt = (self.saving_error * leverage) ** 2, (PRIOR_ERROR * self.row_step_seconds) ** 2
        weight = doubt / (doubt + variance) if doubt else 1.0
        return weight * self.saving * leverage + (1 - weight) * prior

    @property
    def row_step_seconds(self) -> float:
        """Seconds of generation per real row-step: of the running training step, else of the one before."""
        return self._step_seconds / self._step_rows if self._step_rows else self._row_step_seconds

    @property
    def is_measured(self) -> bool:
        """Enough prompts on both sides."""
        sides = (self._treated, self._control)
        return all(side.prompts >= MIN_PROMPTS and side.paced > 0 for side in sides)

    @property
    def is_negative(self) -> bool:
        """Whether the last steps cost more than they saved, by more than the error."""
        most = self._treated.seconds * (self.saving + self.saving_error) if self.is_measured else math.inf
        return self._recent_cost > most

    def forget(self) -> None:
        """Start the measurement anew; the totals stay."""
        fresh = ReturnMeter()
        fresh.saved_seconds, fresh.cost_seconds = self.saved_seconds, self.cost_seconds
        fresh._row_step_seconds = self._row_step_seconds
        self.__dict__.update(fresh.__dict__)
