"""The driver of run-ahead, for any batching engine: what `RunAheadController` has to know, and what the host is to do.

Knows the real requests, what runs ahead, what a step costs and what the next training steps will ask. Bookkeeping
alone: owns no engine or task, so a host that is called before each step and one on an event loop share it. A host calls

- `begin`, `announce`, `end`: around a training step, and with what comes after it;
- `started`, `ended`: around each real request, from before it is submitted;
- `stepped` at each engine step, or `output` at each output where it sees no steps;
- `decide`; then it aborts and submits, with `launched` before and `finished` after each launch, or `refused`.

Invariant: from `launched` to `finished` a request counts as in the engine, so no real request finds its slot taken.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from rolltree.budget import CostModel
from rolltree.runahead import Candidate, Decision, EngineStep, Launch, PromptOutcome, RunAheadController, Snapshot
from rolltree.runahead.lengths import LengthEstimator
from rolltree.step_cost import StepCostObserver
from rolltree.tokens import prompt_key
from rolltree.types import Float32Array

PROVEN_STEPS = 64
"""Observed steps before a learned step cost is believed; a frozen one is at once."""
LENGTH_FACTOR = 1.5
"""Longest run-ahead rollout, relative to the prompt's expected length: two thirds of the rollouts are shorter."""
TAIL_EVERY = 8
"""Decisions between estimates of the tail's length; an estimate costs some 10 microseconds a request."""
KNOWN_PROMPTS = 1 << 16
"""Prompts whose finished rollouts are counted."""
NO_LIMIT = 2**31 - 1

Name = TypeVar("Name", bound=Hashable)
"""How the host calls its requests."""

_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One request for one rollout."""

    token_ids: Sequence[int]
    sampling: Any
    """The host's sampling parameters, with `max_tokens`; for one sample."""
    key: str | None = None
    """The user's id of the prompt; None: the prompt's tokens."""

    @property
    def identity(self) -> str:
        """What the controller calls the prompt."""
        return prompt_key(self.token_ids, self.key)

    @property
    def limit(self) -> int:
        """Most tokens that it may generate."""
        return int(self.sampling.max_tokens or NO_LIMIT)


@dataclass(slots=True)
class RealRequest:
    """A real request of the running training step."""

    identity: str
    limit: int
    rollouts: int
    """That its tree held before."""
    tokens: int = 0
    row_steps: int = 0
    drafted: int = 0
    seconds: float = 0.0
    """Engine time held: each step's, shared equally among the real requests in it."""


@dataclass(slots=True)
class AheadRequest:
    """A run-ahead request in the engine."""

    launch: Launch
    tokens: int = 0


def request_name(kind: str) -> str:
    """Return a request id that is never repeated."""
    return f"rolltree-{kind}-{next(_numbers)}"


