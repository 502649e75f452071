"""Run-ahead with vLLM's `AsyncLLM`: while a batch thins out, free slots generate prompts of the next batches.

Carries out what `rolltree.runahead.RunAhead` decides, from the front end alone: nothing of vLLM is changed, and no
request of anybody else is touched. Start the engine with `scheduling_policy="priority"`: run-ahead requests then wait
behind all others and are preempted first. A priority takes no slot from a running request, so they are launched into
free slots only, and cancelled before real requests are submitted. Their text enters the trees, marked `run-ahead`; no
caller sees it. The first turn only: tools and environments are never run ahead.

The step time and what a request adds to it are learned here, from when outputs arrive, unless a cost model is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rolltree.budget import CostModel
from rolltree.errors import InvalidInputError
from rolltree.lengths import LengthEstimator
from rolltree.runahead import Candidate, EngineStep, Launch, PromptOutcome, RunAhead, Snapshot
from rolltree.step_cost import StepCostObserver
from rolltree.tokens import as_tokens
from rolltree.vllm.options import REQUEST_KEY

PRIORITY = 1_000_000
"""Of run-ahead requests; lower numbers go first, and trainers use 0 to the batch size."""
PROVEN_STEPS = 64
"""Steps seen before the learned step time is believed."""
LENGTH_FACTOR = 1.5
"""Longest run-ahead rollout, relative to the prompt's expected length."""
KNOWN_PROMPTS = 1 << 16
"""Prompts whose finished rollouts are counted."""
NO_LIMIT = 2**31 - 1
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One request for one rollout."""

    token_ids: Sequence[int]
    sampling: Any
    """`vllm.SamplingParams` with n = 1."""
    key: str | None = None
    """The user's id of the prompt, as in `extra_args["rolltree"]["key"]`; None: the prompt's tokens."""

    @property
    def identity(self) -> str:
        """What the controller calls the prompt."""
        if self.key is not None:
            return f"user:{self.key}"
        return hashlib.blake2b(as_tokens(self.token_ids).tobytes(), digest_size=16).hexdigest()


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
    outputs: int = 0
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Batch:
    """One call of `generate`."""

    real: dict[str, _Real] = field(default_factory=dict)
    done: list[_Real] = field(default_factory=list)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    pacemaker: str = ""
    """The real request whose outputs mark the engine's steps."""
    since: float = 0.0


