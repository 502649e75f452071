"""Run-ahead over recorded rollouts: the replay's simulated engine, whose free slots generate prompts of the next step.

A training of fresh prompts is made of a recording: each training step generates `samples` rollouts of `prompts` that
did not occur before, in as many slots. What is run ahead is another recorded sample of the same prompt, by the same
checkpoint (in a training, the policy would be one step older). Time is that of a cost profile, so a run can be repeated
exactly. The modes are those of `bench runahead` without coupled noise, which a recording does not have, and `forced`:
run-ahead whether it is expected to pay or not. It shows what the controller spares.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rolltree import machine
from rolltree.config import CacheConfig, DraftConfig
from rolltree.errors import InvalidInputError
from rolltree.replay.budgets import Told
from rolltree.replay.drafters.base import NoDrafter, ReplayDrafter
from rolltree.replay.drafters.tree import RolltreeDrafter
from rolltree.replay.profiles import Load, Profile
from rolltree.replay.records import Rollout
from rolltree.replay.simulator import Simulator, Text
from rolltree.replay.tally import Tally
from rolltree.runahead import Candidate, EngineStep, Launch, PromptOutcome, RunAheadConfig, RunAheadController, Snapshot
from rolltree.runahead.lengths import LengthEstimator
from rolltree.types import DraftBatch

MODES = ("none", "cold", "ahead", "forced", "history")
MAX_DRAFT = 16
LENGTH_FACTOR = 1.5
"""As in `rolltree.engine.runahead`."""
LEAST_ROW_SECONDS = 1e-9
"""A row that costs nothing (a roofline below its knee, no context) is not one of unknown cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A training to simulate."""

    prompts: int
    """Prompts of a training step."""
    samples: int
    """Rollouts of each prompt; the slots of the engine are the product."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """A recorded rollout that may be generated ahead, and its place among them for its prompt."""

    rollout: Rollout
    sample: int


class AheadSimulator(Simulator):
    """The replay's engine with a run-ahead controller at its side; row indices from `real` on are run-ahead."""

    def __init__(
        self, rollouts: Sequence[Rollout], ahead: Sequence[Ahead], drafter: RolltreeDrafter, profile: Profile,
        control: RunAheadController, lengths: LengthEstimator, *, slots: int,
    ) -> None:  # fmt: skip
        tally = Tally(len(rollouts) + len(ahead), MAX_DRAFT)
        super().__init__(rollouts, drafter, profile, tally, slots=slots, max_draft=MAX_DRAFT, budget=Told(profile))
        self.text = Text([*rollouts, *(a.rollout for a in ahead)], MAX_DRAFT + 1)
        self.real, self.control, self.lengths, self.cache = len(rollouts), control, lengths, drafter.cache
        self.idle_steps = self.used_steps = 0
        self.cost_seconds = 0.0
        self.held = np.zeros(len(rollouts) + len(ahead))
        self._places = {(a.rollout.prompt_id, a.sample): (len(rollouts) + i, a.rollout) for i, a in enumerate(ahead)}
        self._launched: dict[int, Launch] = {}
        self._plain = Load(0)
        self._draft_density = 0.0

    def run(self) -> None:
        """Generate the real rollouts; what is ahead then ends as it is."""
        self._admit()
        while self._live:
            self._decide()
            self._step()
            self._retire()
            self._admit()
        self._decide()

    @property
    def _live(self) -> int:
        return int((self._rollout < self.real).sum())

    def _decide(self) -> None:
        decision = self.control.decide(self._snapshot(), self._candidates())
        if decision.stop:
            self._end(self._rollout >= self.real)
        for launch in decision.launch:
            self._launch(launch)

    def _snapshot(self) -> Snapshot:
        live, context = self._live, self._context()
        rows = max(1, len(self._rollout))
        each = context // rows
        here = self.profile.seconds(self._usual(max(live, 1), each))
        return Snapshot(
            clock=self.clock,
            live=live,
            waiting=self.real - self._next,
            running=len(self._launched),
            capacity=self.slots,
            step_seconds=here,
            row_seconds=max(self.profile.seconds(self._usual(max(live, 1) + 1, each)) - here, LEAST_ROW_SECONDS),
            tail_tokens=self._tail(),
        )

    def _usual(self, rows: int, context: int) -> Load:
        drafted = round(self._draft_density * rows)
        return Load(rows, drafted, math.ceil(self._draft_density), 0, rows * context)

    def _tail(self) -> float:
        if self._next < self.real or len(self._rollout) == self.slots:
            return math.inf
        live = self._rollout < self.real
        keys = [self.rollouts[i].prompt_id for i in self._rollout[live].tolist()]
        limits = np.full(len(keys), 2**31 - 1)
        return float(self.lengths.remaining(keys, self._position[live], limits).max(initial=0))

    def _candidates(self) -> list[Candidate]:
        if self._next < self.real or len(self._rollout) == self.slots:
            return []
        first = {key: rollout for (key, sample), (_, rollout) in self._places.items() if sample == 0}
        return [
            Candidate(
                key=key, rollouts=0, soon=1, max_tokens=self._useful(key), prefill_seconds=self._start_seconds(rollout)
            )
            for key, rollout in first.items()
        ]

    def _start_seconds(self, rollout: Rollout) -> float:
        """What a prompt adds to a step, once for each prompt."""
        if rollout.prompt_id in self._prefilled:
            return 0.0
        load = self._usual(max(1, len(self._rollout)), 0)
        more = replace(load, prefill=len(rollout.prompt) - 1)
        return self.profile.seconds(more) - self.profile.seconds(load)

    def _useful(self, key: str) -> int:
        expected = self.lengths.remaining([key], np.zeros(1, np.int64), np.array([2**31 - 1]))
        return math.ceil(LENGTH_FACTOR * float(expected[0]))

    def _launch(self, launch: Launch) -> None:
        place = self._places.get((launch.key, launch.sample))
        if place is None:  # no more was recorded
            self.control.finished(launch, 0)
            return
        index, rollout = place
        self.text.length[index] = min(self.text.length[index], launch.max_tokens)
        if rollout.prompt_id not in self._prefilled:
            self._prefilled.add(rollout.prompt_id)
            self._prefill += len(rollout.prompt) - 1
        handle = self.cache.open(rollout.prompt, key=rollout.prompt_id, run_ahead=True)
        self._launched[index] = launch
        self._rollout = np.append(self._rollout, index)
        self._handle = np.append(self._handle, handle)
        self._position = np.append(self._position, 0)

    def _load(self, batch: DraftBatch) -> Load:
        load = super()._load(batch)
        real = self._rollout < self.real
        context = int((self.text.prompt[self._rollout[real]] + self._position[real]).sum())
        lengths = batch.lengths[real]
        self._plain = Load(int(real.sum()), int(lengths.sum()), int(lengths.max(initial=0)), 0, context)
        self._draft_density = load.drafted / max(1, load.rows)
        return load

    def _spend(self, load: Load) -> None:
        super()._spend(load)
        running, seconds = load.rows - self._plain.rows, self.profile.seconds(load)
        cost = seconds - self.profile.seconds(self._plain) if running else 0.0
        each = cost / running if running else LEAST_ROW_SECONDS
        self.control.observe(
            EngineStep(seconds=seconds, live_steps=self._plain.rows, running_steps=running, row_seconds=each)
        )
        self.held[self._rollout] += seconds / max(1, self._plain.rows)
        self.idle_steps += self.slots - self._plain.rows
        self.used_steps += running
        self.cost_seconds += cost

    def _retire(self) -> None:
        done = (self._rollout >= self.real) & (self._position >= self.text.length[self._rollout])
        if done.any():
            self._end(done)
        super()._retire()

    def _end(self, which: np.ndarray) -> None:
        """End run-ahead rows, whole or not; their text stays in the trees."""
        for index, handle, position in zip(
            self._rollout[which].tolist(), self._handle[which].tolist(), self._position[which].tolist(), strict=True
        ):
            self.cache.close(handle)
            self.control.finished(self._launched.pop(index), position)
        kept = ~which
        self._rollout, self._handle, self._position = self._rollout[kept], self._handle[kept], self._position[kept]


