"""Replicas that draft from their own rollouts, from the router's, from each other's: tokens per step and skew of load.

    python -m benchmarks.sharing aime24-step400.jsonl.gz aime24-step800.jsonl.gz

Replays recorded rollouts, one file a training step, on replicas that run in turn, an engine step each. Each replica is
a whole `ServingCore` with its own trees; the text is forced, so tokens per step are real acceptance. Requests of a step
are submitted at once and placed when they are: by verl's rule (the replica with the fewest) or by rolltree's router.
The exchange is the real one, called in turn instead of by Ray, so the counts do not depend on the machine's load.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rolltree import machine
from rolltree.metrics import ratio
from rolltree.replay.reading import TraceReader
from rolltree.replay.records import Rollout, Selection
from rolltree.serving.batch import Batch
from rolltree.serving.core import ServingCore
from rolltree.serving.limits import EngineShape
from rolltree.serving.options import EngineOptions
from rolltree.serving.request import ServedRequest
from rolltree.serving.timing import Scheduled
from rolltree.sharing import outbox
from rolltree.sharing.courier import Courier, Return, Trip
from rolltree.sharing.exchange import Exchange
from rolltree.sharing.message import Fingerprint, Reply, Request
from rolltree.sharing.port import Port
from rolltree.verl.placement import Placement
from rolltree.writing import beside, to_json

WIDTH, VOCAB = 16, 1 << 17
MODEL = Fingerprint(model="recorded", vocab=VOCAB)
MODES = ("local trees", "router", "finished", "sharing", "both")
"""`finished`: only finished rollouts are shared; `both`: router and sharing."""
TRICKLE = outbox.ENOUGH
log = logging.getLogger("sharing")


class InTurn(Courier):
    """Makes a trip every so many engine steps, at once; what comes of it is fetched with the next step."""

    def __init__(self, exchange: Exchange, name: str, *, every: int, most: int) -> None:
        self.exchange, self.every, self.most, self.step = exchange, every, most, 0
        super().__init__(self, MODEL, name, seconds=0.0, bytes_a_second=1, log=log)

    def trade(self, request: Request, timeout: float) -> Reply:
        """As a channel: the exchange is here."""
        return self.exchange.trade(request)

    def allowance(self) -> int:
        """Called once an engine step."""
        self.step += 1
        return self.most if self.step % self.every == 0 and self._return is None else 0

    def send(self, trip: Trip) -> None:
        """Make the trip now."""
        self._return = self._travel(trip)

    def fetch(self) -> Return | None:
        """Return what came of it."""
        came, self._return = self._return, None
        return came


@dataclass(kw_only=True)
class Replica:
    """An engine of `slots` places whose text is recorded."""

    slots: int
    core: ServingCore = field(init=False)
    waiting: list[tuple[str, Rollout]] = field(default_factory=list)
    running: dict[str, int] = field(default_factory=dict)
    """Request -> its place."""
    steps: int = 0
    ended: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        shape = EngineShape(
            max_draft=WIDTH, vocab=VOCAB, max_length=1 << 20, max_requests=self.slots, step_tokens=1 << 20
        )
        options = EngineOptions(cost="off", logits_bytes=1 << 50, shared_window=2048)
        self.core = ServingCore(shape, options, request_of=self._request)
        self._rollouts: dict[str, Rollout] = {}
        self._at: dict[str, int] = {}
        self._text = np.zeros((self.slots, 1 << 14), np.int32)
        self._free = list(range(self.slots))

    def share(self, courier: Courier) -> None:
        """See the rollouts of others."""
        self.core.options = EngineOptions(cost="off", logits_bytes=1 << 50, share="ray")
        self.core.port = Port(courier, self.core.counts, log)
        self.core.port.follow(self.core.drafter.cache)

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to generate."""
        return bool(self.waiting or self.running)

    def step(self) -> list[str]:
        """Run one engine step; return the requests that ended in it."""
        while self.waiting and self._free:
            id, rollout = self.waiting.pop(0)
            place = self.running[id] = self._free.pop()
            self._rollouts[id], self._at[id] = rollout, len(rollout.prompt)
            self._text[place, : len(rollout.prompt)] = rollout.prompt
            self._text[place, len(rollout.prompt) : len(rollout.prompt) + len(rollout.tokens)] = rollout.tokens
        ids = list(self.running)
        drafts = self.core.draft(ids, running=len(ids))
        counts = list(map(len, drafts))
        with self.core.guarded():
            shape = Scheduled(rows=len(ids), drafted=sum(counts), longest=max(counts), continues=True)
            self.core.begin_step(shape, ended=self.ended)
        self.ended.clear()
        emitted = [self._verify(id, draft) for id, draft in zip(ids, drafts, strict=True)]
        where = np.array([self.running[id] for id in ids])
        with self.core.guarded():
            self.core.take_in(Batch(ids, emitted, np.array([self._at[id] for id in ids]), self._text, where))
        self.steps += 1
        return self._end(ids)

    def commit(self) -> None:
        """Close what has ended; the next step of the training follows."""
        with self.core.guarded():
            self.core.commit()
        self.ended.clear()

    def _verify(self, id: str, draft: Sequence[int]) -> range:
        rollout, at, place = self._rollouts[id], self._at[id], self.running[id]
        end = len(rollout.prompt) + len(rollout.tokens)
        truth = self._text[place, at : min(end, at + len(draft) + 1)]
        n = next((i for i, token in enumerate(draft[: len(truth)]) if token != truth[i]), min(len(draft), len(truth)))
        count = min(n + 1, len(truth))
        self._at[id] = at + count
        return range(count)

    def _end(self, ids: Sequence[str]) -> list[str]:
        done = [id for id in ids if self._at[id] == len(self._rollouts[id].prompt) + len(self._rollouts[id].tokens)]
        for id in done:
            self._free.append(self.running.pop(id))
            self.ended.add(id)
        return done

    def _request(self, id: str) -> ServedRequest:
        rollout = self._rollouts[id]
        options = self.core.request_options({"rolltree": {"version": int(id.split("-")[0])}}, where="bench")
        return ServedRequest(prompt=rollout.prompt.tolist(), options=options, max_tokens=len(rollout.tokens))


