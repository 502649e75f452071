"""The replay's simulated engine, whose free slots generate prompts of the next step, over recorded rollouts.

A training of fresh prompts is made of a recording: each training step generates `samples` rollouts of `prompts` that
did not occur before, in as many slots. What is run ahead is another recorded sample of the same prompt, by the same
checkpoint (in a training, the policy would be one step older). Time is that of a cost profile, so a run can be repeated
exactly.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np

from benchmarks.runahead.slack import Slack, numbers
from rolltree import machine
from rolltree.config import CacheConfig, DraftConfig
from rolltree.errors import InvalidInputError
from rolltree.replay.budgets import GivenCost
from rolltree.replay.drafters.base import NoDrafter, ReplayDrafter
from rolltree.replay.drafters.tree import RolltreeDrafter
from rolltree.replay.profiles import Load, Profile
from rolltree.replay.records import Rollout
from rolltree.replay.simulator import Simulator, Text
from rolltree.replay.tally import Tally
from rolltree.runahead import Launch, RunAheadConfig
from rolltree.serving.ahead import NO_LIMIT, AheadDriver, Prompt
from rolltree.types import DraftBatch

MODES = ("none", "cold", "ahead", "forced", "history")
MAX_DRAFT = 16
LEAST_ROW_SECONDS = 1e-9
"""A row that costs nothing (a roofline below its knee, no context) is not one of unknown cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A training to simulate."""

    prompts: int
    """Prompts of a training step."""
    samples: int
    """Rollouts of each prompt; the slots of the engine are the product."""


class ProfileDriver(AheadDriver[int]):
    """The driver of one training, whose steps cost what a profile says."""

    def __init__(self, slots: int, control: Slack, profile: Profile) -> None:
        super().__init__(slots, control, rollouts=lambda prompt: 0)
        self.profile, self.context, self.prefilled = profile, 0, set[str]()

    def usual(self, rows: int) -> Load:
        """Return the load of as many requests as they are now."""
        return Load(rows, round(self.drafted * rows), math.ceil(self.drafted), 0, rows * self.context)

    def step_seconds(self, rows: int) -> float:
        """See `AheadDriver`."""
        return self.profile.seconds(self.usual(rows)) + rows * LEAST_ROW_SECONDS

    def prefill_seconds(self, prompt: Prompt) -> float:
        """See `AheadDriver`; a prompt is prefilled once."""
        if prompt.key in self.prefilled:
            return 0.0
        load = self.usual(max(1, self.load[0]))
        return self.profile.seconds(replace(load, prefill=len(prompt.token_ids) - 1)) - self.profile.seconds(load)


class AheadSimulator(Simulator):
    """A host of the driver, for one training step; row indices from `real` on are run-ahead."""

    def __init__(
        self, rollouts: Sequence[Rollout], spare: Sequence[Rollout], drafter: ReplayDrafter, driver: ProfileDriver
    ) -> None:
        tally, profile = Tally(len(rollouts) + len(spare), MAX_DRAFT), driver.profile
        slots = driver.slots
        super().__init__(rollouts, drafter, profile, tally, slots=slots, max_draft=MAX_DRAFT, budget=GivenCost(profile))
        self.text = Text([*rollouts, *spare], MAX_DRAFT + 1)
        self.real, self.driver = len(rollouts), driver
        self._alone = Load(0)  # the last step without run-ahead
        self._places: dict[str, list[int]] = {}
        for index, rollout in enumerate(spare, start=self.real):
            self._places.setdefault(rollout.prompt_id, []).append(index)
        driver.clock, driver.prefilled = (lambda: self.clock), self._prefilled
        driver.begin([[_prompt(r) for r in spare]], expected_tokens=256 * len(rollouts))
        for index, rollout in enumerate(rollouts):
            driver.started(index, _prompt(rollout).identity, NO_LIMIT, 0)

    def run(self) -> None:
        """Generate the real rollouts; what is ahead then ends as it is."""
        self._admit()
        while self._live:
            self._decide()
            self._step()
            self._retire()
            self._admit()
        self._decide()
        self.driver.end()

    @property
    def _live(self) -> int:
        return int((self._rollout < self.real).sum())

    def _decide(self) -> None:
        for index, position in zip(self._rollout.tolist(), self._position.tolist(), strict=True):
            if index < self.real:
                self.driver.real[index].tokens = position
        self.driver.context = self._context() // max(1, len(self._rollout))
        decision = self.driver.decide(self._live, self.real - self._next)
        if decision.stop:
            self._end(self._rollout >= self.real)
        for launch in decision.launch:
            self._launch(launch)

    def _launch(self, launch: Launch) -> None:
        prompt, again = self.driver.prompt(launch)
        assert prompt.key is not None
        assert isinstance(self.drafter, RolltreeDrafter)
        index = -1 if again else self._places[prompt.key][launch.sample]
        self.driver.launched(index, launch)
        if again:  # no more was recorded
            self.driver.finished(index)
            return
        self.text.length[index] = min(self.text.length[index], launch.max_tokens)
        if prompt.key not in self._prefilled:
            self._prefilled.add(prompt.key)
            self._prefill += len(prompt.token_ids) - 1
        handle = self.drafter.cache.open(prompt.token_ids, key=prompt.key, run_ahead=True)
        self._rollout = np.append(self._rollout, index)
        self._handle = np.append(self._handle, handle)
        self._position = np.append(self._position, 0)

    def _load(self, batch: DraftBatch) -> Load:
        load = super()._load(batch)
        self.driver.drafted = load.drafted / max(1, load.rows)
        real = self._rollout < self.real
        lengths, context = batch.lengths[real], self.text.prompt[self._rollout[real]] + self._position[real]
        self._alone = Load(len(lengths), int(lengths.sum()), int(lengths.max()), 0, int(context.sum()))
        return load

    def _spend(self, load: Load) -> None:
        super()._spend(load)
        together = self.profile.seconds(replace(load, prefill=0))  # prefills are accounted when they are launched
        added = together - self.profile.seconds(self._alone) if self.driver.running else 0.0
        self.driver.stepped(self._alone.rows, len(self.driver.running), added)

    def _retire(self) -> None:
        done = self._position >= self.text.length[self._rollout]
        for index in self._rollout[done & (self._rollout < self.real)].tolist():
            request = self.driver.ended(index)
            request.tokens = int(self.text.generated[index])
            request.row_steps, request.drafted = int(self.tally.row_steps[index]), int(self.tally.drafted[index])
        self._end(done & (self._rollout >= self.real))
        super()._retire()

    def _end(self, which: np.ndarray) -> None:
        """End run-ahead rows, whole or not; their text stays in the trees."""
        ended = (array[which].tolist() for array in (self._rollout, self._handle, self._position))
        for index, handle, position in zip(*ended, strict=True):
            self.drafter.close(handle)
            self.driver.running[index].tokens = position
            self.driver.finished(index)
        kept = ~which
        self._rollout, self._handle, self._position = self._rollout[kept], self._handle[kept], self._position[kept]


def _prompt(rollout: Rollout) -> Prompt:
    """Return a rollout as the driver sees it; a recording does not say how long it might have become."""
    return Prompt(token_ids=rollout.prompt, sampling=SimpleNamespace(max_tokens=None), key=rollout.prompt_id)  # type: ignore[arg-type]


@dataclass(slots=True, kw_only=True)
class Run:
    """What one mode did in a training."""

    slack: Slack
    seconds: float = 0.0
    first_seconds: float = 0.0
    tokens: int = 0
    row_steps: int = 0
    drafted: int = 0
    steps: int = 0

    def count(self, simulator: AheadSimulator) -> None:
        """Add a training step."""
        real = simulator.real
        self.first_seconds += 0.0 if self.steps else simulator.clock
        self.seconds += simulator.clock
        self.tokens += int(simulator.text.generated[:real].sum())
        self.row_steps += int(simulator.tally.row_steps[:real].sum())
        self.drafted += int(simulator.tally.drafted[:real].sum())
        self.steps += 1


Plan = list[tuple[list[Rollout], list[Rollout]]]
"""Of each training step, the real rollouts and those that may be generated ahead for it."""


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


def _plan(rollouts: Sequence[Rollout], shape: Shape, seed: int) -> Plan:
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
        steps.append((real, [r for group in chosen for r in group[shape.samples :]]))
    return steps


def _train(
    plan: Plan, mode: str, shape: Shape, profile: Profile, history: Sequence[Rollout], config: RunAheadConfig | None
) -> Run:
    run = Run(slack=Slack(mode, config, shape.prompts * shape.samples))
    drafter: ReplayDrafter = (
        NoDrafter() if mode == "none" else RolltreeDrafter(CacheConfig(), DraftConfig(max_draft=MAX_DRAFT))
    )
    drafter.remember(history if mode == "history" else [])
    driver = ProfileDriver(run.slack.slots, run.slack, profile)
    for version, ((real, _), (_, spare)) in enumerate(zip(plan, [*plan[1:], ([], [])], strict=True), start=1):
        drafter.begin(version)
        simulator = AheadSimulator(real, spare, drafter, driver)
        simulator.run()
        run.count(simulator)
    return run


def _case(profile: Profile, shape: Shape, mode: str, runs: list[Run], cold: list[Run]) -> dict[str, object]:
    seconds, base = sum(r.seconds for r in runs), sum(r.seconds for r in cold)
    each = [c.seconds / r.seconds for c, r in zip(cold, runs, strict=True)]
    rows = sum(r.row_steps for r in runs)
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
        "tokens_per_step": sum(r.tokens for r in runs) / rows,
        "drafted_per_step": sum(r.drafted for r in runs) / rows,
    }
    if mode in ("ahead", "forced"):
        gauges = [r.slack.gauges() for r in runs]
        case |= numbers([r.slack for r in runs], base) | {
            "first_step_slowdown": sum(r.first_seconds for r in runs) / sum(c.first_seconds for c in cold) - 1,
            "ahead_tokens": sum(g["tokens"] for g in gauges),
            **{name: sum(g[name] for g in gauges) for name in ("saved_seconds", "return_seconds")},
            "measured": sum(g["holdout_measured"] for g in gauges) / len(gauges),
            "on_at_the_end": sum(g["on"] for g in gauges) / len(gauges),
        }
    return case
