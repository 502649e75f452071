"""Run-ahead in the built-in engine: while a batch thins out, its free rows generate prompts of the next batches.

Carries out what `rolltree.runahead.RunAhead` decides, before each engine step. What is generated ahead goes into the
drafter's trees and nowhere else: no result list and no store holds it. With the coupled rule the real rollouts are the
same, token for token, with and without.

An upcoming request that has a seed is generated ahead with it. Under the coupled rule its noise is then that of the
real request to come, so as far as the policy stays, so does the text: the best draft there is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rolltree.budget import CostModel
from rolltree.drafting import TreeDrafter
from rolltree.engine.engine import Engine, Progress
from rolltree.engine.request import Request, Result
from rolltree.runahead import Candidate, EngineStep, Launch, PromptOutcome, RunAhead, Snapshot
from rolltree.runahead.lengths import LengthEstimator
from rolltree.tokens import prompt_key as key_of

PROVEN_STEPS = 32
"""Observed steps before a learned cost model is believed; a frozen one is at once."""
LENGTH_FACTOR = 1.5
"""Longest run-ahead rollout, relative to the prompt's expected length: two thirds of the rollouts are shorter."""
OTHER_SEED = 0x9E3779B97F4A7C15
"""Added to a seed for more rollouts of a prompt than its requests: odd, 2^64 over the golden ratio."""
TAIL_EVERY = 8
"""Steps between estimates of the tail's length; an estimate costs some 10 microseconds a request."""


@dataclass(slots=True)
class _Prompt:
    """A prompt of coming batches."""

    key: str
    soon: int
    requests: list[Request]


