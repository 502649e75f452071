"""What the engine counts besides every host's counters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from rolltree.engine.layout import Layout
from rolltree.metrics import Counters, count, count_by
from rolltree.types import Int64Array

PHASES = ("prefill", "draft", "forward", "sample", "update")


@dataclass(slots=True, kw_only=True)
class EngineStats(Counters):
    """Sums since the engine was made, or since `reset`; `steps` are verify forwards."""

    verified: int = count("Tokens of all verify forwards: row_steps + drafted")
    padded: int = count("Cells of the attention rectangle, at least `verified`")
    prefilled: int = count("Prompt tokens of all prefill forwards")
    shared: int = count("Prompt tokens copied from a sibling instead of computed")
    finished: int = count("Requests that ended")
    failed: int = count("Requests that an error ended")
    tie_recomputes: int = count("Tokens decided by a plain forward: two scores were closer than engine.tie_margin")
    invalid_drafts: int = count("Draft nodes ignored: outside the vocabulary, malformed, or more than asked for")
    drafter_errors: int = count("Exceptions raised by the drafter; the step went on without drafts")
    store_errors: int = count("Rollouts that the engine's store did not take; the step went on")
    out_of_memory: int = count("Forwards that ran out of memory and were retried smaller")
    seconds: dict[str, float] = count_by(PHASES, "Wall seconds by phase; on CUDA the wait for the device is in sample")

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def end(self, *, failed: bool) -> None:
        """Count a request that ended."""
        self.finished += 1
        self.failed += failed

    def add_step(self, layout: Layout, emitted: Int64Array) -> None:
        """Add a verify step of this layout, whose row b emitted `emitted[b]` tokens."""
        rows, verified = len(layout.counts), len(layout.row_of)
        self.steps += 1
        self.row_steps += rows
        self.tokens += int(emitted.sum())
        self.drafted += verified - rows
        self.verified += verified
        self.padded += layout.padded
        self.accepted += int(np.maximum(emitted - 1, 0).sum())