class RunAheadLLM:
    """Generates batches through an `AsyncLLM`, and works ahead in their tails.

    Args:
        engine: a `vllm.v1.engine.async_llm.AsyncLLM`, made with `scheduling_policy="priority"`.
        slots: its `max_num_seqs`.
        control: decides; None takes default settings.
        cost: frozen step-cost model; None learns it.
        clock: seconds.

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
        self._clock = clock
        self._rollouts: OrderedDict[str, int] = OrderedDict()
        self._ahead: dict[str, _Ahead] = {}
        self._lock = asyncio.Lock()
        self._tokens = 0

    async def generate(self, requests: Sequence[Prompt], upcoming: Sequence[Sequence[Prompt]] = ()) -> list[Any]:
        """Run the requests to their end; their last `RequestOutput`s in order, with all tokens.

        `upcoming[i]` are the requests of the i-th call after this. When this returns or raises, no run-ahead request is
        left in the engine.

        Raises:
            InvalidInputError: a request for more than one sample.

        """
        for request in requests:
            if request.sampling.n != 1:
                raise InvalidInputError("sampling.n", request.sampling.n, "1", "Send one request for each sample.")
        await self.make_way()
        batch = self._new_batch(requests, upcoming)
        driver = asyncio.create_task(self._drive(batch))
        tasks = [asyncio.create_task(self._run_real(batch, request)) for request in requests]
        try:
            outputs = await asyncio.gather(*tasks)
        finally:
            for task in [driver, *tasks]:
                task.cancel()
            await self.make_way()
            with contextlib.suppress(asyncio.CancelledError):
                await driver
        self._close(batch)
        return list(outputs)

    async def make_way(self) -> None:
        """Cancel all run-ahead now: call it before real requests are submitted to the engine in another way."""
        async with self._lock:  # a request that is being added cannot be aborted yet
            ahead, self._ahead = self._ahead, {}
            if ahead:
                await self.engine.abort(list(ahead))
            for request in ahead.values():
                if request.task is not None:
                    request.task.cancel()
                self.control.finished(request.launch, request.tokens, cancelled=True)

    def _new_batch(self, requests: Sequence[Prompt], upcoming: Sequence[Sequence[Prompt]]) -> _Batch:
        batch = _Batch(since=self._clock())
        for soon, coming in enumerate(upcoming, start=1):
            for prompt in coming:
                if prompt.identity not in batch.prompts:
                    batch.prompts[prompt.identity] = prompt
                    batch.candidates.append(self._candidate(prompt, soon))
        self.control.begin_step(self._tokens or sum(self._useful(request) for request in requests))
        return batch

    def _candidate(self, prompt: Prompt, soon: int) -> Candidate:
        cost = self._cost()
        prefill = 0.0 if cost is None else cost.token * len(prompt.token_ids)
        return Candidate(
            key=prompt.identity,
            rollouts=self._rollouts.get(prompt.identity, 0),
            soon=soon,
            max_tokens=self._useful(prompt),
            prefill_seconds=prefill,
        )

    def _useful(self, prompt: Prompt) -> int:
        limit = prompt.sampling.max_tokens or NO_LIMIT
        left = self.lengths.remaining([prompt.identity], np.zeros(1, np.int64), np.array([limit], np.int64))
        return min(limit, math.ceil(LENGTH_FACTOR * float(left[0])))

    async def _run_real(self, batch: _Batch, request: Prompt) -> Any:
        from vllm.sampling_params import RequestOutputKind

        name, state = _name("real"), _Real(request.identity, request.sampling.max_tokens or NO_LIMIT)
        sampling = request.sampling.clone()
        sampling.output_kind = RequestOutputKind.CUMULATIVE
        batch.real[name] = state
        try:
            prompt = {"prompt_token_ids": list(request.token_ids)}
            async for output in self.engine.generate(prompt, sampling, name):
                state.tokens, state.outputs = len(output.outputs[0].token_ids), state.outputs + 1
                self._tick(batch, name)
        finally:
            batch.done.append(batch.real.pop(name))
            batch.changed.set()
        return output

    def _tick(self, batch: _Batch, name: str) -> None:
        """A real request got tokens: one engine step has passed when it is the pacemaker's."""
        if batch.pacemaker not in batch.real:
            batch.pacemaker = name  # its first interval is not one step
            self._share(batch)
        elif name == batch.pacemaker:
            seconds, live, running = self._share(batch), len(batch.real), len(self._ahead)
            self.observer.observe(min(live, self.slots) + running, 0, 0, seconds)
            row = self._row_seconds(min(live, self.slots) + running)
            self.control.observe(
                EngineStep(seconds=seconds, live_steps=min(live, self.slots), running_steps=running, row_seconds=row)
            )
        batch.changed.set()

    def _share(self, batch: _Batch) -> float:
        now = self._clock()
        seconds, batch.since = now - batch.since, now
        for state in batch.real.values():
            state.seconds += seconds / len(batch.real)
        return seconds

    async def _drive(self, batch: _Batch) -> None:
        while True:
            await batch.changed.wait()
            batch.changed.clear()
            decision = self.control.decide(self._snapshot(batch), batch.candidates)
            if decision.stop and self._ahead:
                await self.make_way()
            for launch in decision.launch:
                await self._launch(batch, launch)

    def _snapshot(self, batch: _Batch) -> Snapshot:
        live, cost = min(len(batch.real), self.slots), self._cost()
        return Snapshot(
            clock=self._clock(),
            live=live,
            waiting=len(batch.real) - live,
            running=len(self._ahead),
            capacity=self.slots,
            step_seconds=0.0 if cost is None else cost.seconds(max(live, 1)),
            row_seconds=self._row_seconds(live + 1),
            tail_tokens=self._tail(batch),
        )

    def _cost(self) -> CostModel | None:
        if self.cost is not None:
            return self.cost
        return self.observer.freeze() if self.observer.observations >= PROVEN_STEPS else None

    def _row_seconds(self, rows: int) -> float:
        """Seconds that the last of `rows` requests adds; 0 where it is not known."""
        cost = self._cost()
        return 0.0 if cost is None else cost.seconds(max(rows, 2)) - cost.seconds(max(rows, 2) - 1)

    def _tail(self, batch: _Batch) -> float:
        if len(batch.real) >= self.slots or not batch.real:
            return math.inf
        live = list(batch.real.values())
        lengths, limits = np.array([r.tokens for r in live]), np.array([r.limit for r in live])
        return float(self.lengths.remaining([r.identity for r in live], lengths, limits).max())

    async def _launch(self, batch: _Batch, launch: Launch) -> None:
        from vllm.sampling_params import RequestOutputKind

        prompt, name = batch.prompts[launch.key], _name("ahead")
        sampling = prompt.sampling.clone()
        sampling.max_tokens, sampling.seed, sampling.output_kind = launch.max_tokens, None, RequestOutputKind.DELTA
        sampling.min_tokens = min(sampling.min_tokens, launch.max_tokens)
        mark = {"kind": "run-ahead"} | ({} if prompt.key is None else {"key": prompt.key})
        known = sampling.extra_args or {}
        sampling.extra_args = known | {REQUEST_KEY: known.get(REQUEST_KEY, {}) | mark}
        async with self._lock:
            if not batch.real:  # the last one ended while this waited
                self.control.finished(launch, 0)
                return
            text = {"prompt_token_ids": list(prompt.token_ids)}
            queue = await self.engine.add_request(name, text, sampling, priority=PRIORITY)
            self._ahead[name] = state = _Ahead(launch)
            state.task = asyncio.create_task(self._run_ahead(name, state, queue))
        self.control.stalled(next(c.prefill_seconds for c in batch.candidates if c.key == launch.key))

    async def _run_ahead(self, name: str, state: _Ahead, queue: Any) -> None:
        output = None
        while output is None or not output.finished:
            output = queue.get_nowait() or await queue.get()
            state.tokens += len(output.outputs[0].token_ids)
        if self._ahead.pop(name, None) is not None:
            self.control.finished(state.launch, state.tokens)

    def _close(self, batch: _Batch) -> None:
        """Learn the lengths, and tell the controller what each prompt took."""
        seconds, paced, before = dict[str, float](), dict[str, float](), dict[str, int]()
        for real in batch.done:
            name = real.identity
            before.setdefault(name, self._rollouts.get(name, 0))
            seconds[name] = seconds.get(name, 0.0) + real.seconds
            paced[name] = paced.get(name, 0.0) + real.seconds * real.tokens / max(real.outputs, 1)
            self.lengths.add(name, real.tokens)
            self._rollouts[name] = self._rollouts.pop(name, 0) + 1
            if len(self._rollouts) > KNOWN_PROMPTS:
                self._rollouts.popitem(last=False)
        self._tokens = sum(real.tokens for real in batch.done)
        self.control.end_step(
            [PromptOutcome(key=k, rollouts=before[k], seconds=s, paced=paced[k]) for k, s in seconds.items() if s]
        )


def _name(kind: str) -> str:
    """Request ids: their own, and never repeated."""
    return f"rolltree-{kind}-{next(_numbers)}"
