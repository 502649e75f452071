"""Seconds of training steps on the built-in engine. Step by step all modes get the same requests one after the other,
so ratios are paired, and all must give the same rollouts.

With `drift` the policy moves between steps, on the straight line from the shipped model to one after epochs of GRPO.
The tail is that of the task, or a synthetic one: one request in `TAIL_SHARE` does not stop and runs to `TAIL_TOKENS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from benchmarks.runahead.slack import Slack, numbers
from rolltree import machine
from rolltree.budget import CostModel
from rolltree.drafting import TreeDrafter
from rolltree.engine import Engine, EngineConfig, Request, Result
from rolltree.engine.ahead import RunAheadEngine
from rolltree.engine.cost import measure_cost
from rolltree.errors import InvalidInputError
from rolltree.runahead import RunAheadConfig
from rolltree.sampling import SamplingParams

MODES = ("none", "cold", "ahead", "ahead-noise", "forced", "forced-noise", "history")
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
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if name in self.goal:
                    weight.copy_(torch.lerp(start[name], self.goal[name].to(weight.dtype), self.drift * step))


class Run:
    """One mode's engine, and what it did in each training step."""

    def __init__(
        self, mode: str, policy: Policy, regime: Regime, cost: CostModel, config: RunAheadConfig | None,
        clock: Callable[[], float] | None,
    ) -> None:  # fmt: skip
        self.mode, self.drafter = mode, None if mode == "none" else TreeDrafter(cost=cost)
        longest = max(policy.max_tokens, TAIL_TOKENS if regime.tail == "long" else 0)
        length = max(map(len, policy.prompts)) + longest
        self.engine = Engine(policy.model, EngineConfig(slots=regime.slots, max_length=length), self.drafter)
        self.slack, self.ahead = Slack(mode, config, regime.slots), None
        if self.drafter is not None and mode.startswith(("ahead", "forced")):
            self.ahead = RunAheadEngine(self.engine, self.drafter, self.slack, clock=clock)
        self.seconds, self.cpu_seconds, self.tokens, self.row_steps = [0.0] * 0, [0.0] * 0, 0, 0
        self.identical = True

    def generate(self, requests: list[Request], upcoming: list[Request]) -> list[Result]:
        """Run a training step by the clock."""
        before = self.engine.stats.row_steps
        begin, cpu = time.perf_counter(), time.process_time()
        if self.ahead is None:
            results = self.engine.generate(requests)
        else:
            coming = upcoming if self.mode.endswith("-noise") else other_seeds(upcoming)
            results = self.ahead.generate(requests, [coming] if coming else [])
        self.cpu_seconds.append(time.process_time() - cpu)
        self.seconds.append(time.perf_counter() - begin)
        self.tokens += sum(len(r.token_ids) for r in results)
        self.row_steps += self.engine.stats.row_steps - before
        return results


def run_ahead(
    policy: Policy, regimes: Sequence[Regime], *, steps: int = 6, repeats: int = 3, modes: Sequence[str] = MODES,
    config: RunAheadConfig | None = None, cost: CostModel | None = None,
    clock: Callable[[], float] | None = time.perf_counter, progress: Callable[[str], None] = lambda case: None,
) -> dict[str, object]:  # fmt: skip
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
        allowed = f"out of {', '.join(MODES)}, with two steps or more"
        raise InvalidInputError("--mode", sorted(unknown) or steps, allowed)
    cases: list[dict[str, object]] = []
    for regime in regimes:
        model = cost or measure_cost(policy.model, slots=regime.slots, max_draft=16)
        repeated: list[list[Run]] = []
        for repeat in range(repeats):
            progress(f"{regime.slots} slots, {regime.tail} tail, run {repeat + 1} of {repeats}")
            names = dict.fromkeys(["cold", *modes])
            runs = [Run(name, policy, regime, model, config, clock) for name in names]
            train(policy, regime, runs, [_requests(policy, regime, repeat * steps + step) for step in range(steps)])
            repeated.append(runs)
        cold = [runs[0] for runs in repeated]
        cases += [_case(policy, regime, list(runs), cold) for runs in zip(*repeated, strict=True)]
    return {
        "cases": cases, "steps": steps, "repeats": repeats, "threads": torch.get_num_threads(),
        "drift_per_step": policy.drift if policy.goal else 0.0, "machine": machine.describe(),
    }  # fmt: skip


