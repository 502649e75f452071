"""Measures what a verify step costs on this machine, so that a drafter's budget stops where drafting would lose.

Runs a short engine of its own over the same weights with useless drafts of fixed length, and takes the fastest of a
few steps for each shape: other work on the machine can only slow a step down. Rollouts do not depend on the outcome.
"""

from __future__ import annotations

import time

import numpy as np
from transformers import PreTrainedModel

from rolltree.budget import CostModel
from rolltree.engine.config import EngineConfig
from rolltree.engine.engine import Engine
from rolltree.engine.request import Request
from rolltree.sampling import SamplingParams
from rolltree.types import DraftBatch, Int32Array, Int64Array, TokenIds

SHAPES = ((0, 1), (1, 1), (3, 1), (7, 1), (15, 1), (7, 4), (15, 4))  # draft length of every n-th row; others: a fifth
REPEATS = 6
WARM_UP = 2  # the first step prefills, the second meets cold caches
PROMPT = 32  # tokens: attention over a rollout of typical length, not over an empty cache


def measure_cost(model: PreTrainedModel, *, slots: int, max_draft: int) -> CostModel:
    """Step-cost model of `model` for up to `slots` rows and `max_draft` drafted tokens a row."""
    shapes = [(length, every) for length, every in SHAPES if length <= max(1, max_draft)]
    longest = max(length for length, _ in shapes)
    drafter = FixedLengths()
    room = PROMPT + (REPEATS + WARM_UP) * (longest + 1) + 1
    engine = Engine(model, EngineConfig(slots=slots, max_length=room, max_draft=longest), drafter)
    observations = []
    for rows in sorted({1, max(1, slots // 4), max(1, slots // 2), slots}):
        for drafter.length, drafter.every in shapes:
            drafted = int(drafter.lengths(rows).sum())
            observations.append((rows, drafted, drafter.length, fastest_step(engine, rows)))
    return CostModel.fit(observations)


def fastest_step(engine: Engine, rows: int, prompt: int = PROMPT, *, steps: int = REPEATS, stay: bool = False) -> float:
    """Seconds of the fastest of `steps` steps of `rows` requests with `prompt` tokens each; `stay`: they go on."""
    sampling = SamplingParams(max_tokens=engine.max_length, seed=0)
    ids = [engine.submit(Request([0] * prompt, sampling)) for _ in range(rows)]
    seconds = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start)
    if not stay:
        for id in ids:
            engine.abort(id)
        engine.step()
    return min(seconds[WARM_UP:])


class FixedLengths:
    """A drafter of useless drafts: token 0, `length` times in every n-th row, a fifth of that in the others."""

    length = 0
    every = 1

    def lengths(self, rows: int) -> Int32Array:
        """Drafted nodes of each row."""
        return np.where(np.arange(rows) % self.every == 0, self.length, self.length // 5).astype(np.int32)

    def open(self, prompt: TokenIds, *, key: str | None = None, seed: int | None = None, coupled: bool = False) -> int:
        """See Drafter."""
        return 0

    def draft(self, handles: Int64Array, limits: Int32Array) -> DraftBatch:
        """See Drafter."""
        shape = (len(handles), max(self.length, 1))
        return DraftBatch(
            tokens=np.zeros(shape, np.int32),
            parents=np.tile(np.arange(-1, shape[1] - 1, dtype=np.int32), (shape[0], 1)),
            lengths=self.lengths(shape[0]),
            survival=np.ones(shape, np.float32),
            is_chain=True,
        )

    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        """See Drafter."""

    def close(self, handle: int, *, keep: bool = True) -> None:
        """See Drafter."""
