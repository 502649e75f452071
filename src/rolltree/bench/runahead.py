"""`rolltree bench runahead`: seconds of training steps whose prompts are all new, with run-ahead and without.

Each training step generates samples of prompts that were never seen, as a first epoch does. Step by step all modes get
the same requests one after the other, so ratios are paired, and all must give the same rollouts:

- `none`: no drafts.
- `cold`: drafts from siblings and from the tree that all prompts share. What run-ahead is compared with.
- `ahead`: the same, and idle rows generate prompts of the next step, with other seeds.
- `ahead-noise`: with the seeds of the next step's requests (coupled noise): the same text as far as the policy stays.
- `forced`, `forced-noise`: the same two, whether run-ahead is expected to pay or not: what the controller spares.
- `history`: as `cold`, but an earlier epoch of these prompts is remembered (their samples, other seeds).

The first step pays for run-ahead and gains nothing by it; the last one gains and pays nothing. With `drift` the policy
moves between steps, on the straight line from the shipped model to one after epochs of GRPO. The tail is that of the
task, or a synthetic one: one request in `TAIL_SHARE` does not stop and runs to `TAIL_TOKENS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from rolltree import machine
from rolltree.budget import CostModel
from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine, EngineConfig, Request, Result
from rolltree.engine.ahead import RunAheadEngine
from rolltree.engine.cost import measure_cost
from rolltree.errors import InvalidInputError
from rolltree.runahead import EngineStep, RunAheadConfig, RunAheadController
from rolltree.sampling import SamplingParams

MODES = ("none", "cold", "ahead", "ahead-noise", "forced", "forced-noise", "history")
AHEAD = MODES[2:6]
TAIL_SHARE = 16
TAIL_TOKENS = 400
Tail = Literal["natural", "long"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """One row of the report."""

    slots: int
    """Rows of the engine; a training step generates as many rollouts."""
    tail: Tail
    samples: int = 8
    """Rollouts of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The model, its task, and where its weights are at each training step."""

    name: str
    model: PreTrainedModel
    prompts: list[list[int]]
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    goal: dict[str, torch.Tensor] = field(default_factory=dict)
    """Weights that the policy moves to; empty: it stays."""
    drift: float = 0.0
    """Share of the way in one training step."""

    def move(self, step: int, start: dict[str, torch.Tensor]) -> None:
        """Set the weights of a training step."""
        share = self.drift * step
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if name in self.goal:
                    weight.copy_(torch.lerp(start[name], self.goal[name].to(weight.dtype), share))


@dataclass(slots=True)
class _Mode:
    """One mode's engine and what it did, by training step."""

    name: str
    engine: Engine
    drafter: TreeDrafter | None
    ahead: RunAheadEngine | None
    slack: _Slack
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    row_steps: list[int] = field(default_factory=list)
    identical: bool = True

    def generate(self, requests: list[Request], upcoming: list[Request]) -> list[Result]:
        before = self.engine.stats.row_steps
        begin, cpu = time.perf_counter(), time.process_time()
        results = self._run(requests, upcoming)
        self.cpu_seconds.append(time.process_time() - cpu)
        self.seconds.append(time.perf_counter() - begin)
        self.tokens.append(sum(len(r.token_ids) for r in results))
        self.row_steps.append(self.engine.stats.row_steps - before)
        return results

    def _run(self, requests: list[Request], upcoming: list[Request]) -> list[Result]:
        if self.ahead is None:
            return self.engine.generate(requests)
        if not self.name.endswith("-noise"):
            upcoming = [replace(r, sampling=replace(r.sampling, seed=_other(r))) for r in upcoming]
        return self.ahead.generate(requests, [upcoming] if upcoming else [])


