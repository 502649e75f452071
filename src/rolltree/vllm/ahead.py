"""Works ahead in an `AsyncLLM` while others generate with it: launches what `RunAhead` decides, and makes way.

Knows the real requests only as far as they are told (`real`): who submits them is somebody else's business. From the
front end alone: nothing of vLLM is changed, and no request of anybody else is touched. Start the engine with
`scheduling_policy="priority"`: run-ahead requests then wait behind all others and are preempted first. A priority takes
no slot from a running request, so they are launched into free slots only, and cancelled before a real request would
find none. Their text enters the trees, marked `run-ahead`; no caller sees it.

The step time and what a request adds to it are learned from when outputs arrive, unless a cost model is given. All
methods run on the engine's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rolltree.budget import CostModel
from rolltree.errors import InvalidInputError
from rolltree.runahead import Candidate, EngineStep, Launch, PromptOutcome, RunAhead, Snapshot
from rolltree.runahead.lengths import LengthEstimator
from rolltree.serving.prompts import Prompt, request_name
from rolltree.serving.request_options import with_options
from rolltree.step_cost import StepCostObserver

PRIORITY = 1_000_000
"""Of run-ahead requests; lower numbers go first, and trainers use 0 to the batch size."""
PROVEN_STEPS = 64
"""Steps seen before the learned step time is believed."""
LENGTH_FACTOR = 1.5
"""Longest run-ahead rollout, relative to the prompt's expected length."""
KNOWN_PROMPTS = 1 << 16
"""Prompts whose finished rollouts are counted."""
NO_LIMIT = 2**31 - 1
Upcoming = Sequence[Sequence[Prompt]]


@dataclass(slots=True)
class _Real:
    """A real request that is not finished."""

    identity: str
    limit: int
    tokens: int = 0
    outputs: int = 0
    seconds: float = 0.0
    """Engine time held: each interval, shared equally among the real requests."""


@dataclass(slots=True)
class _Ahead:
    """A run-ahead request in the engine."""

    launch: Launch
    tokens: int = 0
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Step:
    """One training step's generation."""

    since: float
    real: dict[str, _Real] = field(default_factory=dict)
    done: list[_Real] = field(default_factory=list)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    pacemaker: str = ""
    """The real request whose outputs mark the engine's steps."""
    driver: asyncio.Task[None] | None = None


