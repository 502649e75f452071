"""Counters of the engine: sums only, so that they can be added over steps, engines and runs before any ratio
is taken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from rolltree.engine.layout import Layout
from rolltree.types import Int64Array

PHASES = ("prefill", "draft", "forward", "sample", "update")


@dataclass(slots=True)
class EngineStats:
    """Sums since the engine was made, or since `reset`."""

    steps: int = 0
    """Verify forwards."""
    row_steps: int = 0
    """(request, verify forward) pairs; tokens / row_steps is tokens per step."""
    tokens: int = 0
    """Tokens emitted."""
    drafted: int = 0
    """Draft nodes verified."""
    accepted: int = 0
    """Draft nodes accepted and emitted."""
    verified: int = 0
    """Tokens of all verify forwards: row_steps + drafted."""
    padded: int = 0
    """Cells of the attention rectangle, at least `verified`."""
    prefilled: int = 0
    """Prompt tokens of all prefill forwards."""
    shared: int = 0
    """Prompt tokens copied from a sibling instead."""
    finished: int = 0
    """Requests that ended."""
    failed: int = 0
    """Of these, by an error."""
    tie_recomputes: int = 0
    """Tokens decided by a plain forward because two scores were closer than engine.tie_margin."""
    invalid_drafts: int = 0
    """Draft nodes ignored: outside the vocabulary, malformed, or more than asked for."""
    drafter_errors: int = 0
    """Exceptions raised by the drafter; the step went on without drafts."""
    store_errors: int = 0
    """Rollouts that the engine's store did not take; the step went on."""
    out_of_memory: int = 0
    """Forwards that ran out of memory and were retried smaller."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """Wall seconds by phase; on CUDA the wait for the device is in "sample"."""

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def count(self, layout: Layout, emitted: Int64Array) -> None:
        """Add a verify step of this layout, whose row b emitted `emitted[b]` tokens."""
        rows, verified = len(layout.counts), len(layout.row_of)
        self.steps += 1
        self.row_steps += rows
        self.tokens += int(emitted.sum())
        self.drafted += verified - rows
        self.verified += verified
        self.padded += layout.padded
        self.accepted += int(np.maximum(emitted - 1, 0).sum())

    def reset(self) -> None:
        """Set every sum to zero."""
        fresh = EngineStats()
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))
