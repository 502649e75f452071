"""A host that runs ahead of its device, in one file: what a batching engine with asynchronous scheduling does.

The device is a queue of work that runs in order, so many steps late as the test says. The host schedules on what it has
seen of steps that are done: a request that has ended gets some steps more, and its place goes to another one while
steps in flight still write there; the device does that in its order.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rolltree.serving.limits import EngineShape
from rolltree.serving.options import EngineOptions
from rolltree.serving.request import ServedRequest
from rolltree.serving.streamed import TURNS, Rows, StreamedCore
from rolltree.serving.timing import Scheduled
from tests.toy_host import LENGTH, POLICY, VOCAB, WIDTH, State

SLOTS = 4
ENTER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class StreamedHost:
    """An engine of `SLOTS` places whose device is `lag` steps late; the core is told of them by `use`."""

    def __init__(self, *, lag: int, **options: Any) -> None:
        self.lag, self.states = lag, dict[str, State]()
        self.text = np.full((SLOTS, LENGTH), VOCAB - 1, np.int32)
        self._lengths = np.zeros(SLOTS, np.int32)  # the device's
        self._drafts: dict[int, list[int]] = {}  # of each place, the device's
        self._work = deque[list[Callable[[], object]]]()  # of each step in flight
        self._slots, self._free = dict[str, int](), list(range(SLOTS))
        self._waiting, self._ended = list[str](), set[str]()
        self.buffers = np.zeros((TURNS, SLOTS * (3 + WIDTH)), np.int32)
        shape = EngineShape(
            max_draft=WIDTH, vocab=VOCAB, model="toy", max_requests=SLOTS, step_tokens=64, max_length=LENGTH
        )
        read = EngineOptions.read({"cost": "off"} | options, {}, where="toy.rolltree")
        self.core = StreamedCore(shape, read, request_of=self._request)
        self.core.use(self.buffers, self.drain)
        self.core.start()

    def add(
        self, id: str, prompt: list[int], *, max_tokens: int = 30, stop: Sequence[int] = (),
        end_of: Callable[[Sequence[int]], Sequence[int]] | None = None, **custom: Any,
    ) -> None:  # fmt: skip
        """Submit a request."""
        own: Mapping[str, Any] = {"rolltree": custom, "end_of": end_of}
        self.states[id] = State(prompt=prompt, max_tokens=max_tokens, stop_ids=frozenset(stop), custom=own)
        self._waiting.append(id)

    def run(self) -> dict[str, list[int]]:
        """Run all requests to their end; return what each generated."""
        while self._slots or self._waiting:
            self.step()
        return {id: state.output for id, state in self.states.items()}

    def drain(self) -> None:
        """Let the device do all that is in flight."""
        while self._work:
            self._late()

    def step(self) -> None:
        """Schedule and launch a step; then the device does the one that is late enough."""
        work: list[Callable[[], object]] = []
        self._admit(work)
        ids = sorted(self._slots, key=lambda id: hash((id, len(self._work))))  # rows move
        core = self.core
        with core.guarded():
            shape = Scheduled(rows=len(ids), drafted=0, longest=0, continues=True)
            core.begin_step(shape, ended=self._ended)
            self._ended.clear()
        slots = np.array([self._slots[id] for id in ids])
        handed = None
        with core.guarded():
            rows = Rows(ids=ids, slots=slots, known=self.states, most=WIDTH, running=len(ids))
            handed = core.hand_over(rows, self.text)
        work.append(lambda: self._compute(ids, slots, None if handed is None else handed.index))
        if handed is not None:
            function, argument = handed.entry
            work += [lambda: ENTER(function)(argument), lambda: self._fetch(slots, handed.index)]
        self._work.append(work)
        if len(self._work) > self.lag:
            self._late()

    def _late(self) -> None:
        for work in self._work.popleft():
            work()

    def _admit(self, work: list[Callable[[], object]]) -> None:
        while self._waiting and self._free:
            id = self._waiting.pop(0)
            self._slots[id] = self._free.pop(0)
            work.append(lambda id=id, slot=self._slots[id]: self._write(id, slot))  # type: ignore[misc]

    def _write(self, id: str, slot: int) -> None:
        text = self.states[id].prompt
        self.text[slot], self._lengths[slot], self._drafts[slot] = VOCAB - 1, len(text), []
        self.text[slot, : len(text)] = text

    def _compute(self, ids: list[str], slots: np.ndarray, index: int | None) -> None:
        """Verify drafts, sample, and let the host see it."""
        for row, (id, slot) in enumerate(zip(ids, slots.tolist(), strict=True)):
            text, at, new = self.text[slot], int(self._lengths[slot]), list[int]()
            for token in [*self._drafts.get(slot, ()), None]:
                if at == LENGTH:
                    break
                text[at] = POLICY[text[at - 2], text[at - 1]]
                new.append(int(text[at]))
                at += 1
                if token != new[-1]:
                    break
            self._lengths[slot], self._drafts[slot] = at, []
            if index is not None:
                self.buffers[index, row], self.buffers[index, SLOTS + row] = len(new), at
            self._receive(id, slot, new)

    def _fetch(self, slots: np.ndarray, index: int) -> None:
        made = self.buffers[index, 2 * SLOTS :].reshape(SLOTS, 1 + WIDTH)
        for row, slot in enumerate(slots.tolist()):
            self._drafts[slot] = made[row, 1 : 1 + made[row, 0]].tolist()

    def _receive(self, id: str, slot: int, new: list[int]) -> None:
        if self._slots.get(id) != slot:  # it has ended meanwhile
            return
        if self.states[id].take(new):
            self._free.append(self._slots.pop(id))
            self._ended.add(id)

    def _request(self, id: str) -> ServedRequest:
        state = self.states[id]
        options = self.core.request_options({"rolltree": state.custom["rolltree"]}, where="custom")
        return ServedRequest(
            prompt=state.prompt, options=options, max_tokens=state.max_tokens, stop_ids=state.stop_ids,
            end_of=state.custom["end_of"],
        )  # fmt: skip