class _Slack(RunAheadController):
    """The controller, which also counts how much of the slack it uses."""

    def __init__(self, config: RunAheadConfig, slots: int) -> None:
        super().__init__(config)
        self.slots, self.idle_steps, self.used_steps, self.tail_cost = slots, 0, 0, 0.0

    def observe(self, step: EngineStep) -> None:
        super().observe(step)
        self.idle_steps += max(0, self.slots - step.live_steps)
        self.used_steps += step.running_steps
        self.tail_cost += step.running_steps * step.row_seconds


def run_ahead(
    policy: Policy,
    regimes: Sequence[Regime],
    *,
    steps: int = 6,
    repeats: int = 3,
    modes: Sequence[str] = MODES,
    config: RunAheadConfig | None = None,
    cost: CostModel | None = None,
    clock: Callable[[], float] | None = time.perf_counter,
    progress: Callable[[str], None] = lambda case: None,
) -> dict[str, object]:
    """Measure every mode in every regime.

    Args:
        policy: the model and its task.
        regimes: engine sizes and tails.
        steps: training steps, each with prompts of its own.
        repeats: times that everything is repeated with fresh caches.
        modes: out of `MODES`; "cold" is always run.
        config: of the run-ahead controller.
        cost: frozen step-cost model; measured for each regime when None.
        clock: seconds, for the decisions; None: the cost model's, so that the same call decides the same.
        progress: called with the name of each case before it runs.

    Returns:
        `{"cases": [{model, device, slots, tail, mode, seconds, speedup_over_cold, spread, ...}], ...}`, a case for
        each regime and mode. `seconds` are of a training step, the first left out (it can only pay).

    """
    unknown = set(modes) - set(MODES)
    if unknown or steps < 2:
        raise InvalidInputError(
            "--mode", sorted(unknown) or steps, f"out of {', '.join(MODES)}, with two steps or more"
        )
    names = list(dict.fromkeys(["cold", *modes]))
    cases: list[dict[str, object]] = []
    for regime in regimes:
        model = cost or measure_cost(policy.model, slots=regime.slots, max_draft=16)
        runs: list[list[_Mode]] = []
        for repeat in range(repeats):
            progress(f"{regime.slots} slots, {regime.tail} tail, run {repeat + 1} of {repeats}")
            mode = partial(
                _mode, policy=policy, regime=regime, cost=model, config=config or RunAheadConfig(), clock=clock
            )
            runs.append(_run(policy, regime, [mode(name) for name in names], steps, repeat))
        cases += [
            _case(policy, regime, [modes[i] for modes in runs], [modes[0] for modes in runs]) for i in range(len(names))
        ]
    return {
        "cases": cases, "steps": steps, "repeats": repeats, "threads": torch.get_num_threads(),
        "drift_per_step": policy.drift if policy.goal else 0.0, "machine": machine.describe(),
    }  # fmt: skip


def _run(policy: Policy, regime: Regime, modes: list[_Mode], steps: int, repeat: int) -> list[_Mode]:
    start = {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}
    batches = [_requests(policy, regime, repeat * steps + step) for step in range(steps)]
    _remember(policy, regime, modes, batches)
    for step, requests in enumerate(batches):
        policy.move(step, start)
        upcoming = batches[step + 1] if step + 1 < steps else []
        expected: list[list[int]] = []
        for mode in modes:
            if mode.drafter is not None:
                mode.drafter.cache.set_version(step + 1)
            tokens = [r.token_ids for r in mode.generate(requests, upcoming)]
            expected = expected or tokens
            mode.identical &= tokens == expected
    policy.move(0, start)
    return modes


def _mode(
    name: str,
    policy: Policy,
    regime: Regime,
    cost: CostModel,
    config: RunAheadConfig,
    clock: Callable[[], float] | None,
) -> _Mode:
    drafter = None if name == "none" else TreeDrafter(cost=cost)
    longest = max(policy.max_tokens, TAIL_TOKENS if regime.tail == "long" else 0)
    length = max(map(len, policy.prompts)) + longest
    engine = Engine(policy.model, EngineConfig(slots=regime.slots, max_length=length), drafter)
    if name.startswith("forced"):
        config = replace(config, holdout=0, always=True)
    slack = _Slack(config, regime.slots)
    ahead = None
    if name in AHEAD and drafter is not None:
        ahead = RunAheadEngine(engine, drafter, slack, clock=clock)
    return _Mode(name, engine, drafter, ahead, slack)


