"""How many tokens a running rollout still has before it: learned from the finished lengths of its prompt.

The estimate is the mean residual life: of the earlier rollouts that got longer than this one is now, by how much on
average. A prompt with few of them leans on the lengths of all prompts. Knows no engine; pure and deterministic given
the lengths added. Prompts are forgotten least recently used first.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence

import numpy as np

from rolltree.types import Float32Array, Int64Array

KEPT = 32
"""Finished lengths kept for each prompt: the window in which rollouts of a changing policy stay alike."""
PROMPTS = 1 << 16
"""Prompts remembered."""
BORROWED = 2.0
"""Weight of the estimate over all prompts, in rollouts: two of the prompt's own weigh as much."""
GRADES = 8
"""Steps per octave of the histogram over all prompts: lengths told apart by 9 %."""
KEEP = 1 - 1 / 4096
"""Factor on what the histogram holds for each rollout added: some thousand rollouts, a few training steps."""
UNSEEN = 256.0
"""Expected length when nothing was ever finished; the same for all, so that no request is favoured."""
LONGER = 0.5
"""Share of its length that a rollout longer than all before it is expected to go on for (a Pareto tail of index 3)."""


class LengthEstimator:
    """Finished lengths by prompt, and what they say of running rollouts."""

    def __init__(self) -> None:
        self._own: OrderedDict[Hashable, deque[int]] = OrderedDict()
        self._count = np.zeros(40 * GRADES)
        self._tokens = np.zeros(40 * GRADES)

    def add(self, prompt: Hashable, length: int) -> None:
        """Remember a finished rollout of `prompt` (any key), `length` generated tokens; one cut by its limit, too."""
        self._own.setdefault(prompt, deque(maxlen=KEPT)).append(length)
        self._own.move_to_end(prompt)
        if len(self._own) > PROMPTS:
            self._own.popitem(last=False)
        self._count *= KEEP
        self._tokens *= KEEP
        grade = _grade(length)
        self._count[grade] += 1
        self._tokens[grade] += length

    def remaining(self, prompts: Sequence[Hashable], lengths: Int64Array, limits: Int64Array) -> Float32Array:
        """Estimate the tokens that each running rollout will still generate.

        Args:
            prompts: B keys.
            lengths: int64 [B], tokens generated so far.
            limits: int64 [B], most that it may generate in all.

        Returns:
            float32 [B], from 1 to `limits - lengths`.

        """
        left = [self._expected(prompt, int(n)) for prompt, n in zip(prompts, lengths, strict=True)]
        estimate: Float32Array = np.clip(left, 1, np.maximum(limits - lengths, 1), dtype=np.float32, casting="unsafe")
        return estimate

    def _expected(self, prompt: Hashable, length: int) -> float:
        longer = [n - length for n in self._own.get(prompt, ()) if n > length]
        return (sum(longer) + BORROWED * self._expected_of_all(length)) / (len(longer) + BORROWED)

    def _expected_of_all(self, length: int) -> float:
        above = _grade(length) + 1
        count = float(self._count[above:].sum())
        if count >= 1e-3:
            return float(self._tokens[above:].sum()) / count - length
        return LONGER * length if self._count.any() else max(UNSEEN - length, LONGER * length)


def _grade(length: int) -> int:
    return min(int(GRADES * math.log2(length)) + 1, 40 * GRADES - 1) if length > 0 else 0