class AheadDriver(Generic[Name]):
    """Bookkeeping for one engine; see the module.

    Args:
        slots: requests that the engine can run together.
        control: decides; None takes default settings.
        cost: frozen step-cost model; None: what `observer` has learned.
        observer: fed by the host; None: fed by `output`.
        rollouts: says how many rollouts a prompt's tree holds; None: as many as ended here.
        clock: seconds.

    """

    def __init__(
        self, slots: int, control: RunAheadController | None = None, *, cost: CostModel | None = None,
        observer: StepCostObserver | None = None, rollouts: Callable[[Prompt], int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self.slots, self.control, self.cost, self.clock = slots, control or RunAheadController(), cost, clock
        self.observer, self.lengths = observer or StepCostObserver(), LengthEstimator()
        self.real: dict[Name, RealRequest] = {}
        """Unfinished real requests, in the order in which they get slots."""
        self.running: dict[Name, AheadRequest] = {}
        self.drafted = 0.0
        """Draft tokens of a request in a step, lately."""
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._rollouts = rollouts or (lambda prompt: self._seen.get(prompt.identity, 0))
        self._coming: dict[str, list[Prompt]] = {}
        self._candidates: dict[str, Candidate] = {}
        self._decided: list[Launch] = []
        self._done: list[RealRequest] = []
        self._pacemaker: Name | None = None  # the real request whose outputs mark the engine's steps
        self._since, self._tail, self._looks, self._tokens = 0.0, math.inf, 0, 0

    def begin(self, coming: Sequence[Sequence[Prompt]] = (), *, expected_tokens: float = 0) -> None:
        """Start a training step with the budget for the tokens of the last one; for the first, `expected_tokens`."""
        self._coming, self._candidates, self._pacemaker = {}, {}, None
        self._tail, self._looks = math.inf, 0
        self.announce(coming)
        self.control.begin_step(self._tokens or round(expected_tokens))

    def announce(self, coming: Sequence[Sequence[Prompt]]) -> int:
        """Say that `coming[i]` are requests of the i-th step from here; how many prompts are cold."""
        for soon, prompts in enumerate(coming, start=1):
            fresh: dict[str, list[Prompt]] = {}
            for prompt in prompts:
                if (key := prompt.identity) not in self._coming:
                    fresh.setdefault(key, []).append(prompt)
            self._coming |= fresh
            self._candidates |= {key: self._candidate(key, group[0], soon) for key, group in fresh.items()}
        warm = self.control.config.warm_rollouts
        return sum(candidate.rollouts < warm for candidate in self._candidates.values())

    def end(self, *, complete: bool = True) -> None:
        """End the step, when nothing runs ahead any more. Its ended requests count where it is complete."""
        for launch in list(self._decided):
            self.refused(launch)
        if complete:
            self._close()
        self._done = []

    def started(self, name: Name, identity: str, limit: int, rollouts: int | None = None) -> None:
        """A real request is about to be submitted; `rollouts`: that its tree holds, where the host knows."""
        if not self.real:
            self._since = self.clock()  # nothing real ran before
        known = self._seen.get(identity, 0) if rollouts is None else rollouts
        self.real[name] = RealRequest(identity, limit, known)
        self._candidates.pop(identity, None)  # its time has come

    def ended(self, name: Name) -> RealRequest:
        """A real request left the engine; what it did may be filled in until `end`."""
        self._done.append(self.real.pop(name))
        return self._done[-1]

    def output(self, name: Name, tokens: int) -> None:
        """A real request has `tokens`. The outputs of one of them are taken for the steps of the engine."""
        request = self.real[name]
        request.tokens, request.row_steps = tokens, request.row_steps + 1
        if self._pacemaker not in self.real:
            self._pacemaker = name  # its first interval is not one step
            self._share()
        elif name == self._pacemaker:
            live, running = self.load[0], len(self.running)
            self.observer.observe(live + running, 0, 0, self.clock() - self._since)
            self.stepped(live, running)

    def stepped(self, live: int, running: int, added: float | None = None) -> None:
        """An engine step has passed, of as many real and run-ahead requests; the latter added `added` seconds to it."""
        if added is None:
            added = self.step_seconds(live + running) - self.step_seconds(live)
        seconds, each = self._share(), added / max(running, 1)
        step = EngineStep(seconds=seconds, live_steps=live, running_steps=running, row_seconds=each)
        self.control.observe(step)

    @property
    def load(self) -> tuple[int, int]:
        """Real requests that run and that wait, by the slots."""
        live = min(len(self.real), self.slots)
        return live, len(self.real) - live

    @property
    def has_room(self) -> bool:
        """Whether there is real work, and a slot that neither it nor run-ahead takes."""
        return bool(self.real) and len(self.real) + len(self.running) < self.slots

    def decide(self, live: int, waiting: int) -> Decision:
        """Say what to abort and to launch now; `live` real requests run and `waiting` wait."""
        here, more = self.step_seconds(max(live, 1)), self.step_seconds(max(live, 1) + 1)
        snapshot = Snapshot(
            clock=self.clock(), live=live, waiting=waiting, running=len(self.running), capacity=self.slots,
            step_seconds=here, row_seconds=more - here, tail_tokens=self._tail_tokens(live, waiting),
        )  # fmt: skip
        decision = self.control.decide(snapshot, self._candidates.values())
        self._decided += decision.launch
        return decision

    def prompt(self, launch: Launch) -> tuple[Prompt, int]:
        """Return the coming request that is launched, and how often it was before."""
        prompts = self._coming[launch.key]
        again, place = divmod(launch.sample, len(prompts))
        return prompts[place], again

    def launched(self, name: Name, launch: Launch) -> None:
        """A launch is about to be submitted."""
        self._decided.remove(launch)
        self.running[name] = AheadRequest(launch)
        self.control.stalled(self.prefill_seconds(self.prompt(launch)[0]))

    def refused(self, launch: Launch) -> None:
        """A launch found no room, or its time is over."""
        self._decided.remove(launch)
        self.control.refused(launch)

    def finished(self, name: Name, *, cancelled: bool = False) -> None:
        """A run-ahead request has left the engine; the first word counts."""
        if (request := self.running.pop(name, None)) is not None:
            self.control.finished(request.launch, request.tokens, cancelled=cancelled)

    def expected_tokens(self, requests: Sequence[RealRequest | Prompt]) -> Float32Array:
        """Estimate what requests will still generate: float32 [B]."""
        lengths = [request.tokens if isinstance(request, RealRequest) else 0 for request in requests]
        limits = np.array([request.limit for request in requests], np.int64)
        return self.lengths.remaining([r.identity for r in requests], np.array(lengths, np.int64), limits)

    def step_seconds(self, rows: int) -> float:
        """Seconds of a step of requests that draft as they did lately; 0 where it is not known."""
        cost, drafted = self.known_cost, self.drafted
        return 0.0 if cost is None else cost.seconds(rows, round(rows * drafted), math.ceil(drafted))

    def prefill_seconds(self, prompt: Prompt) -> float:
        """Seconds that a prompt adds to a step."""
        cost = self.known_cost
        return 0.0 if cost is None else cost.token * len(prompt.token_ids)

    @property
    def known_cost(self) -> CostModel | None:
        """The step-cost model, None while it is not proven."""
        if self.cost is None and self.observer.observations >= PROVEN_STEPS:
            return self.observer.freeze()
        return self.cost

    def _candidate(self, key: str, prompt: Prompt, soon: int) -> Candidate:
        longest = min(prompt.limit, math.ceil(LENGTH_FACTOR * float(self.expected_tokens([prompt])[0])))
        rollouts, prefill = self._rollouts(prompt), self.prefill_seconds(prompt)
        return Candidate(key=key, rollouts=rollouts, soon=soon, max_tokens=longest, prefill_seconds=prefill)

    def _share(self) -> float:
        """Share the time since the last step among the real requests that held the engine."""
        now = self.clock()
        seconds, self._since = now - self._since, now
        held = list(itertools.islice(self.real.values(), self.slots))
        for request in held:
            request.seconds += seconds / len(held)
        return seconds

    def _tail_tokens(self, live: int, waiting: int) -> float:
        """Tokens that the longest real request has left, estimated now and then."""
        if waiting or not self.real or live >= self.slots:
            return math.inf
        self._looks += 1
        if self._looks % TAIL_EVERY == 1:
            self._tail = float(self.expected_tokens(list(self.real.values())).max())
        return self._tail

    def _close(self) -> None:
        """Learn the lengths, and tell the controller what each prompt took."""
        cost, row = self.known_cost, self.control.meter.row_step_seconds
        per_draft = cost.token / row if cost is not None and row else 0.0
        outcomes: dict[str, PromptOutcome] = {}
        for request in (r for r in self._done if r.row_steps):
            key, pace = request.identity, request.tokens / (request.row_steps + per_draft * request.drafted)
            known = outcomes.get(key, PromptOutcome(key=key, rollouts=request.rollouts, seconds=0.0, paced=0.0))
            seconds, paced = known.seconds + request.seconds, known.paced + request.seconds * pace
            outcomes[key] = replace(known, seconds=seconds, paced=paced)
            self.lengths.add(key, request.tokens)
            self._seen[key] = self._seen.pop(key, 0) + 1
            if len(self._seen) > KNOWN_PROMPTS:
                self._seen.popitem(last=False)
        self._tokens = sum(request.tokens for request in self._done)
        self.control.end_step([outcome for outcome in outcomes.values() if outcome.seconds])
