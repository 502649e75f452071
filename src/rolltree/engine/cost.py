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

DRAFTS = (0, 1, 3, 7, 15)
REPEATS = 6
WARM_UP = 2  # the first step prefills, the second meets cold caches
PROMPT = 32  # tokens: attention over a rollout of typical length, not over an empty cache


def measure_cost(model: PreTrainedModel, *, slots: int, max_draft: int) -> CostModel:
    """Step-cost model of `model` for up to `slots` rows and `max_draft` drafted tokens a row."""
    lengths = [length for length in DRAFTS if length <= max(1, max_draft)]
    drafter = _FixedLength()
    room = PROMPT + (REPEATS + WARM_UP) * (max(lengths) + 1) + 1
    engine = Engine(model, EngineConfig(slots=slots, max_length=room, max_draft=max(lengths)), drafter)
    observations = []
    for rows in sorted({1, max(1, slots // 4), max(1, slots // 2), slots}):
        for drafter.length in lengths:
            observations.append((rows, rows * drafter.length, _fastest_step(engine, rows)))
    return CostModel.fit(observations)


def _fastest_step(engine: Engine, rows: int) -> float:
    sampling = SamplingParams(max_tokens=engine.max_length, seed=0)
    ids = [engine.submit(Request([0] * PROMPT, sampling)) for _ in range(rows)]
    seconds = []
    for _ in range(WARM_UP + REPEATS):
        start = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start)
    for id in ids:
        engine.abort(id)
    engine.step()
    return min(seconds[WARM_UP:])


class _FixedLength:
    """Drafts token 0 again and again."""

    length = 0

    def open(self, prompt: TokenIds, *, key: str | None = None, seed: int | None = None, coupled: bool = False) -> int:
        return 0

    def draft(self, handles: Int64Array, limits: Int32Array) -> DraftBatch:
        shape = (len(handles), max(self.length, 1))
        return DraftBatch(
            tokens=np.zeros(shape, np.int32),
            parents=np.tile(np.arange(-1, shape[1] - 1, dtype=np.int32), (shape[0], 1)),
            lengths=np.full(shape[0], self.length, np.int32),
            survival=np.ones(shape, np.float32),
            is_chain=True,
        )

    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        pass

    def close(self, handle: int, *, keep: bool = True) -> None:
        pass
