"""Measures what a verify step of a model costs on this machine, so that drafting stops where it would lose.

Runs a second, short engine over the same weights for some dozens of steps with useless drafts of fixed length. It
takes the fastest of a few steps for each shape: other work on the machine can only slow a step down. Rollouts do not
depend on the outcome, only their speed does.
"""

from __future__ import annotations

import time

import numpy as np
from transformers import PreTrainedModel

from rolltree.budget import CostModel
from rolltree.engine import Engine, EngineConfig, Request
from rolltree.sampling import SamplingParams
from rolltree.types import DraftBatch, Int32Array, Int64Array, TokenIds

DRAFTS = (0, 1, 3, 7, 15)
REPEATS = 5
WARM_UP = 2  # the first step prefills, the second meets cold caches


def measure_cost(model: PreTrainedModel, *, slots: int, max_draft: int) -> CostModel:
    """Step-cost model of `model` for up to `slots` rows and `max_draft` drafted tokens a row."""
    drafter = _FixedLength()
    length = (REPEATS + WARM_UP) * (max(DRAFTS) + 2) + 1
    engine = Engine(model, EngineConfig(slots=slots, max_length=length, max_draft=max(DRAFTS)), drafter=drafter)
    observations = []
    for rows in sorted({1, max(1, slots // 4), max(1, slots // 2), slots}):
        for drafter.length in [draft for draft in DRAFTS if draft <= max(1, max_draft)]:
            observations.append((rows, rows * drafter.length, _fastest_step(engine, rows)))
    return CostModel.fit(observations)


def _fastest_step(engine: Engine, rows: int) -> float:
    sampling = SamplingParams(max_tokens=engine.max_length - 1, seed=0)
    ids = [engine.submit(Request([0], sampling)) for _ in range(rows)]
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
            lengths=np.minimum(limits, self.length).astype(np.int32),
            survival=np.ones(shape, np.float32),
            is_chain=True,
        )

    def advance(self, handles: Int64Array, tokens: Int32Array, offsets: Int32Array) -> None:
        pass

    def close(self, handle: int, *, keep: bool = True) -> None:
        pass