def train(policy: Policy, regime: Regime, runs: list[Run], batches: list[list[Request]]) -> None:
    """Let all modes generate the same training steps, while the policy moves."""
    start = {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}
    for run in runs:
        if run.mode == "history":  # an earlier epoch of all prompts, by the policy before its first step
            for requests in batches:
                run.engine.generate(other_seeds(requests))
    for step, (requests, upcoming) in enumerate(zip(batches, [*batches[1:], []], strict=True)):
        policy.move(step, start)
        expected: list[list[int]] = []
        for run in runs:
            if run.drafter is not None:
                run.drafter.cache.set_version(step + 1)
            tokens = [r.token_ids for r in run.generate(requests, upcoming)]
            expected = expected or tokens
            run.identical &= tokens == expected
    policy.move(0, start)


def _requests(policy: Policy, regime: Regime, step: int) -> list[Request]:
    """Requests of one training step: prompts of its own, samples side by side."""
    count, made = regime.slots // regime.samples, []
    for index in range(count * regime.samples):
        prompt = policy.prompts[(step * count + index // regime.samples) % len(policy.prompts)]
        seed = (step << 32) + index
        sampling = SamplingParams(max_tokens=policy.max_tokens, stop_token_ids=policy.stop_token_ids, seed=seed)
        if regime.tail == "long" and index % TAIL_SHARE == TAIL_SHARE // 2:
            sampling = replace(sampling, max_tokens=TAIL_TOKENS, stop_token_ids=())
        made.append(Request(prompt, sampling))
    return made


def other_seeds(requests: list[Request]) -> list[Request]:
    """Return the same requests with seeds that no training step has."""
    return [replace(r, sampling=replace(r.sampling, seed=(r.sampling.seed or 0) + (1 << 60))) for r in requests]


def _case(policy: Policy, regime: Regime, runs: list[Run], cold: list[Run]) -> dict[str, object]:
    ratios = [sum(c.seconds[1:]) / sum(r.seconds[1:]) for r, c in zip(runs, cold, strict=True)]
    cpu = [sum(c.cpu_seconds[1:]) / sum(r.cpu_seconds[1:]) for r, c in zip(runs, cold, strict=True)]
    tokens, rows = sum(r.tokens for r in runs), sum(r.row_steps - r.slack.used_steps for r in runs)
    case: dict[str, object] = {
        "engine": "builtin",
        "model": policy.name,
        "device": str(policy.model.device),
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "slots": regime.slots,
        "samples": regime.samples,
        "tail": regime.tail,
        "mode": runs[0].mode,
        "seconds": median(s for r in runs for s in r.seconds[1:]),
        "first_step_slowdown": median(r.seconds[0] / c.seconds[0] for r, c in zip(runs, cold, strict=True)) - 1,
        "speedup_over_cold": median(ratios),
        "spread": [min(ratios), max(ratios)],
        "cpu_speedup_over_cold": median(cpu),
        "real_tokens": tokens,
        "tokens_per_step": tokens / rows,
        "identical_rollouts": all(r.identical for r in runs),
    }
    return case | (_ahead_numbers(runs) if runs[0].ahead else {})


def _ahead_numbers(runs: list[Run]) -> dict[str, Any]:
    gauges = [r.slack.gauges() for r in runs]
    return numbers([r.slack for r in runs], sum(sum(r.seconds) for r in runs)) | {
        "saved_seconds_estimated": sum(g["saved_seconds"] for g in gauges),
        "cost_seconds_estimated": sum(g["cost_seconds"] for g in gauges),
        "tokens": sum(g["tokens"] for g in gauges),
        "on_at_the_end": min(g["on"] for g in gauges) == 1,
        "reason_at_the_end": runs[0].slack.reason,
    }
