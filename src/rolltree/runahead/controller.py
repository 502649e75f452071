"""The run-ahead controller: when idle slots generate future prompts, which ones, how much, and when to stop.

A pure state machine: it owns no tasks, clients, threads or clocks; the caller hands in frozen snapshots and carries the
decisions out. The same inputs give the same decisions. What it promises:

- A launch goes into a slot that has been free for a while; launched and real requests never exceed the capacity.
- Real work that waits, or the end of the real work, stops all run-ahead at once; nothing is waited for.
- Tokens generated and reserved within a training step never exceed its budget.
- A tail step gets longer by at most `max_slowdown`; each launch is expected to save more than it costs.
- When the measured return is negative, it is off for some training steps, twice as many each time.
"""

from __future__ import annotations

import math
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from rolltree.runahead.config import RunAheadConfig
from rolltree.runahead.returns import ReturnMeter
from rolltree.runahead.types import Candidate, Decision, EngineStep, Launch, PromptOutcome, Snapshot

PROOF_STEPS = 4
"""Engine steps for which a slot must have been free: requests that come one by one leave gaps of one or two."""
MIN_TAIL_TOKENS = 16
"""Expected tokens of the longest live request below which nothing is launched: its prefill would not pay."""
MARGIN = 1.5
"""What a launch must be expected to save, relative to its cost: the estimate of the saving is noisy."""
PACE, PACE_STEPS = 2.0, 200
"""Tokens per engine step that run-ahead requests are taken to generate (what siblings alone give), until as many
row-steps were seen."""
STALE = 0.8
"""Worth of a rollout per training step until it is used, policy drift and the chance of eviction."""
FIRST_PAUSE, LONGEST_PAUSE = 4, 64
"""Training steps off after a negative return; doubled each time, because regimes change slowly."""
REMEMBERED = 1 << 14
"""Prompts run ahead and not sampled yet that are remembered; more than any look-ahead of a few batches."""

STOP = Decision(stop=True, launch=(), reason="real work waits")
DONE = Decision(stop=True, launch=(), reason="no real work")


