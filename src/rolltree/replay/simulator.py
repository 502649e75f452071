"""One engine, simulated: B slots, refilled as they free; schedule, draft, verify against the record, advance, cost.

All samples of a prompt are submitted together, in recorded order. Every live request emits its accepted draft tokens
and one more in each engine step; others see tokens only after the step that decoded them. A prompt is prefilled once a
policy step, with its first sample, in the step that admits it. The engine does not know where a rollout ends. Parts of
a rollout that were not generated (tool output) are taken in whole, like a prompt, before the step that follows them.

Simulated time comes from the cost profile alone. The drafter's own time is measured and reported, never added in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from rolltree.replay.budgets import Budget
from rolltree.replay.drafters import ReplayDrafter
from rolltree.replay.profiles import Load, Profile
from rolltree.replay.records import Rollout
from rolltree.replay.tally import Tally
from rolltree.replay.verdict import verify
from rolltree.types import DraftBatch, Int32Array, Int64Array

Progress = Callable[[int], None]
"""Is told how many more tokens were decoded."""

_MEMORY_EVERY = 128  # engine steps between two looks at the drafter's memory
_REPORT_EVERY = 64  # engine steps between two reports of progress


def _silent(tokens: int) -> None:
    """Report no progress."""


class Text:
    """All rollouts of a step, one behind the other, each followed by -1s, so that a window never needs a bound."""

    def __init__(self, rollouts: Sequence[Rollout], window: int) -> None:
        self.length: Int64Array = np.array([len(r.tokens) for r in rollouts], np.int64)
        self.prompt: Int64Array = np.array([len(r.prompt) for r in rollouts], np.int64)
        self.generated: Int64Array = np.array([r.generated for r in rollouts], np.int64)
        self.start = np.concatenate(([0], np.cumsum(self.length + window)[:-1])).astype(np.int64)
        self._flat = np.full(int((self.length + window).sum()), -1, np.int32)
        for start, rollout in zip(self.start.tolist(), rollouts, strict=True):
            self._flat[start : start + len(rollout.tokens)] = rollout.tokens
        self._window = np.arange(window)
        pairs = zip(self.start.tolist(), rollouts, strict=True)
        spans = [(start + a, start + b) for start, rollout in pairs for a, b in rollout.context]
        self._spans: Int64Array = np.array([*spans, (len(self._flat) + 1,) * 2], np.int64)

    @property
    def has_context(self) -> bool:
        """Whether any rollout has parts that were not generated."""
        return len(self._spans) > 1

    def turn_end(self, rollout: Int64Array, position: Int64Array) -> Int64Array:
        """Return int64 [B]: where the part that is generated from `position` on ends."""
        length = self.length[rollout]
        if not self.has_context:
            return length
        start = self.start[rollout]
        following: Int64Array = self._spans[np.searchsorted(self._spans[:, 0], start + position), 0]
        end: Int64Array = np.minimum(length, following - start)
        return end

    def context_at(self, rollout: int, position: int) -> Int32Array:
        """Return what is not generated from `position` on, inside the rollout; usually nothing."""
        at = int(self.start[rollout]) + position
        begin, stop = self._spans[np.searchsorted(self._spans[:, 0], at)].tolist()
        limit = int(self.start[rollout] + self.length[rollout])
        return self._flat[at : min(stop, limit)] if begin == at else self._flat[:0]

    def ahead(self, rollout: Int64Array, position: Int64Array) -> Int32Array:
        """Return int32 [B, window]: what each rollout continues with from `position`."""
        window: Int32Array = self._flat[(self.start[rollout] + position)[:, None] + self._window]
        return window


class Simulator:
    """Generates the rollouts of one policy step. Lives as long as the step."""

    def __init__(
        self, rollouts: Sequence[Rollout], drafter: ReplayDrafter, profile: Profile, tally: Tally,
        *, slots: int, max_draft: int, budget: Budget | None = None, progress: Progress = _silent,
    ) -> None:  # fmt: skip
        self.rollouts, self.drafter, self.profile, self.tally = rollouts, drafter, profile, tally
        self.text = Text(rollouts, max_draft + 1)
        self.slots = slots or len(rollouts)
        self.max_draft, self.progress = max_draft, progress
        self.budget = budget if drafter.budgeted else None
        self.clock = 0.0
        self._next, self._unreported, self._prefill = 0, 0, 0
        self._prefilled: set[str] = set()
        self._rollout: Int64Array = np.zeros(0, np.int64)
        self._handle: Int64Array = np.zeros(0, np.int64)
        self._position: Int64Array = np.zeros(0, np.int64)

    def run(self) -> None:
        """Generate everything."""
        self._admit()
        while len(self._rollout):
            self._step()
            self._retire()
            self._admit()
        self.progress(self._unreported)

    def _step(self) -> None:
        self._take_in_context()
        left = self.text.turn_end(self._rollout, self._position) - self._position
        truth = self._truth(left)
        self._tell()
        self.drafter.reveal(truth)
        begin = time.perf_counter()
        batch = self.drafter.draft(self._handle, np.full(len(self._handle), self.max_draft, np.int32))
        drafting = time.perf_counter() - begin
        verdict = verify(batch, truth)
        emitted = np.minimum(verdict.accepted + 1, left)
        load = self._load(batch)
        self._spend(load)
        self.tally.step(load, self._rollout, batch, verdict)
        updating = self._advance(truth, emitted)
        self.tally.host(drafting, updating)
        self._report(int(emitted.sum()))

    def _truth(self, left: Int64Array) -> Int32Array:
        """What each request goes on with, -1 past the end of what it generates now."""
        truth = self.text.ahead(self._rollout, self._position)
        if self.text.has_context:
            truth[np.arange(truth.shape[1]) >= left[:, None]] = -1
        return truth

    def _take_in_context(self) -> None:
        """Give every request that stands before tool output the whole of it."""
        if not self.text.has_context:
            return
        for row, (index, handle) in enumerate(zip(self._rollout.tolist(), self._handle.tolist(), strict=True)):
            tokens = self.text.context_at(index, int(self._position[row]))
            if len(tokens):
                self.drafter.take_in(handle, tokens)
                self._position[row] += len(tokens)
                self._prefill += len(tokens)

    def _advance(self, truth: Int32Array, emitted: Int64Array) -> float:
        tokens = truth[np.arange(truth.shape[1]) < emitted[:, None]]
        offsets = np.concatenate(([0], np.cumsum(emitted))).astype(np.int32)
        begin = time.perf_counter()
        self.drafter.advance(self._handle, tokens, offsets)
        self._position = self._position + emitted
        return time.perf_counter() - begin

    def _tell(self) -> None:
        """Tell the drafter what a step costs now."""
        if self.budget:
            self.drafter.cost = self.budget.model(Load(len(self._rollout), context=self._context()))

    def _spend(self, load: Load) -> None:
        seconds = self.profile.seconds(load)
        self.clock += seconds
        if self.budget:
            self.budget.observe(load, seconds)

    def _load(self, batch: DraftBatch) -> Load:
        lengths, rows = batch.lengths, len(self._rollout)
        return Load(rows, int(lengths.sum()), int(lengths.max(initial=0)), self._prefill, self._context())

    def _context(self) -> int:
        return int(self.text.prompt[self._rollout].sum() + self._position.sum())

    def _admit(self) -> None:
        self._prefill = 0
        free = min(self.slots - len(self._rollout), len(self.rollouts) - self._next)
        if free <= 0:
            return
        new = np.arange(self._next, self._next + free)
        self._next += free
        begin = time.perf_counter()
        handles = [self._open(self.rollouts[index]) for index in new.tolist()]
        opening = time.perf_counter() - begin
        self._rollout = np.concatenate((self._rollout, new))
        self._handle = np.concatenate((self._handle, np.array(handles, np.int64)))
        self._position = np.concatenate((self._position, np.zeros(free, np.int64)))
        self.tally.started(new, self.clock, opening)

    def _open(self, rollout: Rollout) -> int:
        if rollout.prompt_id not in self._prefilled:
            self._prefilled.add(rollout.prompt_id)
            self._prefill += max(0, len(rollout.prompt) - 1)  # the last prompt token is the row's own
        return self.drafter.open(rollout.prompt, key=rollout.prompt_id)

    def _retire(self) -> None:
        done = self._position >= self.text.length[self._rollout]
        if not done.any():
            return
        self.tally.finished(self._rollout[done], self.clock)
        for handle in self._handle[done].tolist():
            self.drafter.close(handle)
        kept = ~done
        self._rollout, self._handle, self._position = self._rollout[kept], self._handle[kept], self._position[kept]

    def _report(self, tokens: int) -> None:
        self._unreported += tokens
        steps = self.tally.engine_steps
        if steps % _REPORT_EVERY == 0:
            self.progress(self._unreported)
            self._unreported = 0
        if steps % _MEMORY_EVERY == 0:
            self.tally.memory(*self.drafter.memory())
