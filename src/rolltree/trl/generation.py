"""One call of the engine with its account: results that are all there, and a record of what they cost."""

from __future__ import annotations

import time

from rolltree.engine import Engine, Request, Result
from rolltree.errors import RequestError
from rolltree.trl.history import RolloutRecord


def generate(
    engine: Engine, requests: list[Request], *, step: int, training: bool
) -> tuple[list[Result], RolloutRecord]:
    """Run the requests to their end, at the trainer's `step`; resets the engine's counters.

    Raises:
        RequestError: one of them failed; a trainer cannot go on with rows missing.
    """
    stats = engine.stats
    stats.reset()
    start = time.perf_counter()
    results = engine.generate(requests)
    seconds = time.perf_counter() - start
    for i, result in enumerate(results):
        if result.error is not None:
            raise RequestError(f"rollout {i} of {len(results)} failed: {result.error}")
    record = RolloutRecord(step=step, training=training, sequences=len(results), seconds=seconds, engine=stats.copy())
    return results, record
