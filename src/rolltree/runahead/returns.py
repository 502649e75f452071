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

import numpy as np

FADE = 0.8
"""Factor on all sums per training step: a verdict rests on about the last five."""
MIN_PROMPTS = 4.0
"""Prompts on either side before anything counts as measured: fewer have no error to speak of."""
PRIOR_SAVING = 0.05
"""Seconds saved by a token generated ahead before anything is measured, in seconds per real row-step: replayed GRPO
traces (aime24, 40 rollouts a step, H100 profile) gave 0.04 with one or two rollouts ahead for 8 samples."""
PRIOR_ERROR = 0.05
"""Standard error of that prior."""


class _Side:
    """Prompts that were treated, or not."""

    def __init__(self) -> None:
        self.sums = np.zeros(6)
        """Over prompts, of 1, seconds s, s times pace = p, s^2, p^2, s p."""

    def add(self, s: float, p: float) -> None:
        self.sums += (1, s, p, s * s, p * p, s * p)

    @property
    def prompts(self) -> float:
        return float(self.sums[0])

    @property
    def seconds(self) -> float:
        return float(self.sums[1])

    @property
    def pace(self) -> float:
        """Tokens per row-step, time-weighted; 0 without any."""
        return float(self.sums[2] / self.sums[1]) if self.sums[1] else 0.0

    @property
    def relative_variance(self) -> float:
        """Squared standard error of `pace` over its square, prompts being the sample."""
        prompts, _, paced, seconds2, paced2, both = self.sums.tolist()
        spread = paced2 - 2 * self.pace * both + self.pace**2 * seconds2
        return float(max(spread, 0.0) / paced**2 * prompts / (prompts - 1))


class ReturnMeter:
    """Sums of both sides; `close_step` once a training step."""

    def __init__(self) -> None:
        self.saved_seconds = self.cost_seconds = 0.0
        """Since it was made."""
        self._row_step_seconds = 0.0
        self._step_seconds, self._step_rows = 0.0, 0
        self.forget()

    def forget(self) -> None:
        """Start the measurement anew, between two steps; the totals stay."""
        self._treated, self._control = _Side(), _Side()
        self._ahead_tokens = self._step_treated = self._step_cost = 0.0
        self._credited_cost = 0.0  # of steps whose gain is in
        self._open_cost = 0.0  # of the step before, whose gain comes in this one

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
        self._row_step_seconds = self.row_step_seconds
        self.saved_seconds += self._step_treated * self.saving
        self.cost_seconds += self._step_cost
        self._credited_cost = (self._credited_cost + self._open_cost) * FADE
        self._open_cost = self._step_cost
        self._treated.sums *= FADE
        self._control.sums *= FADE
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
        return all(side.prompts >= MIN_PROMPTS and side.pace > 0 for side in (self._treated, self._control))

    @property
    def is_negative(self) -> bool:
        """Whether the last steps cost more than they saved, by more than the error."""
        most = self._treated.seconds * (self.saving + self.saving_error) if self.is_measured else math.inf
        return self._credited_cost > most