def replay_run_ahead(
    rollouts: Sequence[Rollout], history: Sequence[Rollout], profiles: Sequence[Profile], shapes: Sequence[Shape], *,
    seeds: int = 3, config: RunAheadConfig | None = None, progress: Callable[[str], None] = lambda case: None,
) -> dict[str, object]:  # fmt: skip
    """Simulate every shape under every profile.

    Args:
        rollouts: recorded samples of many prompts, by one checkpoint; more of a prompt than a shape's `samples`.
        history: samples of the same prompts by an earlier checkpoint, for the mode `history`; may be empty.
        profiles: what a step costs.
        shapes: trainings.
        seeds: orders of the prompts; numbers are sums over them.
        config: of the controller.
        progress: called with the name of each case.

    Returns:
        `{"cases": [{profile, prompts, samples, steps, mode, seconds, speedup_over_cold, ...}]}`.

    """
    cases: list[dict[str, object]] = []
    for profile in profiles:
        for shape in shapes:
            progress(f"{profile.name}, {shape.prompts} prompts x {shape.samples}")
            plans = [_plan(rollouts, shape, seed) for seed in range(seeds)]
            modes = MODES if history else MODES[:-1]
            runs = {mode: [_train(plan, mode, shape, profile, history, config) for plan in plans] for mode in modes}
            cases += [_case(profile, shape, mode, runs[mode], runs["cold"]) for mode in modes]
    return {"cases": cases, "seeds": seeds, "machine": machine.describe()}