class AheadDriver:
    """Works ahead between `begin` and `end`.

    Args:
        engine: a `vllm.v1.engine.async_llm.AsyncLLM`, made with `scheduling_policy="priority"`.
        slots: its `max_num_seqs`.
        control: decides; None takes default settings.
        cost: frozen step-cost model; None learns it.
        clock: seconds.

    Raises:
        InvalidInputError: another scheduling policy.

    """

    def __init__(
        self, engine: Any, *, slots: int, control: RunAhead | None = None, cost: CostModel | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        policy = engine.vllm_config.scheduler_config.policy
        if policy != "priority":
            fix = "Without it run-ahead requests could delay real ones."
            raise InvalidInputError("vllm scheduling_policy", policy, "'priority'", fix)
        self.engine, self.slots, self.control, self.cost = engine, slots, control or RunAhead(), cost
        self.observer, self.lengths = StepCostObserver(), LengthEstimator()
        self.lora_request: Any = None
        """Goes with run-ahead requests: that of the real ones, where they have one."""
        self._clock = clock
        self._rollouts: OrderedDict[str, int] = OrderedDict()
        self._ahead: dict[str, _Ahead] = {}
        self._lock = asyncio.Lock()
        self._tokens = 0
        self._step: _Step | None = None

    async def begin(self, upcoming: Upcoming = (), *, expected_tokens: int = 0) -> None:
        """Start a training step; one that was not ended is given up.

        Args:
            upcoming: see `announce`.
            expected_tokens: what this step's real requests will generate; from the second step on, what the step
                before generated is taken.
        """
        await self.end(complete=False)
        self._step = step = _Step(since=self._clock())
        self.announce(upcoming)
        self.control.begin_step(self._tokens or expected_tokens)
        step.driver = asyncio.create_task(self._drive(step))

    def announce(self, upcoming: Upcoming) -> int:
        """Say what comes after this step: `upcoming[i]` are requests of the i-th step from here.

        Returns:
            How many prompts are cold enough to be run ahead.
        """
        assert self._step is not None, "announce() between begin() and end()"
        step = self._step
        for soon, coming in enumerate(upcoming, start=1):
            for prompt in coming:
                if prompt.identity not in step.prompts:
                    step.prompts[prompt.identity] = prompt
                    step.candidates.append(self._candidate(prompt, soon))
        step.changed.set()
        return sum(candidate.rollouts < self.control.config.warm_rollouts for candidate in step.candidates)

    async def end(self, *, complete: bool = True) -> None:
        """End the step: no run-ahead request is left in the engine. Its real requests count where it is complete."""
        step, self._step = self._step, None
        if step is None:
            return
        assert step.driver is not None
        step.driver.cancel()
        await self.make_way()
        with contextlib.suppress(asyncio.CancelledError):
            await step.driver
        if complete:
            self._close(step)

    @contextlib.asynccontextmanager
    async def real(self, identity: str, limit: int | None) -> AsyncIterator[Callable[[int], None]]:
        """Surround a real request, from before it is submitted to its end.

        Yields a function to call with the number of tokens that it has, at each output.
        """
        step = self._step
        if step is None:
            yield lambda tokens: None
            return
        if not step.real:
            step.since = self._clock()  # nothing real ran before
        name, state = request_name("real"), _Real(identity, limit or NO_LIMIT)
        step.real[name] = state  # before anything is awaited: no launch counts on its slot from now on
        if identity in step.prompts:
            step.candidates = [c for c in step.candidates if c.key != identity]  # its time has come
        try:
            busy = len(step.real) + len(self._ahead) + self._lock.locked()  # a launch may be under way
            if busy > self.slots:
                await self.make_way()
            yield lambda tokens: self._tick(step, name, tokens)
        finally:
            step.done.append(step.real.pop(name))
            step.changed.set()

    async def make_way(self) -> None:
        """Cancel all run-ahead now: call it before real requests are submitted that `real` does not surround."""
        async with self._lock:  # a request that is being added cannot be aborted yet
            ahead, self._ahead = self._ahead, {}
            if ahead:
                await self.engine.abort(list(ahead))
            for request in ahead.values():
                if request.task is not None:
                    request.task.cancel()
                self.control.finished(request.launch, request.tokens, cancelled=True)

    def useful_tokens(self, prompt: Prompt) -> int:
        """Return the longest useful rollout of a prompt, by what is known of its lengths."""
        limit = prompt.sampling.max_tokens or NO_LIMIT
        left = self.lengths.remaining([prompt.identity], np.zeros(1, np.int64), np.array([limit], np.int64))
        return min(limit, math.ceil(LENGTH_FACTOR * float(left[0])))

    def _candidate(self, prompt: Prompt, soon: int) -> Candidate:
        cost = self._cost()
        prefill = 0.0 if cost is None else cost.token * len(prompt.token_ids)
        return Candidate(
            key=prompt.identity,
            rollouts=self._rollouts.get(prompt.identity, 0),
            soon=soon,
            max_tokens=self.useful_tokens(prompt),
            prefill_seconds=prefill,
        )

    def _tick(self, step: _Step, name: str, tokens: int) -> None:
        """A real request has `tokens`: one engine step has passed when it is the pacemaker's."""
        state = step.real[name]
        state.tokens, state.outputs = tokens, state.outputs + 1
        if step.pacemaker not in step.real:
            step.pacemaker = name  # its first interval is not one step
            self._share(step)
        elif name == step.pacemaker:
            seconds, live, running = self._share(step), min(len(step.real), self.slots), len(self._ahead)
            self.observer.observe(live + running, 0, 0, seconds)
            row = self._row_seconds(live + running)
            self.control.observe(EngineStep(seconds=seconds, live_steps=live, running_steps=running, row_seconds=row))
        step.changed.set()

    def _share(self, step: _Step) -> float:
        now = self._clock()
        seconds, step.since = now - step.since, now
        for state in step.real.values():
            state.seconds += seconds / len(step.real)
        return seconds

    async def _drive(self, step: _Step) -> None:
        while True:
            await step.changed.wait()
            step.changed.clear()
            decision = self.control.decide(self._snapshot(step), step.candidates)
            if decision.stop and self._ahead:
                await self.make_way()
            for launch in decision.launch:
                await self._launch(step, launch)

    def _snapshot(self, step: _Step) -> Snapshot:
        live, cost = min(len(step.real), self.slots), self._cost()
        return Snapshot(
            clock=self._clock(),
            live=live,
            waiting=len(step.real) - live,
            running=len(self._ahead),
            capacity=self.slots,
            step_seconds=0.0 if cost is None else cost.seconds(max(live, 1)),
            row_seconds=self._row_seconds(live + 1),
            tail_tokens=self._tail(step),
        )

    def _cost(self) -> CostModel | None:
        if self.cost is not None:
            return self.cost
        return self.observer.freeze() if self.observer.observations >= PROVEN_STEPS else None

    def _row_seconds(self, rows: int) -> float:
        """Seconds that the last of `rows` requests adds; 0 where it is not known."""
        cost = self._cost()
        return 0.0 if cost is None else cost.seconds(max(rows, 2)) - cost.seconds(max(rows, 2) - 1)

    def _tail(self, step: _Step) -> float:
        if len(step.real) >= self.slots or not step.real:
            return math.inf
        live = list(step.real.values())
        lengths, limits = np.array([r.tokens for r in live]), np.array([r.limit for r in live])
        return float(self.lengths.remaining([r.identity for r in live], lengths, limits).max())

    async def _launch(self, step: _Step, launch: Launch) -> None:
        from vllm.sampling_params import RequestOutputKind

        prompt, name = step.prompts[launch.key], request_name("ahead")
        sampling = prompt.sampling.clone()
        sampling.max_tokens, sampling.seed, sampling.output_kind = launch.max_tokens, None, RequestOutputKind.DELTA
        sampling.min_tokens = min(sampling.min_tokens, launch.max_tokens)
        mark = {"kind": "run-ahead"} | ({} if prompt.key is None else {"key": prompt.key})
        sampling.extra_args = with_options(sampling.extra_args, **mark)
        async with self._lock:
            full = len(step.real) + len(self._ahead) >= self.slots  # real requests came while this waited
            if full or not step.real or self._step is not step:
                self.control.refused(launch)
                return
            text = {"prompt_token_ids": list(prompt.token_ids)}
            queue = await self.engine.add_request(
                name, text, sampling, lora_request=self.lora_request, priority=PRIORITY
            )
            self._ahead[name] = state = _Ahead(launch)
            state.task = asyncio.create_task(self._run_ahead(name, state, queue))
        self.control.stalled(self._candidate(prompt, 1).prefill_seconds)

    async def _run_ahead(self, name: str, state: _Ahead, queue: Any) -> None:
        output = None
        while output is None or not output.finished:
            output = queue.get_nowait() or await queue.get()
            state.tokens += len(output.outputs[0].token_ids)
        if self._ahead.pop(name, None) is not None:
            self.control.finished(state.launch, state.tokens)

    def _close(self, step: _Step) -> None:
        """Learn the lengths, and tell the controller what each prompt took."""
        seconds, paced, before = dict[str, float](), dict[str, float](), dict[str, int]()
        for real in step.done:
            name = real.identity
            before.setdefault(name, self._rollouts.get(name, 0))
            seconds[name] = seconds.get(name, 0.0) + real.seconds
            paced[name] = paced.get(name, 0.0) + real.seconds * real.tokens / max(real.outputs, 1)
            self.lengths.add(name, real.tokens)
            self._rollouts[name] = self._rollouts.pop(name, 0) + 1
            if len(self._rollouts) > KNOWN_PROMPTS:
                self._rollouts.popitem(last=False)
        self._tokens = sum(real.tokens for real in step.done)
        self.control.end_step(
            [PromptOutcome(key=k, rollouts=before[k], seconds=s, paced=paced[k]) for k, s in seconds.items() if s]
        )