class RunAheadController:
    """Decides; see the module. One training step: `begin_step`, any number of `decide`, `end_step`."""

    def __init__(self, config: RunAheadConfig | None = None) -> None:
        self.config = config or RunAheadConfig()
        self.meter = ReturnMeter()
        self._busy: list[tuple[float, int]] = []  # (clock, real requests) of the last steps
        self._ahead: OrderedDict[str, list[int]] = OrderedDict()  # key -> [launches, tokens] since last sampled
        self._budget = self._spent = self._reserved = 0
        self._pause, self._paused = FIRST_PAUSE, 0
        self._sums = dict.fromkeys(("launched", "tokens", "row_steps", "cancelled", "prompts_used", "tokens_used"), 0)
        self._reason = "no real work"

    @property
    def is_on(self) -> bool:
        """False while it is off after a negative return."""
        return self._paused == 0

    def begin_step(self, real_tokens: int) -> None:
        """Start a training step, with a new budget; `real_tokens`: real tokens that it is expected to generate."""
        share = int(self.config.budget_share * real_tokens)
        self._budget = share if self.config.budget_tokens is None else min(share, self.config.budget_tokens)
        self._spent = 0
        self._busy.clear()

    def decide(self, snapshot: Snapshot, candidates: Iterable[Candidate]) -> Decision:
        """Say what to do now; the caller must carry it out before it submits anything else."""
        free = self._proven_free(snapshot)
        if snapshot.waiting or not snapshot.live:
            decision = STOP if snapshot.waiting else DONE
        else:
            decision = self._fill(snapshot, candidates, free)
        self._reason = decision.reason
        return decision

    def finished(self, launch: Launch, tokens: int, *, cancelled: bool = False) -> None:
        """A launched request ended or was cancelled with `tokens` generated; once for each, or `refused`."""
        self._sums["cancelled"] += cancelled
        self._reserved -= launch.max_tokens
        self._spent += tokens
        self._sums["tokens"] += tokens
        if launch.key in self._ahead:
            self._ahead[launch.key][1] += tokens

    def refused(self, launch: Launch) -> None:
        """A launch found its place taken by real work: as if it had not been decided."""
        self._reserved -= launch.max_tokens
        self._sums["launched"] -= 1
        if launch.key in self._ahead:
            self._ahead[launch.key][0] -= 1

    def observe(self, step: EngineStep) -> None:
        """Take engine steps into account that ran while real requests were live."""
        self._sums["row_steps"] += step.running_steps
        cost = min(step.running_steps * max(step.row_seconds, 0.0), step.seconds)
        self.meter.add_cost(cost)
        self.meter.add_generation(step.seconds - cost, step.live_steps)

    def stalled(self, seconds: float) -> None:
        """Count time that real work lost otherwise: prefills of launched prompts, cancelling."""
        self.meter.add_cost(seconds)

    def end_step(self, outcomes: Sequence[PromptOutcome]) -> None:
        """End a training step: the real rollouts tell what run-ahead was worth."""
        for outcome in outcomes:
            self._use(outcome)
        self.meter.close_step()
        if self._paused:
            self._paused -= 1
        elif self.config.holdout and self.meter.is_negative:
            self._paused, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
            self.meter.forget()

    def is_held_out(self, key: str) -> bool:
        """Whether a prompt is left alone, to be measured against; a property of its key."""
        return bool(self.config.holdout) and zlib.crc32(key.encode()) % self.config.holdout == 0

    def gauges(self) -> dict[str, float]:
        """Sums and states for a logger; ratios are the reader's."""
        return {
            **self._sums,
            "on": float(self.is_on),
            "budget_tokens": self._budget,
            "budget_left_tokens": self._budget - self._spent - self._reserved,
            "saved_seconds": self.meter.saved_seconds,
            "cost_seconds": self.meter.cost_seconds,
            "return_seconds": self.meter.saved_seconds - self.meter.cost_seconds,
            "saving_seconds_per_ahead_token": self.meter.saving_per_ahead_token,
            "holdout_measured": float(self.meter.is_measured),
        }

    @property
    def reason(self) -> str:
        """Reason of the last decision."""
        return self._reason

    def _proven_free(self, snapshot: Snapshot) -> int:
        """Slots that no real request used during the last steps."""
        since = snapshot.clock - PROOF_STEPS * snapshot.step_seconds
        self._busy.append((snapshot.clock, snapshot.live + snapshot.waiting))
        while len(self._busy) > 1 and self._busy[1][0] <= since:
            self._busy.pop(0)
        return snapshot.capacity - max(real for _, real in self._busy) if self._busy[0][0] <= since else 0

    def _fill(self, snapshot: Snapshot, candidates: Iterable[Candidate], free: int) -> Decision:
        room = min(free - snapshot.running, self._affordable(snapshot) - snapshot.running)
        reason = self._obstacle(snapshot, room)
        launch = list[Launch]()
        if not reason:
            reason = "no cold prompts"
            for candidate in self._order(candidates):
                if len(launch) == room:
                    reason = "slots full"
                    break
                if not self._pays(candidate, snapshot):
                    reason = "not worth it"
                    continue
                if self._budget - self._spent - self._reserved < candidate.max_tokens:
                    reason = "budget spent"
                    break
                launch.append(self._launch(candidate))
        return Decision(stop=False, launch=tuple(launch), reason=reason)

    def _affordable(self, snapshot: Snapshot) -> int:
        if snapshot.row_seconds <= 0:  # below the floor of the cost rows are free
            return snapshot.capacity if snapshot.step_seconds > 0 else 0
        return math.floor(self.config.max_slowdown * snapshot.step_seconds / snapshot.row_seconds)

    def _obstacle(self, snapshot: Snapshot, room: int) -> str:
        """Why nothing may be launched, or an empty string."""
        if self._paused:
            return "negative return"
        if snapshot.step_seconds <= 0:
            return "step cost unknown"
        if room <= 0:
            return "slots full"
        return "tail too short" if snapshot.tail_tokens < MIN_TAIL_TOKENS else ""

    def _pays(self, candidate: Candidate, snapshot: Snapshot) -> bool:
        """Whether a launch is expected to save clearly more than it costs; it may be cut short by the tail's end."""
        tokens = min(candidate.max_tokens, snapshot.tail_tokens)
        cost = candidate.prefill_seconds + tokens * snapshot.row_seconds / self._pace
        return self.config.always or tokens * self.meter.saving_per_ahead_token > MARGIN * cost

    @property
    def _pace(self) -> float:
        """Tokens that a run-ahead request generates in an engine step."""
        return (self._sums["tokens"] + PACE * PACE_STEPS) / (self._sums["row_steps"] + PACE_STEPS)

    def _order(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Candidates worth running ahead, each as often as wanted, the coldest and soonest first."""
        ranked = []
        for place, candidate in enumerate(candidates):
            if self.is_held_out(candidate.key) or candidate.max_tokens < 1:
                continue
            before = self._ahead[candidate.key][0] if candidate.key in self._ahead else 0
            for more in range(self.config.samples - before):
                held = candidate.rollouts + before + more
                if held < self.config.warm_rollouts:
                    ranked.append((-(STALE**candidate.soon) / (1 + held) ** 2, place, candidate))
        return [candidate for _, _, candidate in sorted(ranked, key=lambda item: item[:2])]

    def _launch(self, candidate: Candidate) -> Launch:
        launches = self._ahead.setdefault(candidate.key, [0, 0])
        self._ahead.move_to_end(candidate.key)
        if len(self._ahead) > REMEMBERED:
            self._ahead.popitem(last=False)
        made = Launch(key=candidate.key, sample=launches[0], max_tokens=candidate.max_tokens)
        launches[0] += 1
        self._reserved += made.max_tokens
        self._sums["launched"] += 1
        return made

    def _use(self, outcome: PromptOutcome) -> None:
        _, tokens = self._ahead.pop(outcome.key, (0, 0))
        if tokens:
            self._sums["prompts_used"] += 1
            self._sums["tokens_used"] += tokens
            self.meter.add_outcome(treated=True, seconds=outcome.seconds, paced=outcome.paced, ahead_tokens=tokens)
        elif self.is_held_out(outcome.key) and outcome.rollouts < self.config.warm_rollouts:
            self.meter.add_outcome(treated=False, seconds=outcome.seconds, paced=outcome.paced)