@dataclass(frozen=True, slots=True)
class _Step:
    real: list[Rollout]
    spare: list[Ahead]


@dataclass(slots=True, kw_only=True)
class _Run:
    seconds: float = 0.0
    first_seconds: float = 0.0
    tokens: int = 0
    row_steps: int = 0
    drafted: int = 0
    steps: int = 0
    idle_steps: int = 0
    used_steps: int = 0
    cost_seconds: float = 0.0
    control: RunAheadController | None = None


def _plan(rollouts: Sequence[Rollout], shape: Shape, seed: int) -> list[_Step]:
    """Deal the prompts into training steps, and each prompt's samples into real ones and ones to run ahead."""
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.prompt_id, []).append(rollout)
    names = [name for name, group in groups.items() if len(group) > shape.samples]
    random.Random(seed).shuffle(names)
    if len(names) < 2 * shape.prompts:
        allowed = f"at most {len(names) // 2}, for two training steps of prompts with a sample to spare"
        raise InvalidInputError("--prompts", shape.prompts, allowed, f"{shape.samples} samples are asked for.")
    steps = []
    for start in range(0, len(names) - shape.prompts + 1, shape.prompts):
        chosen = [groups[name] for name in names[start : start + shape.prompts]]
        real = [r for group in chosen for r in group[: shape.samples]]
        spare = [Ahead(r, i) for group in chosen for i, r in enumerate(group[shape.samples :])]
        steps.append(_Step(real, spare))
    return steps


def _train(
    plan: list[_Step], mode: str, shape: Shape, profile: Profile, history: Sequence[Rollout],
    config: RunAheadConfig | None,
) -> _Run:  # fmt: skip
    drafter: ReplayDrafter = NoDrafter()
    if mode != "none":
        drafter = RolltreeDrafter(CacheConfig(), DraftConfig(max_draft=MAX_DRAFT))
        if mode == "history":
            drafter.remember(history)
    control = _control(mode, config)
    run, lengths, real_tokens = _Run(control=control), LengthEstimator(), 0
    for number, step in enumerate(plan):
        drafter.begin(number + 1)
        spare = plan[number + 1].spare if number + 1 < len(plan) else []
        if isinstance(drafter, RolltreeDrafter):
            control.begin_step(real_tokens or 256 * len(step.real))
            simulator: Simulator = AheadSimulator(
                step.real, spare, drafter, profile, control, lengths, slots=shape.prompts * shape.samples
            )
        else:
            tally = Tally(len(step.real), MAX_DRAFT)
            simulator = Simulator(step.real, drafter, profile, tally, slots=0, max_draft=MAX_DRAFT)
        simulator.run()
        _count(run, simulator, len(step.real), is_first=number == 0)
        if isinstance(simulator, AheadSimulator):
            control.end_step(_outcomes(step.real, simulator, profile))
        real_tokens = sum(r.generated for r in step.real)
        for rollout in step.real:
            lengths.add(rollout.prompt_id, len(rollout.tokens))
    return run