class Fewest:
    """verl's own balancer: a request goes to the replica with the fewest running."""

    def __init__(self, names: Sequence[str]) -> None:
        self.loads = dict.fromkeys(names, 0)

    def place(self, key: str) -> str:
        """Return the replica of one more request."""
        name = min(self.loads, key=lambda name: self.loads[name])
        self.loads[name] += 1
        return name

    def finish(self, name: str, key: str | None) -> None:
        """A request has ended."""
        self.loads[name] -= 1


def run(steps: Sequence[Sequence[Rollout]], *, replicas: int, mode: str, slots: int, every: int, most: int) -> Any:
    """Replay all training steps; `slots` are those of all replicas together."""
    names = [str(n) for n in range(replicas)]
    engines = {name: Replica(slots=slots // replicas) for name in names}
    exchange = Exchange()
    outbox.ENOUGH = 1 << 40 if mode == "finished" else TRICKLE
    if mode in ("finished", "sharing", "both") and replicas > 1:
        for name, engine in engines.items():
            engine.share(InTurn(exchange, name, every=every, most=most))
    router: Placement | Fewest = Placement(names) if mode in ("router", "both") else Fewest(names)
    found = [run_step(engines, router, rollouts, number) for number, rollouts in enumerate(steps)]
    return {"replicas": replicas, "mode": mode, "every": every, "steps": found, **shared(engines, found)}


def run_step(
    engines: Mapping[str, Replica], router: Placement | Fewest, rollouts: Sequence[Rollout], number: int
) -> dict[str, Any]:
    """Replay one training step: all its requests are placed at once."""
    before = {name: (engine.core.counts.copy(), engine.steps) for name, engine in engines.items()}
    owner: dict[str, tuple[str, str]] = {}
    for index, rollout in enumerate(rollouts):
        id = f"{number}-{index}"
        name = router.place(rollout.prompt_id)
        owner[id] = (name, rollout.prompt_id)
        engines[name].waiting.append((id, rollout))
    while busy := [engine for engine in engines.values() if engine.is_busy]:
        for engine in busy:
            for id in engine.step():
                router.finish(*owner[id])
    for engine in engines.values():
        engine.commit()
    counts = [engine.core.counts.since(before[name][0]) for name, engine in engines.items()]
    ticks = [engine.steps - before[name][1] for name, engine in engines.items()]
    tokens, row_steps = sum(c.tokens for c in counts), sum(c.row_steps for c in counts)
    return {
        "tokens": tokens,
        "tokens_per_step": ratio(tokens, row_steps),
        "engine_steps": max(ticks),
        "skew": ratio(max(ticks), statistics.fmean(ticks)),
        "errors": sum(engine.core.counts.errors for engine in engines.values()),
    }


def shared(engines: Mapping[str, Replica], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what sharing moved, per generated token."""
    tokens = sum(step["tokens"] for step in found)
    counts = [engine.core.counts for engine in engines.values()]
    names = ("shared_bytes", "shared_sent", "shared_received", "shared_refused", "shared_dropped")
    return {f"{name}_per_token": ratio(sum(getattr(c, name) for c in counts), tokens) for name in names}


def main() -> None:
    """Print the table and write the document."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("traces", nargs="+", type=Path, help="recorded rollouts, a file a training step")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--modes", nargs="+", default=list(MODES))
    parser.add_argument("--slots", type=int, default=64, help="of all replicas together")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=0, help="0: all")
    parser.add_argument("--every", type=int, default=16, help="engine steps between two exchanges of news")
    parser.add_argument("--most", type=int, default=1 << 20, help="bytes of a trip")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    reader = TraceReader()
    steps = [chosen(reader.read([path]), given.samples, given.prompts) for path in given.traces]
    cases = []
    for replicas in given.replicas:
        for mode in given.modes if replicas > 1 else MODES[:1]:
            case = run(steps, replicas=replicas, mode=mode, slots=given.slots, every=given.every, most=given.most)
            cases.append(case)
            print(line(case), flush=True)
    document = {
        "bench": "sharing", "traces": [path.name for path in given.traces], "slots": given.slots,
        "samples": given.samples, "every": given.every, "cases": cases, "machine": machine.describe(),
    }  # fmt: skip
    if given.out is not None:
        with beside(given.out) as draft:
            draft.write_text(to_json(document, indent=1) + "\n")
    print(to_json(document))


def chosen(rollouts: Sequence[Rollout], samples: int, prompts: int) -> list[Rollout]:
    """Return the first samples of each prompt."""
    step = Selection(samples=samples).select([], rollouts).steps[0].rollouts
    names = list(dict.fromkeys(rollout.prompt_id for rollout in step))[: prompts or None]
    return [rollout for rollout in step if rollout.prompt_id in set(names)]


def line(case: Mapping[str, Any]) -> str:
    """Return a row of the table."""
    steps = "  ".join(f"{s['tokens_per_step']:.3f} ({s['engine_steps']}, {s['skew']:.2f})" for s in case["steps"])
    per = f"{case['shared_bytes_per_token']:.2f} B/token, {case['shared_received_per_token']:.2f} received"
    return f"{case['replicas']} x {case['mode']:<12} {steps}  {per}"


if __name__ == "__main__":
    main()
