"""Counts of one policy step: per rollout, by draft position, by claimed survival. Sums only; ratios are for `results`.

A row step is one (request, engine step) pair. Arrays over rollouts are in the order of submission.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rolltree.replay.profiles import Load
from rolltree.replay.verdict import ReplayVerdict
from rolltree.types import DraftBatch, Int64Array

BINS = 20
"""Equal buckets of claimed survival, 0 to 1."""

FloatArray = npt.NDArray[np.float64]


@dataclass(slots=True)
class Calibration:
    """Verified draft tokens by claimed survival."""

    nodes: FloatArray = field(default_factory=lambda: np.zeros(BINS))
    claimed: FloatArray = field(default_factory=lambda: np.zeros(BINS))
    accepted: FloatArray = field(default_factory=lambda: np.zeros(BINS))

    def add(self, survival: FloatArray, good: npt.NDArray[np.bool_]) -> None:
        """File nodes [n] under what was claimed of them."""
        bucket = np.minimum((survival * BINS).astype(np.int64), BINS - 1)
        self.nodes += np.bincount(bucket, minlength=BINS)
        self.claimed += np.bincount(bucket, survival, minlength=BINS)
        self.accepted += np.bincount(bucket[good], minlength=BINS)

    def merge(self, other: Calibration) -> None:
        """Add another's sums."""
        self.nodes += other.nodes
        self.claimed += other.claimed
        self.accepted += other.accepted


class Tally:
    """What happened in one policy step."""

    def __init__(self, rollouts: int, max_draft: int) -> None:
        self.engine_steps = 0
        self.row_steps: Int64Array = np.zeros(rollouts, np.int64)
        self.drafted: Int64Array = np.zeros(rollouts, np.int64)
        self.accepted: Int64Array = np.zeros(rollouts, np.int64)
        self.start: FloatArray = np.zeros(rollouts)
        """Seconds after the begin of the step at which the rollout got a slot."""
        self.finish: FloatArray = np.zeros(rollouts)
        self.drafted_at: Int64Array = np.zeros(max_draft, np.int64)
        """By place in the draft."""
        self.accepted_at: Int64Array = np.zeros(max_draft, np.int64)
        self.calibration = Calibration()
        self.sources: dict[str, tuple[int, int]] = {}
        self.draft_seconds = 0.0
        self.update_seconds = 0.0
        self.open_seconds = 0.0
        """Opening requests, trees that come back from a store included."""
        self.evicted = 0
        """Prompts that left for want of memory."""
        self.rebuilt = 0
        """Prompts that came back from a store."""
        self.peak_bytes = 0
        self.indexed_tokens = 0
        """At the peak."""

    def step(self, load: Load, rollout: Int64Array, batch: DraftBatch, verdict: ReplayVerdict) -> None:
        """File one engine step of the live rollouts `rollout` [B]."""
        self.engine_steps += 1
        self.row_steps[rollout] += 1
        if not load.drafted:
            return
        self.drafted[rollout] += batch.lengths
        self.accepted[rollout] += verdict.accepted
        places = len(self.drafted_at)
        self.drafted_at += np.bincount(verdict.depth, minlength=places)
        self.accepted_at += np.bincount(verdict.depth[verdict.good], minlength=places)
        inside = np.arange(batch.survival.shape[1]) < batch.lengths[:, None]
        self.calibration.add(batch.survival[inside].astype(np.float64), verdict.good)

    def host(self, drafting: float, updating: float) -> None:
        """Add seconds that the drafter took."""
        self.draft_seconds += drafting
        self.update_seconds += updating

    def started(self, rollout: Int64Array, clock: float, opening: float) -> None:
        """Note when rollouts got a slot, and the seconds that the drafter took to open them."""
        self.start[rollout] = clock
        self.open_seconds += opening

    def finished(self, rollout: Int64Array, clock: float) -> None:
        """Note when rollouts ended."""
        self.finish[rollout] = clock

    def memory(self, held: int, tokens: int) -> None:
        """Note the memory of the drafter, in bytes, for `tokens` indexed tokens."""
        if held >= self.peak_bytes:
            self.peak_bytes, self.indexed_tokens = held, tokens