def _control(mode: str, config: RunAheadConfig | None) -> RunAheadController:
    if mode not in ("ahead", "forced"):
        return RunAheadController(RunAheadConfig(budget_tokens=0))
    return RunAheadController(
        config if mode == "ahead" else replace(config or RunAheadConfig(), holdout=0, always=True)
    )


def _count(run: _Run, simulator: Simulator, real: int, *, is_first: bool) -> None:
    run.seconds += simulator.clock
    run.first_seconds += simulator.clock if is_first else 0.0
    run.tokens += int(simulator.text.generated[:real].sum())
    run.row_steps += int(simulator.tally.row_steps[:real].sum())
    run.drafted += int(simulator.tally.drafted[:real].sum())
    run.steps += 1
    if isinstance(simulator, AheadSimulator):
        run.idle_steps += simulator.idle_steps
        run.used_steps += simulator.used_steps
        run.cost_seconds += simulator.cost_seconds


def _outcomes(real: list[Rollout], simulator: AheadSimulator, profile: Profile) -> list[PromptOutcome]:
    """Pace of each prompt; a draft token counts as what it costs at the average load."""
    rows = int(simulator.tally.row_steps[: len(real)].sum())
    per_row = simulator.clock / max(1, rows)
    load = Load(max(1, rows // max(1, simulator.tally.engine_steps)))
    more = replace(load, drafted=int(simulator.tally.drafted.sum()) // max(1, simulator.tally.engine_steps) + 1)
    per_draft = (profile.seconds(more) - profile.seconds(load)) / more.drafted / per_row
    outcomes: dict[str, PromptOutcome] = {}
    for index, rollout in enumerate(real):
        work = float(simulator.tally.row_steps[index]) + per_draft * float(simulator.tally.drafted[index])
        held = float(simulator.held[index])
        known = outcomes.get(
            rollout.prompt_id, PromptOutcome(key=rollout.prompt_id, rollouts=0, seconds=0.0, paced=0.0)
        )
        paced = known.paced + held * rollout.generated / work
        outcomes[rollout.prompt_id] = replace(known, seconds=known.seconds + held, paced=paced)
    return list(outcomes.values())


def _case(profile: Profile, shape: Shape, mode: str, runs: list[_Run], cold: list[_Run]) -> dict[str, object]:
    seconds, base = sum(r.seconds for r in runs), sum(r.seconds for r in cold)
    idle, used = sum(r.idle_steps for r in runs), sum(r.used_steps for r in runs)
    each = [c.seconds / r.seconds for c, r in zip(cold, runs, strict=True)]
    case: dict[str, object] = {
        "profile": profile.name,
        "prompts": shape.prompts,
        "samples": shape.samples,
        "steps": runs[0].steps,
        "mode": mode,
        "seconds": seconds,
        "speedup_over_cold": base / seconds,
        "spread": [min(each), max(each)],
        "tokens": sum(r.tokens for r in runs),
        "tokens_per_step": sum(r.tokens for r in runs) / sum(r.row_steps for r in runs),
        "drafted_per_step": sum(r.drafted for r in runs) / sum(r.row_steps for r in runs),
    }
    if mode in ("ahead", "forced"):
        gauges = [r.control.gauges() for r in runs if r.control is not None]
        names = ("launched", "prompts_used", "tokens_used", "saved_seconds", "return_seconds")
        case |= {
            "slack_row_steps": idle,
            "slack_used": used / idle if idle else 0.0,
            "tail_cost_share": sum(r.cost_seconds for r in runs) / base,
            "first_step_slowdown": sum(r.first_seconds for r in runs) / sum(c.first_seconds for c in cold) - 1,
            "ahead_tokens": sum(g["tokens"] for g in gauges),
            **{name: sum(g[name] for g in gauges) for name in names},
            "measured": sum(g["holdout_measured"] for g in gauges) / len(gauges),
            "on_at_the_end": sum(g["on"] for g in gauges) / len(gauges),
        }
    return case
