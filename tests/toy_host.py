"""A whole host in one file: a batching loop over arrays whose policy is a table; the template of docs/new-host.md.

It does what makes hosts hard: rows in another order in every step, texts that move when a request is preempted, drafts
that are asked for in another call than the one that brings tokens, tokens behind a stop that the loop learns of later.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rolltree.serving.batch import Batch
from rolltree.serving.core import ServingCore
from rolltree.serving.limits import EngineShape
from rolltree.serving.options import EngineOptions
from rolltree.serving.request import ServedRequest
from rolltree.serving.timing import Scheduled

VOCAB, LENGTH, WIDTH = 40, 128, 6
POLICY = np.random.default_rng(0).integers(0, VOCAB, (VOCAB, VOCAB))
"""The next token, by the last two."""


@dataclass(kw_only=True)
class State:
    """What the host itself knows of a request."""

    prompt: list[int]
    max_tokens: int
    stop_ids: frozenset[int]
    custom: Mapping[str, Any] | None
    """The dictionary that a request carries for others."""
    output: list[int] = field(default_factory=list)
    """Up to the end of the request; the array below may hold more."""

    def take(self, new: list[int]) -> bool:
        """Take new tokens, up to the request's end; return whether it has come."""
        for token in new:
            self.output.append(token)
            whole = len(self.prompt) + len(self.output)
            if token in self.stop_ids or len(self.output) >= self.max_tokens or whole >= LENGTH:
                return True
        return False


class ToyHost:
    """An engine of `slots` places, with drafts or without."""

    def __init__(self, *, slots: int = 4, step_tokens: int = 64, speculate: bool = True, **options: Any) -> None:
        self.states: dict[str, State] = {}
        self.steps = self.drafted = 0
        self.seconds = 0.0  # by the clock of who gives it one
        self._tokens = np.full((slots, LENGTH), VOCAB - 1, np.int32)
        self._slots: dict[str, int] = {}  # of the requests that run
        self._free = list(range(slots))
        self._waiting: list[str] = []
        self._ended: set[str] = set()
        self._random = random.Random(0)
        self.core: ServingCore | None = None
        if speculate:  # 1: what rolltree must know of the engine, and how it reads a request
            limits = {"max_requests": slots, "step_tokens": step_tokens, "max_length": LENGTH}
            shape = EngineShape(max_draft=WIDTH, vocab=VOCAB, model="toy", **limits)  # type: ignore[arg-type]
            read = EngineOptions.read({"cost": "off"} | options, {}, where="toy.rolltree")
            readers = {"request_of": self._request, "output_of": lambda id: self.states[id].output}
            self.core = ServingCore(shape, read, **readers, clock=lambda: self.seconds)  # type: ignore[arg-type]
            self.core.start()  # in the process that drafts

    def add(self, id: str, prompt: list[int], *, max_tokens: int = 30, stop: Sequence[int] = (), **custom: Any) -> None:
        """Submit a request; `custom` are rolltree's options."""
        own = {"rolltree": custom} if custom else None
        self.states[id] = State(prompt=prompt, max_tokens=max_tokens, stop_ids=frozenset(stop), custom=own)
        self._waiting.append(id)

    def preempt(self, id: str) -> None:
        """Take a running request's place away; it goes on later, in another."""
        self._free.append(self._slots.pop(id))
        self._waiting.insert(0, id)

    def run(self) -> dict[str, list[int]]:
        """Run all requests to their end; return what each generated."""
        while self._slots or self._waiting:
            self.step()
        if self.core is not None:
            with self.core.guarded():  # nothing follows that would say which requests have ended
                self.core.commit()
        return {id: state.output for id, state in self.states.items()}

    def step(self) -> None:
        """Schedule, run, postprocess."""
        ids = self._schedule()
        drafts = self._draft(ids)
        emitted = [self._generate(id, drafts[id]) for id in ids]
        self._take_in(ids, emitted)
        for id, new in zip(ids, emitted, strict=True):
            if self.states[id].take(new):
                self._free.append(self._slots.pop(id))
                self._ended.add(id)
        self.steps, self.drafted = self.steps + 1, self.drafted + sum(map(len, drafts.values()))

    def _request(self, id: str) -> ServedRequest:
        state = self.states[id]
        assert self.core is not None
        options = self.core.request_options(state.custom, where="custom")
        return ServedRequest(prompt=state.prompt, options=options, max_tokens=state.max_tokens, stop_ids=state.stop_ids)

    def _schedule(self) -> list[str]:
        while self._waiting and self._free:
            id = self._waiting.pop(0)
            self._slots[id] = slot = self._free.pop(self._random.randrange(len(self._free)))
            text = [*self.states[id].prompt, *self.states[id].output]
            self._tokens[slot, : len(text)] = text
        return self._random.sample(list(self._slots), len(self._slots))

    def _draft(self, ids: list[str]) -> dict[str, list[int]]:
        if self.core is None:
            return {id: [] for id in ids}
        # 2: drafts, for the rows that can verify some; 3: the shape of the step, and who has ended since the last one
        drafts = dict(zip(ids, self.core.draft(ids, running=len(ids)), strict=True))
        counts = list(map(len, drafts.values()))
        with self.core.guarded():
            step = Scheduled(rows=len(ids), drafted=sum(counts), longest=max(counts), continues=True)
            self.core.begin_step(step, ended=self._ended)
        self._ended.clear()
        return drafts

    def _generate(self, id: str, draft: list[int]) -> list[int]:
        """Verify the draft and sample one more token; the text may run on behind a stop, as in real engines."""
        state = self.states[id]
        row, at = self._tokens[self._slots[id]], len(state.prompt) + len(state.output)
        new: list[int] = []
        for token in [*draft, None]:
            row[at] = int(POLICY[row[at - 2], row[at - 1]])
            new.append(int(row[at]))
            at += 1
            if token != new[-1]:
                break
        return new

    def _take_in(self, ids: list[str], emitted: list[list[int]]) -> None:
        if self.core is None:
            return
        lengths = [len(self.states[id].prompt) + len(self.states[id].output) for id in ids]
        where = np.array([self._slots[id] for id in ids])
        with self.core.guarded():  # 4: what the step sampled; the rows are `ids`, their texts where they lie
            self.core.take_in(Batch(ids, emitted, np.array(lengths) + list(map(len, emitted)), self._tokens, where))
