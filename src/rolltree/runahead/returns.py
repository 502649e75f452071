"""Whether run-ahead pays: seconds of generation that it saved against seconds that it cost the tail.

Saved: prompts that were run ahead are compared with cold prompts of the same steps that were left alone (the holdout).
With work w (row-step equivalents) and tokens T of each side, each treated token saves `d = w_control / T_control -
w_treated / T_treated` row-steps; a row-step is worth the step's generation seconds over its real row-steps. So saved =
T_treated * d * seconds / row_steps. This takes the occupancy of the engine as given. It understates the gain where a
tree that all prompts share lets the holdout profit too, and it is noisy when prompts differ, so sums run over several
training steps, and a verdict needs a minimum of prompts on both sides.

Cost: run-ahead row-steps times the seconds that a row adds to a step, while real requests were live, plus what
prefills and cancelling took. No clock, no randomness.
"""

from __future__ import annotations

from rolltree.metrics import ratio

FADE = 0.8
"""Factor on all sums per training step: a verdict rests on about the last five."""
MIN_PROMPTS = 4.0
"""Prompts on either side before there is a verdict; a holdout of one in eight gets there within two small steps."""
PRIOR_SAVING = 0.3
"""Row-steps saved by a run-ahead token before anything is measured. Replayed GRPO traces: one rollout of a cold prompt
saves its 8 siblings 0.02 to 0.06 row-steps a token each (2.1 to 2.4 tokens per step), that is 0.16 to 0.5."""
PRIOR_PROMPTS = 2.0
"""Weight of that prior, in prompts."""


class ReturnMeter:
    """Sums of both sides; `close_step` once a training step."""

    def __init__(self) -> None:
        self.saved_seconds = self.cost_seconds = 0.0
        """Since it was made."""
        self._tokens = {"treated": 0.0, "control": 0.0}
        self._work = {"treated": 0.0, "control": 0.0}
        self._prompts = {"treated": 0.0, "control": 0.0}
        self._ahead_tokens = 0.0
        self._recent_saved = self._recent_cost = 0.0
        self._step_tokens = self._step_cost = self._step_seconds = 0.0
        self._step_rows = 0
        self._row_step_seconds = 0.0

    def add_cost(self, seconds: float) -> None:
        """Add seconds that the tail took longer."""
        self._step_cost += seconds

    def add_generation(self, seconds: float, live_steps: int) -> None:
        """Add engine time of the real requests: `live_steps` (request, step) pairs."""
        self._step_seconds += seconds
        self._step_rows += live_steps

    def add_outcome(self, *, treated: bool, tokens: int, work: float, ahead_tokens: int = 0) -> None:
        """Add a prompt's real rollouts; `ahead_tokens`: what was generated ahead for it."""
        side = "treated" if treated else "control"
        self._tokens[side] += tokens
        self._work[side] += work
        self._prompts[side] += 1
        self._ahead_tokens += ahead_tokens
        self._step_tokens += tokens if treated else 0

    def close_step(self) -> None:
        """End a training step's generation: what it saved counts, and older steps fade."""
        if self._step_rows:
            self._row_step_seconds = self._step_seconds / self._step_rows
        saved = self._step_tokens * self.saving_per_token * self._row_step_seconds
        self.saved_seconds += saved
        self.cost_seconds += self._step_cost
        self._recent_saved = self._recent_saved * FADE + saved
        self._recent_cost = self._recent_cost * FADE + self._step_cost
        for sums in (self._tokens, self._work, self._prompts):
            for side in sums:
                sums[side] *= FADE
        self._ahead_tokens *= FADE
        self._step_tokens = self._step_cost = self._step_seconds = 0.0
        self._step_rows = 0

    @property
    def saving_per_token(self) -> float:
        """Row-steps saved by each treated token, measured; 0 while one side is empty."""
        if not (self._tokens["treated"] and self._tokens["control"]):
            return 0.0
        work = {side: self._work[side] / self._tokens[side] for side in self._work}
        return work["control"] - work["treated"]

    @property
    def saving_per_ahead_token(self) -> float:
        """Row-steps saved for each token generated ahead: measured, leaning on the prior while there is little."""
        measured = ratio(self.saving_per_token * self._tokens["treated"], self._ahead_tokens)
        weight = min(self._prompts.values())
        return (measured * weight + PRIOR_SAVING * PRIOR_PROMPTS) / (weight + PRIOR_PROMPTS)

    @property
    def row_step_seconds(self) -> float:
        """Seconds of generation per real row-step: of the running training step, else of the one before."""
        return self._step_seconds / self._step_rows if self._step_rows else self._row_step_seconds

    @property
    def is_measured(self) -> bool:
        """Enough prompts on both sides for a verdict."""
        return min(self._prompts.values()) >= MIN_PROMPTS

    @property
    def recent_return(self) -> float:
        """Seconds saved less seconds cost, of the last steps."""
        return self._recent_saved - self._recent_cost

    def forget(self) -> None:
        """Start the measurement anew; the totals stay."""
        fresh = ReturnMeter()
        fresh.saved_seconds, fresh.cost_seconds = self.saved_seconds, self.cost_seconds
        fresh._row_step_seconds = self._row_step_seconds
        self.__dict__.update(fresh.__dict__)