class RunAheadEngine:
    """An engine whose idle rows work ahead; use `generate` in place of the engine's."""

    def __init__(
        self,
        engine: Engine,
        drafter: TreeDrafter,
        control: RunAhead | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """
        Args:
            engine: with `drafter`; its other calls may be used in between.
            drafter: needs a frozen `cost`, unless the engine learns its own.
            control: decides; None takes default settings.
            clock: seconds; None: `time.perf_counter` where the engine learns its cost, else the sum of the cost model's
                step times, so that the same requests give the same decisions.
        """
        self.engine, self.drafter, self.control = engine, drafter, control or RunAhead()
        self.lengths = LengthEstimator()
        self._clock = clock or (time.perf_counter if engine.learner else None)
        self._modelled = 0.0
        self._running: dict[int, Launch] = {}
        self._upcoming: dict[str, _Prompt] = {}
        self._prospects: list[Candidate] = []
        self._live: dict[int, Request] = {}
        self._shares: dict[int, float] = {}  # seconds that each live request held the engine
        self._held: list[int] = []
        self._before = (0.0, 0, 0)  # clock, row steps, draft tokens at the last look
        self._drafted = 0.0  # draft tokens a row of the last step
        self._tail, self._looks = math.inf, 0
        self._tokens = 0

    def generate(
        self,
        requests: Sequence[Request],
        upcoming: Sequence[Sequence[Request]] = (),
        progress: Progress | None = None,
    ) -> list[Result]:
        """Run `requests` to their end, as `Engine.generate` does; `upcoming[i]` are those of the i-th call after this.

        All run-ahead has ended when this returns, and when it raises.
        """
        held = {prompt_key(r): self._rollouts(r) for r in requests}
        self._upcoming = self._prompts(upcoming)
        self._prospects = [
            Candidate(
                key=p.key,
                rollouts=self._rollouts(p.requests[0]),
                soon=p.soon,
                max_tokens=self._useful(p),
                prefill_seconds=self._prefill_seconds(p.requests[0]),
            )
            for p in self._upcoming.values()
        ]
        self._live = dict(enumerate(requests, start=self.engine.next_id))
        self._shares = {}
        self._looks, self._tail = 0, math.inf
        self.control.begin_step(self._tokens or round(self._expected(requests)))
        self._look()
        try:
            results = self.engine.generate(requests, progress, before_step=self._before_step)
        finally:
            self._stop()
        self._account(requests, results, held)
        return results

    def _before_step(self) -> None:
        """Tell what the last step was, and do what is decided."""
        live, waiting = self.engine.load()
        self._observe(live)
        decision = self.control.decide(self._snapshot(live, waiting), self._candidates(live, waiting))
        if decision.stop:
            self._stop()
        for launch in decision.launch:
            self._launch(launch)

    def _cost(self) -> CostModel | None:
        learner = self.engine.learner
        if learner is None:
            return self.drafter.cost
        return learner.observer.freeze() if learner.observer.observations >= PROVEN_STEPS else None

    def _snapshot(self, live: int, waiting: int) -> Snapshot:
        cost = self._cost()
        here = 0.0 if cost is None else _seconds(cost, max(live, 1), self._drafted)
        return Snapshot(
            clock=self._now(),
            live=live,
            waiting=waiting,
            running=len(self._running),
            capacity=self.engine.config.slots,
            step_seconds=here,
            row_seconds=0.0 if cost is None else _seconds(cost, max(live, 1) + 1, self._drafted) - here,
            tail_tokens=self._tail_tokens(live, waiting),
        )

    def _candidates(self, live: int, waiting: int) -> list[Candidate]:
        full = live + len(self._running) >= self.engine.config.slots
        return [] if waiting or not live or full else self._prospects

    def _useful(self, prompt: _Prompt) -> int:
        limit = prompt.requests[0].sampling.max_tokens
        return min(limit, math.ceil(LENGTH_FACTOR * self._expected(prompt.requests[:1])))

    def _expected(self, requests: Sequence[Request]) -> float:
        """Tokens that new requests will generate."""
        limits = np.array([r.sampling.max_tokens for r in requests], np.int64)
        return float(self.lengths.remaining([prompt_key(r) for r in requests], np.zeros_like(limits), limits).sum())

    def _tail_tokens(self, live: int, waiting: int) -> float:
        """Tokens that the longest live request has left."""
        if waiting or not live or live == self.engine.config.slots:
            return math.inf
        self._looks += 1
        if self._looks % TAIL_EVERY == 1:
            running = [(self._live[id], n) for id, n in self.engine.progress() if id in self._live]
            lengths = np.array([n for _, n in running], np.int64)
            limits = np.array([r.sampling.max_tokens for r, _ in running], np.int64)
            left = self.lengths.remaining([prompt_key(r) for r, _ in running], lengths, limits)
            self._tail = float(left.max(initial=0))
        return self._tail

    def _launch(self, launch: Launch) -> None:
        prompt = self._upcoming[launch.key]
        ahead = prompt.requests[launch.sample % len(prompt.requests)]
        sampling = replace(ahead.sampling, max_tokens=launch.max_tokens)
        if launch.sample >= len(prompt.requests) and sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + launch.sample * OTHER_SEED) % 2**64)
        ended: list[int] = []

        def finish(result: Result) -> None:
            ended.append(result.id)
            self._running.pop(result.id, None)
            self.control.finished(launch, len(result.token_ids), cancelled=result.finish_reason == "abort")

        id = self.engine.submit(replace(ahead, sampling=sampling), on_finish=finish)
        if not ended:
            self._running[id] = launch
        self.control.stalled(self._prefill_seconds(ahead))

    def _prefill_seconds(self, request: Request) -> float:
        cost = self._cost()
        return 0.0 if cost is None else cost.token * len(request.prompt_token_ids)

    def _stop(self) -> None:
        for id in list(self._running):
            self.engine.abort(id, keep=True)

    def _now(self) -> float:
        return self._modelled if self._clock is None else self._clock()

    def _look(self) -> None:
        stats = self.engine.stats
        self._before = (self._now(), stats.row_steps, stats.drafted)
        running = [id for id, _ in self.engine.progress() if id in self._live]
        _, waiting = self.engine.load()
        queued = list(self._live)[len(self._live) - waiting :]  # ids grow in the order of submission
        self._held = running + queued[: self.engine.config.slots - len(running)]

    def _observe(self, live: int) -> None:
        """Account the step since the last look; run-ahead rows that ended in it count as real ones."""
        cost, stats = self._cost(), self.engine.stats
        clock, row_steps, drafted = self._before
        rows, draft = stats.row_steps - row_steps, stats.drafted - drafted
        if rows > 0 and cost is not None:
            self._drafted = draft / rows
            whole = _seconds(cost, rows, self._drafted)
            self._modelled += whole
            running = min(len(self._running), rows)
            self._share(whole if self._clock is None else self._clock() - clock)
            self.control.observe(
                EngineStep(
                    seconds=whole if self._clock is None else self._clock() - clock,
                    live_steps=rows - running,
                    running_steps=running,
                    row_seconds=(whole - _seconds(cost, rows - running, self._drafted)) / max(running, 1),
                )
            )
        self._look()

    def _share(self, seconds: float) -> None:
        """Share a step's time among the real requests that were in it."""
        for id in self._held:
            self._shares[id] = self._shares.get(id, 0.0) + seconds / len(self._held)

    def _account(self, requests: Sequence[Request], results: Sequence[Result], held: dict[str, int]) -> None:
        """Learn the lengths, and tell the controller what each prompt took."""
        rows, cost = self.control.meter.row_step_seconds, self._cost()
        per_draft = cost.token / rows if cost is not None and rows else 0.0
        seconds, paced = dict.fromkeys(held, 0.0), dict.fromkeys(held, 0.0)
        for request, result in zip(requests, results, strict=True):
            if result.steps == 0:
                continue
            key, share = prompt_key(request), self._shares.get(result.id, 0.0)
            seconds[key] += share
            paced[key] += share * len(result.token_ids) / (result.steps + per_draft * result.drafted)
            self.lengths.add(key, len(result.token_ids))
        self._tokens = sum(len(r.token_ids) for r in results)
        self.control.end_step(
            [PromptOutcome(key=k, rollouts=held[k], seconds=seconds[k], paced=paced[k]) for k in held if seconds[k]]
        )

    def _rollouts(self, request: Request) -> int:
        return self.drafter.cache.rollouts(request.prompt_token_ids, key=request.key)

    def _prompts(self, upcoming: Sequence[Sequence[Request]]) -> dict[str, _Prompt]:
        prompts: dict[str, _Prompt] = {}
        for soon, batch in enumerate(upcoming, start=1):
            for request in batch:
                key = prompt_key(request)
                prompt = prompts.setdefault(key, _Prompt(key, soon, []))
                if prompt.soon == soon:
                    prompt.requests.append(request)
        return prompts


def prompt_key(request: Request) -> str:
    """Identity of a request's prompt: the user's key, else a hash of its tokens."""
    return key_of(request.prompt_token_ids, request.key)


def _seconds(cost: CostModel, rows: int, drafted: float) -> float:
    """Seconds of a step in which each row drafts `drafted` tokens on average."""
    return cost.seconds(rows, round(rows * drafted), math.ceil(drafted))