def _requests(policy: Policy, regime: Regime, step: int) -> list[Request]:
    """Requests of one training step: prompts of its own, samples side by side."""
    count = regime.slots // regime.samples
    made = []
    for index in range(count * regime.samples):
        prompt = policy.prompts[(step * count + index // regime.samples) % len(policy.prompts)]
        sampling = SamplingParams(
            max_tokens=policy.max_tokens, stop_token_ids=policy.stop_token_ids, seed=(step << 32) + index
        )
        if regime.tail == "long" and index % TAIL_SHARE == TAIL_SHARE // 2:
            sampling = replace(sampling, max_tokens=TAIL_TOKENS, stop_token_ids=())
        made.append(Request(prompt, sampling))
    return made


def _remember(policy: Policy, regime: Regime, modes: list[_Mode], batches: list[list[Request]]) -> None:
    """Give `history` an earlier epoch of all prompts, by the policy before its first step."""
    for mode in modes:
        if mode.name == "history" and mode.drafter is not None:
            for requests in batches:
                mode.engine.generate([replace(r, sampling=replace(r.sampling, seed=_other(r))) for r in requests])


def _other(request: Request) -> int:
    return (request.sampling.seed or 0) + (1 << 60)


def _case(policy: Policy, regime: Regime, runs: list[_Mode], cold: list[_Mode]) -> dict[str, object]:
    ratios = [sum(c.seconds[1:]) / sum(r.seconds[1:]) for r, c in zip(runs, cold, strict=True)]
    cpu = [sum(c.cpu_seconds[1:]) / sum(r.cpu_seconds[1:]) for r, c in zip(runs, cold, strict=True)]
    tokens, rows = sum(sum(r.tokens) for r in runs), sum(sum(r.row_steps) for r in runs)
    case: dict[str, object] = {
        "engine": "builtin",
        "model": policy.name,
        "device": str(policy.model.device),
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "slots": regime.slots,
        "samples": regime.samples,
        "tail": regime.tail,
        "mode": runs[0].name,
        "seconds": median(s for r in runs for s in r.seconds[1:]),
        "first_step_slowdown": median(r.seconds[0] / c.seconds[0] for r, c in zip(runs, cold, strict=True)) - 1,
        "speedup_over_cold": median(ratios),
        "spread": [min(ratios), max(ratios)],
        "cpu_speedup_over_cold": median(cpu),
        "real_tokens": tokens,
        "tokens_per_step": tokens / (rows - sum(r.slack.used_steps for r in runs)),
        "identical_rollouts": all(r.identical for r in runs),
    }
    return case | _ahead_numbers(runs)


def _ahead_numbers(runs: list[_Mode]) -> dict[str, Any]:
    """What run-ahead did; empty for the other modes."""
    if runs[0].ahead is None:
        return {}
    gauges = [r.slack.gauges() for r in runs]
    idle = sum(r.slack.idle_steps for r in runs)
    return {
        "slack_row_steps": idle,
        "slack_used": sum(r.slack.used_steps for r in runs) / idle if idle else 0.0,
        "tail_cost_share": sum(r.slack.tail_cost for r in runs) / sum(sum(r.seconds) for r in runs),
        "saved_seconds_estimated": sum(g["saved_seconds"] for g in gauges),
        "cost_seconds_estimated": sum(g["cost_seconds"] for g in gauges),
        **{name: sum(g[name] for g in gauges) for name in ("launched", "tokens", "prompts_used", "tokens_used")},
        "on_at_the_end": min(g["on"] for g in gauges) == 1,
        "reason_at_the_end": runs[0].slack.reason,
    }
